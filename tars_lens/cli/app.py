"""The commands by their names. Heavy imports happen inside each, so that `--help` is instant."""

import io
import sys
from collections.abc import Callable

import typer

from tars_lens.cli.audit import audit
from tars_lens.cli.card import card
from tars_lens.cli.certify import certify
from tars_lens.cli.chat import chat
from tars_lens.cli.compare import compare
from tars_lens.cli.erase import erase
from tars_lens.cli.evaluate import evaluate
from tars_lens.cli.inspect import inspect
from tars_lens.cli.lists import concepts, models
from tars_lens.cli.neuron import neuron
from tars_lens.cli.options import console
from tars_lens.cli.patch import app as patch
from tars_lens.cli.plan import plan
from tars_lens.cli.report import report
from tars_lens.cli.search import search
from tars_lens.cli.serve import serve
from tars_lens.cli.sweep import sweep
from tars_lens.common.errors import TarsError

app = typer.Typer(
    name="tars-lens",
    help="Find, remove and explain a concept in a language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS: tuple[Callable[..., None], ...] = (
    *(erase, inspect, evaluate, compare, certify, audit, report, serve, neuron, chat, card),
    *(concepts, models, plan, sweep, search),
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(patch, name="patch")


def main() -> None:
    """Runs the command line; a user's mistake is one plain message and exit code 2."""
    import logging

    from rich.logging import RichHandler

    handler = RichHandler(show_time=False, show_path=False, console=console(stderr=True))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name may be in another script than the pipe
    try:
        app()
    except (TarsError, OSError, MemoryError) as error:  # a full disk may be met anywhere
        logging.getLogger(__name__).debug("the error in full", exc_info=True)
        said = " ".join(str(error).split())  # some libraries' messages have many lines
        shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in said)
        typer.echo(f"error: {shown}", err=True)  # no name out of a file commands the terminal
        sys.exit(2)
