"""The one exception that a user's mistake raises."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

_LONGEST = 300  # characters of another library's message that are told


class TarsError(ValueError):
    """A user's mistake: says what was given, what is allowed and what to do about it.

    The commands print its text as one plain message and exit with code 2.
    """


def unknown(
    kind: str, given: str, known: Iterable[str], remedy: str = "", *, guess: str = ""
) -> TarsError:
    """The error for a name that isn't known: says what there is, the nearest name first.

    Args:
        kind: What was looked for ("concept", "model").
        given: What the user wrote.
        known: The names there are.
        remedy: A further sentence on what else would be accepted.
        guess: What was meant, where that is known better than by the likeness of names.
    """
    names = sorted(known)
    near = [guess] if guess else get_close_matches(given, names, n=1, cutoff=0.5)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    tail = f" {remedy}" if remedy else ""
    return TarsError(f"unknown {kind} {given!r}.{meant} There is: {', '.join(names)}.{tail}")


def reason(error: BaseException) -> str:
    """What another library's error says, in one line and without its full stop."""
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    line = " ".join(said.splitlines()[0].split())
    return (line if len(line) <= _LONGEST else f"{line[:_LONGEST]}...").rstrip(".")


@contextmanager
def told(what: str, remedy: str) -> Iterator[None]:
    """Makes one line of whatever another library raises in the block.

    Args:
        what: What could not be done, to what.
        remedy: A sentence on what to do about it.

    Raises:
        TarsError: With the library's reason between the two.
    """
    try:
        yield
    except BaseException as error:
        foreign = isinstance(error, Exception) and not isinstance(error, TarsError)
        if not foreign and type(error).__name__ != "PanicException":  # tokenizers' is no Exception
            raise
        raise TarsError(f"{what}: {reason(error)}. {remedy}") from error
