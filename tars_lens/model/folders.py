"""Folders of checkpoints: what is in them by their index, and copies, made whole or not at all."""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tars_lens.common.errors import TarsError, reason
from tars_lens.common.files import beside, clear_left_behind

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
ALSO = "A hub id (owner/name), a folder with config.json and safetensors, or a .gguf works too."

_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_STALE = _PICKLES | {".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot"}
_TRAINERS = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler|rng_state\w*)\.(bin|pth?)")
"""What a trainer keeps beside the weights, under the suffixes that weights have."""
_CLONE = 0x40049409  # FICLONE of linux/fs.h, which Python's fcntl doesn't name before 3.14


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json, refused where its weights can't be edited as they stand.

    Raises:
        TarsError: There is none, it can't be read, the weights are packed, or an adapter is added.
    """
    adapter = next((name for name in _ADAPTERS if (folder / name).is_file()), "")
    if adapter:
        raise TarsError(
            f"{str(folder)!r} holds an adapter ({adapter}), which is added to the weights when the "
            "model is loaded: merge it first (PEFT's merge_and_unload, then save_pretrained), or "
            "take its files out of the folder where that is done."
        )
    file = folder / "config.json"
    if not file.is_file():
        raise TarsError(
            f"{str(folder)!r} is not a Hugging Face checkpoint: it has no config.json. {ALSO}"
        )
    config = _json(file)
    if config.get("quantization_config"):
        raise TarsError(
            f"{str(folder)!r} has packed (quantised) weights, which can't be edited in place. Use "
            "the unquantised checkpoint of the same model, or a .gguf file, which is unpacked."
        )
    if not isinstance(config.get("model_type", ""), str):
        raise TarsError(f"{str(file)!r} has a 'model_type' that is no text: download it again.")
    return config


def weight_files(folder: Path | str) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights, by its index where it has one.

    Raises:
        TarsError: There are none, or the index names one that isn't there.
    """
    folder = Path(folder)
    names = weight_names(folder)
    for name in names:
        if Path(name).name != name or not _is_file(folder / name):
            here = str(folder / INDEX)
            raise TarsError(f"{here!r} names {name!r}, which isn't there: download it again.")
    if names:
        return [folder / name for name in names]
    if any(file.suffix in _PICKLES and _is_stale(file) for file in folder.iterdir()):
        raise TarsError(
            f"{str(folder)!r} holds its weights as .bin, a pickle, which runs code when it is "
            "read. Use the safetensors version of the model, or save it as one."
        )
    raise TarsError(
        f"{str(folder)!r} has neither {WEIGHTS} nor {INDEX}. Save the model there with "
        "save_pretrained (safetensors is its default)."
    )


def weight_names(folder: Path) -> list[str]:
    """What a checkpoint's weight files are called, whether they are there or not.

    `from_pretrained` reads `model.safetensors` alone where it is there; an index beside it counts
    where it names that file, and is left over from other weights where it doesn't.

    Raises:
        TarsError: An index that names no files.
    """
    single, index = (folder / WEIGHTS).is_file(), folder / INDEX
    if not index.is_file():
        return [WEIGHTS] if single else []
    table = _json(index).get("weight_map")
    if isinstance(table, dict) and table and all(isinstance(v, str) for v in table.values()):
        names = sorted(set(table.values()))
        return [WEIGHTS] if single and WEIGHTS not in names else names
    if single:
        return [WEIGHTS]
    raise TarsError(f"{str(index)!r} has no 'weight_map' from tensors to files: download it again.")


def check_free(out: Path) -> None:
    """Refuses to write a folder where something is.

    Raises:
        TarsError: It exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TarsError(f"{str(out)!r} exists and is not empty: choose another folder.")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out`, and renames it to `out` if the block succeeds.

    What a killed process left of an earlier try at the same folder is cleared away first.
    """
    out = out.absolute()  # a name that ends in a dot has no folder above it
    check_free(out)
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        clear_left_behind(out)
        folder = Path(tempfile.mkdtemp(**beside(out)))
        folder.chmod(0o755)
        yield folder
        if out == Path.cwd():  # whoever stands in it would be left in a folder that is gone
            for child in folder.iterdir():
                os.replace(child, out / child.name)
        else:
            os.replace(folder, out)  # an empty folder gives way to it
    except OSError as error:
        reason = error.strerror or str(error)
        raise TarsError(
            f"cannot write {str(out)!r}: {reason}. Choose another folder, or free space."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def copy_checkpoint(source: Path, folder: Path, linked: Collection[Path] = ()) -> None:
    """The checkpoint's own weight files and everything that isn't weights, sub-folders too.

    Weights that are no part of the checkpoint would be unedited ones, and stay behind.

    Args:
        source: The checkpoint.
        folder: Where it goes.
        linked: The weight files that are to be one file with the source's, under two names.
    """
    weights = set(weight_files(source))
    index = source / INDEX
    kept = weights | {index} if weights != {source / WEIGHTS} else weights
    for file in _files(source):
        if _is_stale(file) and file not in kept:
            logger.info("%s is not copied: it is no part of the edited checkpoint.", file.name)
            continue
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file in linked:
            _link(file, target)
        else:
            copy(file, target)


def copy(source: Path, target: Path) -> None:
    """A file with the same bytes; a clone, which shares them until either is written to, if it can.

    That costs neither time nor space, and no program that writes to one file changes the other.
    """
    if not _clone(source, target):
        shutil.copyfile(source, target)
        target.chmod(0o644)


def _files(source: Path) -> Iterator[Path]:
    """The files of a folder; what a program keeps hidden there (`.git`, `.cache`) is its own."""
    for place, folders, files in os.walk(source):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (here / file for file in sorted(files) if (here / file).is_file())


def _is_stale(file: Path) -> bool:
    """Whether a file is weights, or the index of some, if the checkpoint doesn't name it."""
    weights = file.suffix in _STALE and not _TRAINERS.fullmatch(file.name)
    return weights or file.name.endswith(".index.json")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # a hub snapshot's files are symbolic links
    except OSError as error:  # another disk, or a file system without links
        logger.warning("%s is copied, it can't be linked: %s", source, error)
        copy(source, target)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or no name at all
        return False


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TarsError(
            f"cannot read {str(file)!r}: {reason(error)}. Download it again."
        ) from error
    if not isinstance(value, dict):
        raise TarsError(f"{str(file)!r} is not a JSON table: download it again.")
    return value


def _clone(source: Path, target: Path) -> bool:
    """Whether the file system (btrfs, XFS) could share the bytes of one file with another."""
    try:
        import fcntl

        with source.open("rb") as old, target.open("wb") as new:
            fcntl.ioctl(new.fileno(), _CLONE, old.fileno())
    except (ImportError, OSError):
        target.unlink(missing_ok=True)
        return False
    target.chmod(0o644)
    return True
