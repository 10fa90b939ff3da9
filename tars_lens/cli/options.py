"""What the commands share: how paths are read, and where tables are printed."""

from typing import Any

import typer

from tars_lens.common.files import shell_path


def path_argument(said: str) -> Any:
    """An argument that is a path."""
    return typer.Argument(parser=shell_path, help=said)


def path_option(said: str, *names: str) -> Any:
    """An option that is a path."""
    return typer.Option(*names, parser=shell_path, metavar="PATH", help=said)


def console(*, stderr: bool = False) -> Any:
    """Where a command prints tables and summaries."""
    from rich.console import Console

    # a pipe has no width of its own, and tables are to stay whole in it
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=130)
