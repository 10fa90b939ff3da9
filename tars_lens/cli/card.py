"""`tars-lens card`: a concept card from a name."""

from pathlib import Path
from typing import Annotated

import typer

from tars_lens.cli.options import path_option


def card(
    name: Annotated[str, typer.Argument(help="The concept's name, as a text would spell it.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A built-in name, a hub id or a folder.")
    ] = "smollm2-135m",
    corpus: Annotated[
        str | None,
        typer.Option(help="Where it is mentioned; see erase. Default: a sample of Wikipedia."),
    ] = None,
    out: Annotated[Path | None, path_option("The card's file (.toml). Default: print it.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
) -> None:
    """Make a concept card from nothing but a name, to be read and mended before it is used."""
    from tars_lens.common.progress import progress

    with progress(quiet=quiet) as advance:
        advance(f"loading {model}", 0, 1)
        from tars_lens.common.files import write_text
        from tars_lens.concept.card_making import make_card
        from tars_lens.model.loading import load
        from tars_lens.text.corpus import load_corpus

        lens = load(model, advance=advance)
        draft = make_card(lens, name, load_corpus(corpus, advance=advance), advance=advance)
    text = draft.to_toml()
    if out is None:
        typer.echo(text, nl=False)
        return
    write_text(out, text)
    if not quiet:
        for note in draft.notes:
            typer.echo(note)
        typer.echo(f"Written: {out}")
