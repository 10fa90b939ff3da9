"""`tars-lens inspect`: what can be seen of a concept in a model before anything is changed."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli.options import path_option
from tars_lens.concept.naming import RULE
from tars_lens.method.settings import LAST_SEED

Model = Annotated[
    str, typer.Option("--model", "-m", help="A built-in name, a hub id, a folder or a .gguf file.")
]


def inspect(
    concept: Annotated[
        str, typer.Argument(help=f"A built-in name, a path to a card, or a plain name: {RULE}.")
    ],
    model: Model = "smollm2-135m",
    variant: Annotated[
        str,
        typer.Option(
            help="The vector to rank against: raw, refined, centred, unembedding or whitened."
        ),
    ] = "refined",
    top: Annotated[int, typer.Option(help="Weight vectors to show.")] = 20,
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, help="Seed of the refinement and of the null.")
    ] = 0,
    out: Annotated[Path | None, path_option("Write the tables (CSV) and the vector here.")] = None,
    vector: Annotated[
        list[Path] | None,
        path_option(
            "Rank the checkpoint on disk against this saved vector (several may be given) "
            "instead: no model is loaded."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All tables as JSON.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no summary.")
    ] = False,
) -> None:
    """Show a concept's vector, the neurons nearest to it, and what chance gives; change nothing."""
    from tars_lens.common.files import results_folder
    from tars_lens.common.progress import progress
    from tars_lens.concept.naming import card_or_name, with_cards

    asked = card_or_name(concept)
    if vector:
        _on_disk(
            asked if isinstance(asked, str) else asked.name,
            model,
            vector,
            top,
            seed,
            out,
            as_json=as_json,
            quiet=quiet,
        )
        return
    with results_folder(out) if out is not None else nullcontext():
        with progress(quiet=quiet) as advance:
            advance(f"loading {model}", 0, 1)
            from tars_lens.method.inspection import check_choices
            from tars_lens.method.inspection import inspect as look
            from tars_lens.model.loading import load

            check_choices(variant, top)
            chosen: Any = variant  # one of the Literal's, as is known by now
            lens = load(model, advance=advance)
            named = with_cards(lens, [asked], folder=out, advance=advance)
            found = look(lens, named.cards[0], variant=chosen, top=top, seed=seed, advance=advance)
        written = found.save(out) if out is not None else ()
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    elif not quiet:
        from rich.console import Console

        from tars_lens.report.inspection import print_inspection

        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=130)  # a pipe has no width of its own
        for line in named.said:
            console.print(line, markup=False, soft_wrap=True)
        print_inspection(found, console)
        if written:
            console.print(f"Written to {out}: {', '.join(written)}.", markup=False)


def _on_disk(
    concept: str,
    model: str,
    files: list[Path],
    top: int,
    seed: int,
    out: Path | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Ranks a checkpoint on disk against saved vectors and prints the table."""
    from tars_lens.common.files import results_folder
    from tars_lens.common.progress import progress

    with results_folder(out) if out is not None else nullcontext():
        with progress(quiet=quiet) as advance:
            from tars_lens.method.disk_ranking import inspect_on_disk
            from tars_lens.model.checkpoints import locate

            folder = locate(model, advance=advance)
            found = inspect_on_disk(folder, files, top=top, seed=seed, advance=advance)
        written = found.save(out) if out is not None else ()
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    elif not quiet:
        typer.echo(
            f"{concept} in {folder}: {found.null.vectors:,} MLP weight vectors read from disk. A "
            f"cosine below {found.null.threshold:.3f} may be chance."
        )
        typer.echo(found.ranking.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
        if written:
            typer.echo(f"Written to {out}: {', '.join(written)}.")
