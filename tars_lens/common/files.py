"""Files written whole or not at all, and hashes of files."""

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tars_lens.common.errors import TarsError

logger = logging.getLogger(__name__)

_LONGEST = 40  # characters of a name in a file's: a name may have 255 bytes, four a character


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` only if the block succeeds.

    Raises:
        TarsError: The folder can't be made or written, the disk is full, or `path` is a device or
            a folder, which a rename would replace or fail on.
    """
    path = shell_path(str(path))
    try:
        if path.exists() and not path.is_file():
            raise TarsError(f"cannot write {str(path)!r}: it is no regular file. Choose another.")
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_left_behind(path)
        handle, name = tempfile.mkstemp(**beside(path))
        os.close(handle)
        os.chmod(name, 0o644)
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def beside(path: Path) -> dict[str, Any]:
    """Where `tempfile` is to make what will be renamed to `path`: its name tells whose it is."""
    prefix = f".{path.name[:_LONGEST]}.{_host()}-{os.getpid()}."
    return {"prefix": prefix, "suffix": ".partial", "dir": path.parent}


def clear_left_behind(path: Path) -> None:
    """Removes what killed processes of this machine have left of earlier tries at `path`."""
    import psutil

    name = re.escape(path.name[:_LONGEST])
    pattern = re.compile(rf"\.{name}\.{re.escape(_host())}-(\d+)\.\w+\.partial")
    for left in path.parent.iterdir():
        found = pattern.fullmatch(left.name)
        if found and not psutil.pid_exists(int(found[1])):
            logger.info("%s, which a killed process left behind, is removed.", left)
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes `text` to `path`, whole or not at all (UTF-8)."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def shell_path(given: Path | str) -> Path:
    """A word of the command line or a default as a path, `~` put in as a shell would."""
    path = Path(os.path.expanduser(given))
    literal = not str(given).startswith("~") and str(path).startswith("~")  # ./~ is what it says
    return path.absolute() if literal else path


def user_path(given: Path | str) -> Path:
    """What a user wrote as a path, with `~` put in.

    Raises:
        TarsError: It can't be a path, or nobody may look there.
    """
    try:
        path = shell_path(str(given)).expanduser()
        path.exists()  # too long a name and a closed folder would else be raised by the next user
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TarsError(f"cannot look for {_short(str(given))!r}: {reason}.") from error
    return path


def file_key(name: str) -> str:
    """A name as files have it: `marie_curie`. One that is too long ends in its hash."""
    name = unicodedata.normalize("NFC", name).lower()
    key = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else "_" for c in name)
    digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
    return key if len(key) <= _LONGEST else f"{key[:_LONGEST]}_{digest[:8]}"


def writable_folder(path: Path | str) -> Path:
    """Makes the folder `path` and proves that a file can be written there.

    Long work calls this first, so that nobody waits minutes for a refusal.

    Raises:
        TarsError: It can't be made or written.
    """
    path = shell_path(str(path))
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextmanager
def results_folder(path: Path | str) -> Iterator[Path]:
    """`writable_folder`, which goes again where the block fails before anything is in it.

    Raises:
        TarsError: It can't be made or written.
    """
    path = shell_path(str(path))
    new = [folder for folder in (path, *path.parents) if not folder.exists()]  # the innermost first
    writable_folder(path)
    try:
        yield path
    except BaseException:
        with suppress(OSError):  # something is in it
            for folder in new:
                folder.rmdir()
        raise


def sha256_file(path: Path | str, advance: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file's bytes, as hex; `advance` is told the bytes of every chunk read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()


def _host() -> str:
    """This machine's name: a process number says nothing of another machine's on a shared disk."""
    return re.sub(r"\W", "_", socket.gethostname())


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _cannot_write(path: Path, error: Exception) -> TarsError:
    reason = getattr(error, "strerror", None) or str(error)
    return TarsError(f"cannot write {str(path)!r}: {reason}. Choose another folder, or free space.")
