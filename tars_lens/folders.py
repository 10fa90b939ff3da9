"""Folders of checkpoints: made whole or not at all, with what isn't edited linked, not copied."""

import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tars_lens.errors import TarsError
from tars_lens.files import beside, clear_left_behind
from tars_lens.layout import weight_files

logger = logging.getLogger(__name__)

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"}
_CLONE = 0x40049409  # FICLONE of linux/fs.h, which Python's fcntl doesn't name before 3.14


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out`, and renames it to `out` if the block succeeds.

    What a killed process left of an earlier try at the same folder is cleared away first.
    """
    out = out.absolute()  # a name that ends in a dot has no folder above it
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TarsError(f"{str(out)!r} exists and is not empty: choose another folder.")
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


def copy_checkpoint(source: Path, folder: Path, touched: Collection[Path] | None = None) -> None:
    """The checkpoint's own weight files and everything that isn't weights.

    Args:
        source: The checkpoint.
        folder: Where it goes.
        touched: The weight files that will be written to. The others are linked, so that they
            take neither time nor space; where not given, all are copied.
    """
    weights = set(weight_files(source))
    sharded = source / "model.safetensors" not in weights
    kept = weights | {source / "model.safetensors.index.json"} if sharded else weights
    for file in sorted(source.iterdir()):
        is_weights = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
        if not file.is_file() or (is_weights and file not in kept):
            logger.info("%s is not copied: it is no part of the edited checkpoint.", file.name)
            continue
        if touched is not None and file in weights - set(touched):
            link(file, folder / file.name)
        else:
            copy(file, folder / file.name)


def copy(source: Path, target: Path) -> None:
    """A copy of a file's bytes, to be written to."""
    shutil.copyfile(source, target)
    target.chmod(0o644)


def link(source: Path, target: Path) -> None:
    """A file with the same bytes, at no cost where that can be had.

    A clone shares them until either file is written to; else a hard link is one file under two
    names; else it is a copy.
    """
    source = source.resolve()  # a hub snapshot's files are symbolic links
    if _clone(source, target):
        return
    try:
        os.link(source, target)
    except OSError as error:  # another disk, or a file system without links
        logger.debug("%s is copied, it can't be linked: %s", source, error)
        copy(source, target)


def make_private(file: Path) -> None:
    """Puts a copy in a file's place where it has other names, so that a write changes it alone."""
    if not file.is_symlink() and file.stat().st_nlink == 1:
        return
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        copy(file.resolve(), temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


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
