"""`tars-lens compare`: the method beside baselines, by the same probes and the same damage."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli.evaluate import PARTS, resumable
from tars_lens.cli.options import console, path_option
from tars_lens.concept.naming import HELP as CONCEPTS
from tars_lens.method.settings import LAST_SEED

BASELINES = "ablation, leace, rank_one, engram, gradient_ascent, npo, rmu"
"""The registered names, written out as the registry imports torch."""


def compare(
    concepts: Annotated[list[str], typer.Argument(help=CONCEPTS)],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A built-in name, a hub id or a folder.")
    ] = "smollm2-135m",
    baselines: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated: {BASELINES}; default: all that can run here."),
    ] = None,
    out: Annotated[Path, path_option("Where tables and figure go.")] = Path("runs/compare"),
    suite: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=LAST_SEED, help="Seed of the methods, of fine-tuning and of intervals."
        ),
    ] = 0,
    corpus: Annotated[
        str | None, typer.Option(help="Plain text; see erase. Default: a sample of Wikipedia.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto, float32, bfloat16 or float16.")
    ] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
) -> None:
    """Remove concepts by every method in turn, and hold all to the same evaluation."""
    from tars_lens.common.files import results_folder
    from tars_lens.common.progress import progress
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
        with progress(quiet=quiet) as advance:
            advance(f"loading {model}", 0, 1)
            from tars_lens.model.loading import load
            from tars_lens.text.corpus import load_corpus

            lens = load(model, dtype=dtype, advance=advance)
            text = load_corpus(corpus, advance=advance)
            named = with_cards(lens, asked, text, out, advance=advance)
            found = run(
                lens,
                named.cards,
                chosen,
                suite=sizes,
                seed=seed,
                corpus=text,
                keep=out / PARTS,
                resume=resume,
                advance=advance,
            )
        written = [*found.save(out), *_drawn(found, out)]
    if not quiet:
        for line in named.said:
            typer.echo(line)
        print_summary(found, console())
        console().print(f"Written to {out}: {', '.join(written)}.", markup=False, soft_wrap=True)


def _drawn(found: Any, out: Path) -> list[str]:
    """Draws the Pareto figure; the names of its files."""
    from tars_lens.report.figures import pareto
    from tars_lens.report.style import figure, save

    made, (above, below) = figure(2, height=5.6, rows=2)
    pareto(found.to_frame(), above)
    pareto(found.to_frame(), below, damage="neighbour")
    return [path.name for path in save(made, out / "pareto")]
