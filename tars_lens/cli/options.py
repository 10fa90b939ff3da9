"""What the commands share: options, how paths are read, progress, and where tables are printed."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.common.errors import TarsError
from tars_lens.common.files import shell_path
from tars_lens.method.settings import LAST_SEED

DEFAULT_MODEL = "smollm2-135m"

PARTS = "parts"
"""Where in the folder of results finished measures are kept, for `--resume`."""


def path_argument(said: str) -> Any:
    """An argument that is a path."""
    return typer.Argument(parser=shell_path, help=said)


def path_option(said: str, *names: str) -> Any:
    """An option that is a path."""
    return typer.Option(*names, parser=shell_path, metavar="PATH", help=said)


Model = Annotated[
    str, typer.Option("--model", "-m", help="A built-in name, a hub id, a folder or a .gguf file.")
]
Corpus = Annotated[
    str | None,
    typer.Option(
        help="Plain text: a MediaWiki dump (.xml, .xml.bz2), a folder of text, a .jsonl file, or "
        "datasets:NAME. Default: a sample of Wikipedia."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Seed of every random draw.")]
Dtype = Annotated[str, typer.Option(help="Of the weights: auto, float32, bfloat16 or float16.")]
KlTokens = Annotated[
    int, typer.Option(help="Tokens of plain text that damage is measured on; 0 for none.")
]
SuiteName = Annotated[str, typer.Option("--suite", help="quick (minutes) or full.")]
Patches = Annotated[list[Path], path_argument("Patch files (.safetensors), in order.")]
Force = Annotated[bool, typer.Option("--force", help="Take patches of another base.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")]
AsJson = Annotated[bool, typer.Option("--json", help="All tables as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]


def progress(quiet: bool) -> Any:
    """A bar on the terminal, or nothing."""
    from tars_lens.common.progress import progress as bar

    return bar(quiet=quiet)


def console(*, stderr: bool = False) -> Any:
    """Where a command prints tables and summaries."""
    from rich.console import Console

    # a pipe has no width of its own, and tables are to stay whole in it
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=130)


def tell(lines: Iterable[str], *, quiet: bool = False) -> None:
    """Prints lines unless the command is to be quiet."""
    if not quiet:
        for line in lines:
            typer.echo(line)


def tell_written(out: Path | None, written: Iterable[str]) -> None:
    """Prints the names of the files that a command has written, if any."""
    if names := ", ".join(written):
        console().print(f"Written to {out}: {names}.", markup=False, soft_wrap=True)


def tell_json(found: Any) -> None:
    """Prints a result's tables as JSON."""
    typer.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))


@contextmanager
def stoppable(said: Any) -> Iterator[None]:
    """Turns Ctrl-C into a message and exit code 130.

    Args:
        said: Called for what is kept, as it is when the command is stopped.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped; {said()}", err=True)
        raise typer.Exit(130) from None


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """`stoppable`, for a folder in which finished measures are kept."""

    def said() -> str:
        if any((out / PARTS).glob("*.json")):
            return f"finished measures are kept in {out / PARTS}: run it again with --resume."
        return "nothing was measured yet."

    with stoppable(said):
        yield


def method_called(name: str) -> Any:
    """A method by its name.

    Raises:
        TarsError: There is no such method.
    """
    from typing import get_args

    from tars_lens.common.errors import unknown
    from tars_lens.method.settings import MethodName

    if name not in get_args(MethodName):
        raise unknown("method", name, get_args(MethodName))
    return name


def at_least(option: str, value: int, least: int, why: str = "") -> None:
    """Refuses a number that is too small.

    Raises:
        TarsError: Names the option.
    """
    if value < least:
        raise TarsError(f"{option} must be at least {least}{why}, got {value}.")
