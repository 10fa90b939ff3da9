"""How the commands read paths: `~` and relative ones as a shell user expects."""

from typing import Any

import typer

from tars_lens.files import shell_path


def path_argument(said: str) -> Any:
    """An argument that is a path."""
    return typer.Argument(parser=shell_path, help=said)


def path_option(said: str, *names: str) -> Any:
    """An option that is a path."""
    return typer.Option(*names, parser=shell_path, metavar="PATH", help=said)
