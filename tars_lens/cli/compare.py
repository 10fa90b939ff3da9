"""`tars-lens compare`: the method beside baselines, by the same probes and the same damage."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli.options import (
    DEFAULT_MODEL,
    PARTS,
    Corpus,
    Dtype,
    Model,
    Quiet,
    Resume,
    Seed,
    SuiteName,
    console,
    path_option,
    progress,
    resumable,
    tell,
    tell_written,
)
from tars_lens.concept.naming import HELP as CONCEPTS

BASELINES = "ablation, leace, rank_one, engram, gradient_ascent, npo, rmu"
"""The registered names, written out as the registry imports torch."""


def compare(
    concepts: Annotated[list[str], typer.Argument(help=CONCEPTS)],
    model: Model = DEFAULT_MODEL,
    baselines: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated: {BASELINES}; default: all that can run here."),
    ] = None,
    out: Annotated[Path, path_option("Where tables and figure go.")] = Path("runs/compare"),
    suite: SuiteName = "quick",
    seed: Seed = 0,
    corpus: Corpus = None,
    dtype: Dtype = "auto",
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Remove concepts by every method in turn, and hold all to the same evaluation."""
    from tars_lens.common.files import results_folder
    from tars_lens.concept.naming import card_or_name, with_cards
    from tars_lens.evaluation.suites import suite_called
    from tars_lens.experiments.baselines.comparing import compare as run
    from tars_lens.experiments.baselines.comparing import print_summary
    from tars_lens.experiments.baselines.registry import baselines_called

    sizes = suite_called(suite)
    names = [name.strip() for name in (baselines or "").split(",") if name.strip()]
    chosen = baselines_called(None if baselines is None else names)
    asked = [card_or_name(concept) for concept in concepts]
    with resumable(out), results_folder(out):
        with progress(quiet) as advance:
            advance(f"loading {model}", 0, 1)
            from tars_lens.model.loading import load
            from tars_lens.text.corpus import load_corpus

            lens = load(model, dtype=dtype, advance=advance)
            text = load_corpus(corpus, advance=advance)
            named = with_cards(lens, asked, text, out, advance=advance)
            kept = {"keep": out / PARTS, "resume": resume, "advance": advance}
            found = run(lens, named.cards, chosen, suite=sizes, seed=seed, corpus=text, **kept)
        written = [*found.save(out), *_drawn(found, out)]
    if not quiet:
        tell(named.said)
        print_summary(found, console())
        tell_written(out, written)


def _drawn(found: Any, out: Path) -> list[str]:
    """Draws the Pareto figure; the names of its files."""
    from tars_lens.report.figures import pareto
    from tars_lens.report.style import figure, save

    made, (above, below) = figure(2, height=5.6, rows=2)
    pareto(found.to_frame(), above)
    pareto(found.to_frame(), below, damage="neighbour")
    return [path.name for path in save(made, out / "pareto")]
