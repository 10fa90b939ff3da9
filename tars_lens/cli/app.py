"""The commands. Heavy imports happen inside each, so that `--help` is instant."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from tars_lens.cli import (
    card,
    compare,
    evaluate,
    inspect,
    plan,
    report,
    search,
    sweep,
)
from tars_lens.cli import chat as chat_command
from tars_lens.cli import neuron as neuron_command
from tars_lens.cli import patch as patch_command
from tars_lens.cli.options import console, path_option
from tars_lens.common.errors import TarsError, unknown
from tars_lens.concept.naming import HELP as CONCEPTS
from tars_lens.method.settings import LAST_SEED, METHODS

app = typer.Typer(
    name="tars-lens",
    help="Find, remove and explain a concept in a language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(patch_command.app, name="patch")
app.command()(card.card)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(inspect.inspect)
app.command()(report.report)
app.command()(plan.plan)
app.command()(sweep.sweep)
app.command()(search.search)

DEFAULT_MODEL = "smollm2-135m"

Model = Annotated[
    str, typer.Option("--model", "-m", help="A built-in name, a hub id, a folder or a .gguf file.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Seed = Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Seed of every random draw.")]
Corpus = Annotated[
    str | None,
    typer.Option(
        help="Plain text: a MediaWiki dump (.xml, .xml.bz2), a folder of text, a .jsonl file, or "
        "datasets:NAME. Default: a sample of Wikipedia."
    ),
]


@app.command()
def erase(
    concepts: Annotated[list[str], typer.Argument(help=CONCEPTS)],
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path, path_option("Where patches and report go.")] = Path("runs/erase"),
    seed: Seed = 0,
    edits: Annotated[
        int | None, typer.Option(help="At most so many weight vectors a concept.")
    ] = None,
    method: Annotated[str, typer.Option(help=METHODS)] = "tars",
    corpus: Corpus = None,
    kl_tokens: Annotated[
        int, typer.Option(help="Tokens of plain text that damage is measured on; 0 for none.")
    ] = 25_600,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto, float32, bfloat16 or float16.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="Where the weights go: cpu, cuda, cuda:1.")] = "cpu",
    device_map: Annotated[
        str | None, typer.Option(help="auto: spread the layers over all GPUs, as accelerate does.")
    ] = None,
    explain: Annotated[
        bool, typer.Option(help="Also make the tables that the report's figures are drawn from.")
    ] = True,
    quiet: Quiet = False,
) -> None:
    """Remove concepts one after another, with proof of what changed and what it cost."""
    from tars_lens.common.files import results_folder
    from tars_lens.concept.naming import card_or_name, with_cards
    from tars_lens.method.settings import MethodName, Settings

    if kl_tokens < 0:
        raise TarsError(f"--kl-tokens must be at least 0 (0 for no measurement), got {kl_tokens}.")
    if method not in get_args(MethodName):
        raise unknown("method", method, get_args(MethodName))
    name = cast(MethodName, method)
    settings = Settings(name=name, seed=seed, edits=edits)
    asked = [card_or_name(concept) for concept in concepts]
    kept: dict[str, Path] = {}

    def keep(patch: Any) -> None:
        file = out / f"{patch.label}.safetensors"
        patch.save(file)
        kept[patch.label] = file

    with results_folder(out), _kept_if_stopped(kept):
        with _progress(quiet) as advance:
            advance(f"loading {model}", 0, 1)
            from tars_lens.evaluation.erasure import erase as run
            from tars_lens.model.loading import load
            from tars_lens.text.corpus import load_corpus

            # first: a wrong name is cheaper than a download
            lens = load(model, dtype=dtype, device=device, device_map=device_map, advance=advance)
            text = load_corpus(corpus, advance=advance)
            advance(f"loading {model}", 1, 1)
            named = with_cards(lens, asked, text, out, advance=advance)
        _say(named.said, quiet=quiet)
        cards = named.cards
        with _progress(quiet) as advance:
            erasure = run(
                lens,
                cards,
                settings=settings,
                corpus=text,
                kl_tokens=kl_tokens,
                advance=advance,
                keep=keep,
            )
            erasure.save(out)  # before the tables that only explain it
            if explain:
                from tars_lens.attribution.explaining import explain as explained

                more = explained(
                    lens,
                    cards,
                    erasure.patches,
                    probes=erasure.tables["probes"],
                    divergence=erasure.divergence,
                    seed=seed,
                    advance=advance,
                )
                erasure = replace(erasure, tables={**erasure.tables, **more})
                erasure.save(out)
    if not quiet:
        from tars_lens.report.summary import print_summary

        print_summary(erasure.report, console())
        tables = (f"{name}.csv" for name in erasure.tables)
        written = ", ".join(["report.json", *tables, *(file.name for file in kept.values())])
        console().print(f"Written to {out}: {written}.", markup=False, soft_wrap=True)
    verified = erasure.report["verified"]
    proven = verified["others_identical"] and verified["restored_identical"]
    if not proven or verified["rows_changed"] != verified["rows_planned"]:
        raise typer.Exit(1)


@app.command()
def concepts() -> None:
    """List the built-in concept cards, with the probes that each reports on."""
    from rich.table import Table

    from tars_lens.concept.card import Concept, builtin_concepts

    table = Table(title="Built-in concepts, and the numbers of their probes")
    for title in ("name", "answer", "forward", "reverse", "neighbour", "languages"):
        table.add_column(title)
    for name in builtin_concepts():
        card = Concept.load(name)
        probes = card.probes
        counts = (str(len(k)) for k in (probes.forward, probes.reverse, probes.neighbour))
        languages = sorted({probe.language for probe in probes.multilingual})
        table.add_row(name, card.answer, *counts, " ".join(languages))
    console().print(table)


@app.command()
def models() -> None:
    """List the built-in models, with size, licence and whether they are cached."""
    from rich.table import Table

    from tars_lens.model.checkpoints import model_table

    frame = model_table()
    table = Table(title="Built-in models; a hub id, a folder or a .gguf file works too")
    for title in frame.columns:
        size = str(title).endswith("_bytes")
        table.add_column(str(title).removesuffix("_bytes"), justify="right" if size else "left")
    for row in frame.itertuples(index=False):
        table.add_row(
            *[_cell(title, value) for title, value in zip(frame.columns, row, strict=True)]
        )
    console().print(table)


app.command()(neuron_command.neuron)
app.command()(chat_command.chat)


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


@contextmanager
def _kept_if_stopped(kept: dict[str, Path]) -> Iterator[None]:
    """Turns Ctrl-C into a message that says what is kept, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        files = ", ".join(map(str, kept.values()))
        typer.echo(f"stopped; kept: {files or 'nothing was made yet'}", err=True)
        raise typer.Exit(130) from None


def _say(lines: list[str], *, quiet: bool) -> None:
    for line in () if quiet else lines:
        typer.echo(line)


def _cell(title: Any, value: Any) -> str:
    if str(title).endswith("_bytes") and value == value and value is not None:
        return f"{int(value) / 1e6:,.0f} MB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _progress(quiet: bool) -> Any:
    from tars_lens.common.progress import progress

    return progress(quiet=quiet)
