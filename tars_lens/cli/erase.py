"""`tars-lens erase`: concepts removed one after another, measured, verified and reported."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli.options import (
    DEFAULT_MODEL,
    Corpus,
    Dtype,
    KlTokens,
    Model,
    Quiet,
    Seed,
    at_least,
    console,
    method_called,
    path_option,
    progress,
    stoppable,
    tell,
    tell_written,
)
from tars_lens.concept.naming import HELP as CONCEPTS
from tars_lens.method.settings import METHODS


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
    kl_tokens: KlTokens = 25_600,
    dtype: Dtype = "auto",
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
    from tars_lens.concept.naming import card_or_name
    from tars_lens.method.settings import Settings

    at_least("--kl-tokens", kl_tokens, 0, " (0 for no measurement)")
    settings = Settings(name=method_called(method), seed=seed, edits=edits)
    asked = [card_or_name(concept) for concept in concepts]
    kept: dict[str, Path] = {}

    def kept_files() -> str:
        return f"kept: {', '.join(map(str, kept.values())) or 'nothing was made yet'}"

    with results_folder(out), stoppable(kept_files):
        placed = {"dtype": dtype, "device": device, "device_map": device_map}
        lens, text, named = _loaded(model, placed, corpus, asked, out, quiet)
        tell(named.said, quiet=quiet)
        erasure = _removed(lens, named.cards, settings, text, kl_tokens, out, kept, quiet)
        if explain:
            erasure = _explained(lens, named.cards, erasure, seed, quiet)
            erasure.save(out)
    if not quiet:
        from tars_lens.report.summary import print_summary

        print_summary(erasure.report, console())
        tables = (f"{name}.csv" for name in erasure.tables)
        tell_written(out, ["report.json", *tables, *(file.name for file in kept.values())])
    verified = erasure.report["verified"]
    proven = verified["others_identical"] and verified["restored_identical"]
    if not proven or verified["rows_changed"] != verified["rows_planned"]:
        raise typer.Exit(1)


def _loaded(
    model: str,
    placed: dict[str, Any],
    corpus: str | None,
    asked: list[Any],
    out: Path,
    quiet: bool,
) -> tuple[Any, Any, Any]:
    """The model, plain text, and a card for each concept."""
    with progress(quiet) as advance:
        advance(f"loading {model}", 0, 1)
        from tars_lens.concept.naming import with_cards
        from tars_lens.model.loading import load
        from tars_lens.text.corpus import load_corpus

        lens = load(model, **placed, advance=advance)
        text = load_corpus(corpus, advance=advance)
        advance(f"loading {model}", 1, 1)
        return lens, text, with_cards(lens, asked, text, out, advance=advance)


def _removed(
    lens: Any,
    cards: Any,
    settings: Any,
    text: Any,
    kl_tokens: int,
    out: Path,
    kept: dict[str, Path],
    quiet: bool,
) -> Any:
    """The erasure, each patch of it kept as soon as it is made."""
    from tars_lens.evaluation.erasure import erase as run

    def keep(patch: Any) -> None:
        file = out / f"{patch.label}.safetensors"
        patch.save(file)
        kept[patch.label] = file

    with progress(quiet) as advance:
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
    return erasure


def _explained(lens: Any, cards: Any, erasure: Any, seed: int, quiet: bool) -> Any:
    """The erasure with the tables that the page's figures are drawn from."""
    from tars_lens.attribution.explaining import explain as explained

    with progress(quiet) as advance:
        more = explained(
            lens,
            cards,
            erasure.patches,
            probes=erasure.tables["probes"],
            divergence=erasure.divergence,
            seed=seed,
            advance=advance,
        )
    return replace(erasure, tables={**erasure.tables, **more})
