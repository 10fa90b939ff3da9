"""The user's cache folder: what is in it is whole, is made once, and is known by its hash."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from tars_lens.common.errors import TarsError
from tars_lens.common.files import sha256_file, user_path, writable_folder, write_json
from tars_lens.common.progress import progress as progress_bar

logger = logging.getLogger(__name__)

Advance = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""

MANIFEST = "manifest.json"
FORMAT = 2
"""Of manifests; raised when what is kept is checked for more, so that it is made again."""


def silent(_what: str, _done: int, _total: int) -> None:
    """An `Advance` that shows nothing."""


def cache_folder() -> Path:
    """Where fetched and converted things are kept; `TARS_LENS_CACHE` overrides the usual place.

    Raises:
        TarsError: It can't be a path.
    """
    given = os.environ.get("TARS_LENS_CACHE")
    if not given:
        return Path(platformdirs.user_cache_dir("tars_lens"))
    try:
        return user_path(given)
    except TarsError as error:
        raise TarsError(
            f"TARS_LENS_CACHE is no folder: {str(error).rstrip('.')}. Set it to a folder that can "
            "be written."
        ) from error


@contextmanager
def locked(key: str) -> Iterator[None]:
    """Lets one process at a time make the thing called `key`; the others wait for it.

    Raises:
        TarsError: The cache folder can't be written.
    """
    folder = writable_folder(cache_folder() / "locks")
    lock = FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is preparing %s; waiting for it.", key)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder`, and puts it in its place if the block succeeds.

    To be used while `locked`: what an interrupted process left behind is cleared away.

    Raises:
        TarsError: The cache folder can't be written, or the disk is full.
    """
    partial = folder.parent / f".{folder.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TarsError(
            f"cannot write to the cache folder {str(folder.parent)!r}: {reason}. Free space, or "
            "set TARS_LENS_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_space(needed: int, what: str) -> None:
    """Refuses work that would fill the disk.

    Raises:
        TarsError: Less than `needed` bytes are free where the cache is.
    """
    folder = writable_folder(cache_folder())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TarsError(
            f"{what} needs {needed / 1e6:,.0f} MB of disk space while it is made, and "
            f"{str(folder)!r} has {free / 1e6:,.0f} MB. Free space, or set TARS_LENS_CACHE to a "
            "folder on another disk."
        )


def write_manifest(folder: Path, **values: Any) -> None:
    """Writes what `folder` holds: the size of every file in it, and `values` beside them."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
    write_json(folder / MANIFEST, {"format": FORMAT, **values, "files": sizes})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder of this format whose files have the sizes it gives, else `None`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = manifest["files"].items()
        whole = manifest["format"] == FORMAT
        whole &= all((folder / name).stat().st_size == size for name, size in sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


def file_sha256(path: Path, advance: Advance | None = None) -> str:
    """The SHA-256 of a file, remembered for as long as its size and time of change stay."""
    known, state = _memory(path)
    try:
        remembered = json.loads(known.read_text(encoding="utf-8"))
        if {key: remembered[key] for key in state} == state:
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never hashed before
    digest = sha256_file(path, _in_megabytes(path, advance))
    remember_sha256(path, digest)
    return digest


def remember_sha256(path: Path, digest: str) -> None:
    """Notes a hash for `file_sha256`, so that a file that was just hashed isn't read again."""
    known, state = _memory(path)
    try:
        write_json(known, {**state, "sha256": digest})
    except TarsError as error:
        logger.debug("the hash of %s is not remembered: %s", path, error)


@contextmanager
def telling(progress: bool, advance: Advance | None) -> Iterator[Advance]:
    """Yields `advance`, or a bar of its own that appears when there is something to tell."""
    with ExitStack() as stack:
        bar = advance

        def tell(what: str, done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(progress_bar(quiet=not progress))
            bar(what, done, total)

        yield tell


def _memory(path: Path) -> tuple[Path, dict[str, Any]]:
    """Where the hash of a file is remembered, and what it holds for."""
    path = path.resolve()
    status = path.stat()
    state = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    key = hashlib.sha256(os.fsencode(path)).hexdigest()
    return cache_folder() / "hashes" / f"{key}.json", state


def _in_megabytes(path: Path, advance: Advance | None) -> Callable[[int], None] | None:
    if advance is None:
        return None
    done, size = 0, path.stat().st_size

    def count(chunk: int) -> None:
        nonlocal done
        done += chunk
        advance(f"hashing {path.name} (MB)", done // 10**6, size // 10**6)

    return count
