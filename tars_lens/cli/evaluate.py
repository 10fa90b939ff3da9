"""`tars-lens evaluate`: the whole battery on patches, or on any pair of checkpoints."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli.options import (
    DEFAULT_MODEL,
    PARTS,
    Corpus,
    Force,
    Model,
    Quiet,
    Resume,
    Seed,
    SuiteName,
    console,
    path_argument,
    path_option,
    progress,
    resumable,
    tell,
    tell_written,
)
from tars_lens.common.errors import TarsError
from tars_lens.concept.naming import RULE


def evaluate(
    patches: Annotated[
        list[Path] | None, path_argument("Patch files (.safetensors), in order.")
    ] = None,
    model: Model = DEFAULT_MODEL,
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
    questions: Annotated[
        list[Path] | None,
        path_option("An exam in place of the battery: a JSON file of questions; may be repeated."),
    ] = None,
    suite: SuiteName = "quick",
    out: Annotated[Path, path_option("Where figures and tables go.")] = Path("runs/evaluate"),
    seed: Seed = 0,
    corpus: Corpus = None,
    fail_under: Annotated[
        float | None, typer.Option(help="Exit 1 where the verdict is below this (0 to 1).")
    ] = None,
    resume: Resume = False,
    controls: Annotated[bool, typer.Option(help="Measure the controls as well.")] = True,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Examine an edited model: is the concept gone or hidden, what else went, what comes back."""
    _check(patches, edited, fail_under, questions)
    loaded = partial(_loaded, model, edited, patches or [], force)
    if questions:
        _examine(questions, loaded, out, resume=resume, quiet=quiet)
        return
    from tars_lens.common.files import results_folder
    from tars_lens.evaluation.suites import suite_called

    examined: dict[str, Any] = {
        **{"suite": suite_called(suite), "seed": seed, "with_controls": controls},
        **{"keep": out / PARTS, "resume": resume},
    }
    with resumable(out), results_folder(out):
        with progress(quiet) as advance:
            advance(f"loading {model}", 0, 1)
            from tars_lens.concept.naming import with_cards
            from tars_lens.evaluation.battery import evaluate as run
            from tars_lens.text.corpus import load_corpus

            asked = _asked(patches or [], concept)
            lens, subject = loaded(advance)
            text = load_corpus(corpus, advance=advance)
            named = with_cards(lens, asked, text, out, advance=advance)
            found = run(lens, subject, named.cards, corpus=text, advance=advance, **examined)
        written = found.save(out)
    if not quiet:
        from tars_lens.evaluation.summary import print_summary

        tell(named.said)
        print_summary(found.report, console())
        tell_written(out, written)
    _judge(found.score, fail_under)


def _examine(
    files: list[Path], loaded: Callable[..., Any], out: Path, *, resume: bool, quiet: bool
) -> None:
    """Puts the files' questions to both models."""
    from tars_lens.common.files import results_folder
    from tars_lens.evaluation.exam_file import load_exam

    asked = [question for file in files for question in load_exam(file)]
    with resumable(out), results_folder(out):
        with progress(quiet) as advance:
            from tars_lens.evaluation.exam import examine

            lens, subject = loaded(advance)
            found = examine(lens, subject, asked, keep=out / PARTS, resume=resume, advance=advance)
        written = found.save(out)
    if not quiet:
        from tars_lens.evaluation.summary import print_exam

        print_exam(found.report, console())
        tell_written(out, written)


def _check(
    patches: list[Path] | None,
    edited: str | None,
    fail_under: float | None,
    questions: list[Path] | None,
) -> None:
    if questions and fail_under is not None:
        raise TarsError("an exam has no verdict: leave --fail-under out.")
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


def _judge(score: float | None, fail_under: float | None) -> None:
    if fail_under is not None and (score is None or score < fail_under):
        said = "no score" if score is None else f"{score:.3f}"
        typer.echo(f"the verdict is {said}, below --fail-under {fail_under}", err=True)
        raise typer.Exit(1)
