"""A process that is killed at its n-th file operation, as often as there are operations."""

import os
import signal
import sys
from collections.abc import Callable, Iterator

import torch

_MOST_SECONDS = 300  # a fork that hangs is a failed test, not a hung one
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.chmod"}


def killed_at_each(work: Callable[[], object], *, stride: int = 1) -> Iterator[int]:
    """Runs `work` in a fork that dies before its n-th change to a file; yields each n in turn.

    Ends where a fork has come to its end, so that every operation was once the last.
    """
    at = 1
    while (status := _forked(work, at)) == -signal.SIGKILL:
        yield at
        at += stride
    assert status == 0, f"the fork ended with {status}: it hung, or it failed by itself"


def completed(work: Callable[[], object]) -> bool:
    """Whether `work` comes to its end in a fork that nobody kills."""
    return _forked(work, 0) == 0


def _forked(work: Callable[[], object], at: int) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        signal.alarm(_MOST_SECONDS)
        # OpenMP's other threads did not come along: a parallel region would wait for them for ever.
        torch.set_num_threads(1)
        if at:
            sys.addaudithook(_killer(at))
        work()
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)


def _killer(at: int) -> Callable[[str, tuple[object, ...]], None]:
    left = at

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        # an audit hook's arguments have no types; the third one of "open" is its flags
        writes = event == "open" and bool(int(arguments[2] or 0) & _WRITES)  # type: ignore[call-overload]
        if writes or event in _EVENTS:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    return count
