"""`tars-lens card`: a concept card from a name."""

from pathlib import Path
from typing import Annotated

import typer

from tars_lens.cli.options import (
    DEFAULT_MODEL,
    Corpus,
    Model,
    Quiet,
    path_option,
    progress,
    tell,
)


def card(
    name: Annotated[str, typer.Argument(help="The concept's name, as a text would spell it.")],
    model: Model = DEFAULT_MODEL,
    corpus: Corpus = None,
    out: Annotated[Path | None, path_option("The card's file (.toml). Default: print it.")] = None,
    quiet: Quiet = False,
) -> None:
    """Make a concept card from nothing but a name, to be read and mended before it is used."""
    with progress(quiet) as advance:
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
    tell([*draft.notes, f"Written: {out}"], quiet=quiet)
