"""`tars-lens inspect`: what can be seen of a concept in a model before anything is changed."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli.options import (
    DEFAULT_MODEL,
    AsJson,
    Model,
    Quiet,
    Seed,
    console,
    path_option,
    progress,
    tell,
    tell_json,
    tell_written,
)
from tars_lens.concept.naming import RULE


def inspect(
    concept: Annotated[
        str, typer.Argument(help=f"A built-in name, a path to a card, or a plain name: {RULE}.")
    ],
    model: Model = DEFAULT_MODEL,
    variant: Annotated[
        str,
        typer.Option(
            help="The vector to rank against: raw, refined, centred, unembedding or whitened."
        ),
    ] = "refined",
    top: Annotated[int, typer.Option(help="Weight vectors to show.")] = 20,
    seed: Seed = 0,
    out: Annotated[Path | None, path_option("Write the tables (CSV) and the vector here.")] = None,
    vector: Annotated[
        list[Path] | None,
        path_option(
            "Rank the checkpoint on disk against this saved vector (several may be given) "
            "instead: no model is loaded."
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show a concept's vector, the neurons nearest to it, and what chance gives; change nothing."""
    from tars_lens.common.files import results_folder
    from tars_lens.concept.naming import card_or_name

    asked = card_or_name(concept)
    with results_folder(out) if out is not None else nullcontext():
        if vector:
            found, said = _on_disk(asked, model, vector, top, seed, quiet)
        else:
            found, said = _in_model(asked, model, variant, top, seed, out, quiet)
        written = found.save(out) if out is not None else ()
    if as_json:
        tell_json(found)
    elif not quiet:
        tell(said)
        if vector:
            typer.echo(found.ranking.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
        else:
            from tars_lens.report.inspection import print_inspection

            print_inspection(found, console())
        tell_written(out, written)


def _in_model(
    asked: Any, model: str, variant: str, top: int, seed: int, out: Path | None, quiet: bool
) -> tuple[Any, list[str]]:
    """What a loaded model shows, and what is said first."""
    with progress(quiet) as advance:
        advance(f"loading {model}", 0, 1)
        from tars_lens.concept.naming import with_cards
        from tars_lens.method.inspection import check_choices
        from tars_lens.method.inspection import inspect as look
        from tars_lens.model.loading import load

        check_choices(variant, top)
        chosen: Any = variant  # one of the Literal's, as is known by now
        lens = load(model, advance=advance)
        named = with_cards(lens, [asked], folder=out, advance=advance)
        found = look(lens, named.cards[0], variant=chosen, top=top, seed=seed, advance=advance)
    return found, named.said


def _on_disk(
    asked: Any, model: str, files: list[Path], top: int, seed: int, quiet: bool
) -> tuple[Any, list[str]]:
    """A checkpoint on disk against saved vectors, and what is said first."""
    with progress(quiet) as advance:
        from tars_lens.method.disk_ranking import inspect_on_disk
        from tars_lens.model.checkpoints import locate

        folder = locate(model, advance=advance)
        found = inspect_on_disk(folder, files, top=top, seed=seed, advance=advance)
    name = asked if isinstance(asked, str) else asked.name
    said = (
        f"{name} in {folder}: {found.null.vectors:,} MLP weight vectors read from disk. A cosine "
        f"below {found.null.threshold:.3f} may be chance."
    )
    return found, [said]
