"""`tars-lens evaluate`: the whole battery on patches, or on any pair of checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli.options import console, path_argument, path_option
from tars_lens.common.errors import TarsError
from tars_lens.concept.naming import RULE
from tars_lens.method.settings import LAST_SEED

PARTS = "parts"
"""Where in the folder of results finished measures are kept, for `--resume`."""

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]


def evaluate(
    patches: Annotated[
        list[Path] | None, path_argument("Patch files (.safetensors), in order.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="The base: a built-in name, a hub id or a folder.")
    ] = "smollm2-135m",
    edited: Annotated[
        str | None, typer.Option(help="An edited checkpoint instead of patches, however made.")
    ] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A built-in card, a path or a plain name ({RULE}). Default: the cards in the "
            "patches."
        ),
    ] = None,
    suite: Annotated[str, typer.Option(help="quick (minutes) or full.")] = "quick",
    out: Annotated[Path, path_option("Where figures and tables go.")] = Path("runs/evaluate"),
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=LAST_SEED, help="Seed of controls, of fine-tuning and of intervals."
        ),
    ] = 0,
    corpus: Annotated[
        str | None, typer.Option(help="Plain text; see erase. Default: a sample of Wikipedia.")
    ] = None,
    fail_under: Annotated[
        float | None, typer.Option(help="Exit 1 where the verdict is below this (0 to 1).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    controls: Annotated[bool, typer.Option(help="Measure the controls as well.")] = True,
    lm_eval: Annotated[
        str | None, typer.Option(help="Comma-separated tasks of lm-eval-harness (an extra).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Take patches of another base.")] = False,
    quiet: Quiet = False,
) -> None:
    """Examine an edited model: is the concept gone or hidden, what else went, what comes back."""
    _check(patches, edited, fail_under)
    from tars_lens.common.files import results_folder
    from tars_lens.common.progress import progress
    from tars_lens.concept.naming import with_cards
    from tars_lens.evaluation.suites import suite_called

    sizes = suite_called(suite)
    with resumable(out), results_folder(out):
        with progress(quiet=quiet) as advance:
            advance(f"loading {model}", 0, 1)
            from tars_lens.evaluation.battery import evaluate as run
            from tars_lens.evaluation.lm_harness import harness, harness_tasks
            from tars_lens.text.corpus import load_corpus

            tasks = [task.strip() for task in lm_eval.split(",")] if lm_eval else []
            if tasks:
                harness()
            asked = _asked(patches or [], concept)
            lens, subject = _loaded(model, edited, patches or [], force, advance)
            text = load_corpus(corpus, advance=advance)
            named = with_cards(lens, asked, text, out, advance=advance)
            found = run(
                lens,
                subject,
                named.cards,
                suite=sizes,
                seed=seed,
                corpus=text,
                with_controls=controls,
                keep=out / PARTS,
                resume=resume,
                advance=advance,
            )
        written = list(found.save(out))
        if tasks:
            from tars_lens.evaluation.storing import write_table

            write_table(out / "lm_eval.csv", harness_tasks(lens, subject, tasks, seed=seed))
            written.append("lm_eval.csv")
    if not quiet:
        from tars_lens.evaluation.summary import print_summary

        for line in named.said:
            typer.echo(line)
        print_summary(found.report, console())
        console().print(f"Written to {out}: {', '.join(written)}.", markup=False, soft_wrap=True)
    if fail_under is not None and (found.score is None or found.score < fail_under):
        said = "no score" if found.score is None else f"{found.score:.3f}"
        typer.echo(f"the verdict is {said}, below --fail-under {fail_under}", err=True)
        raise typer.Exit(1)


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Turns Ctrl-C into a message that says what is kept in a folder of results; exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        said = "nothing was measured yet"
        if any((out / PARTS).glob("*.json")):
            said = f"finished measures are kept in {out / PARTS}: run it again with --resume"
        typer.echo(f"stopped; {said}.", err=True)
        raise typer.Exit(130) from None


def _check(patches: list[Path] | None, edited: str | None, fail_under: float | None) -> None:
    if bool(patches) == (edited is not None):
        raise TarsError(
            "give patch files, or a checkpoint to compare with its base (--edited FOLDER): one of "
            "the two."
        )
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise TarsError(f"--fail-under must be from 0 to 1, got {fail_under}.")


def _asked(files: list[Path], names: list[str] | None) -> list[Any]:
    """The cards, and the names that one is to be made for."""
    from tars_lens.concept.card import Concept
    from tars_lens.concept.naming import card_or_name
    from tars_lens.patch.patch import Patch

    asked: list[Any] = [card_or_name(name) for name in names or []]
    if not asked:
        patches = [Patch.load(file) for file in files]
        asked = [Concept.from_dict(c, where=p.label) for p in patches for c in p.concepts]
    if not asked:
        raise TarsError("which concept was removed? Name its card: --concept saturn.")
    return asked


def _loaded(
    model: str, edited: str | None, files: list[Path], force: bool, advance: Any
) -> tuple[Any, Any]:
    """The base and the subject."""
    from tars_lens.evaluation.subject import checkpoint, patched
    from tars_lens.model.loading import load
    from tars_lens.patch.patch import Patch

    patches = [Patch.load(file) for file in files]
    lens = load(model, advance=advance)
    if edited is None:
        return lens, patched(lens, patches, force=force)
    return lens, checkpoint(lens, load(edited, advance=advance))
