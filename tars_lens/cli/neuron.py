"""`tars-lens neuron`: one neuron's card."""

from pathlib import Path
from typing import Annotated

import typer

from tars_lens.cli.options import (
    DEFAULT_MODEL,
    AsJson,
    Corpus,
    Model,
    Quiet,
    console,
    path_option,
    progress,
    tell_json,
)


def neuron(
    name: Annotated[str, typer.Argument(help="Layer and neuron, as in L23N1038.")],
    model: Model = DEFAULT_MODEL,
    patch: Annotated[
        list[Path] | None,
        path_option("A patch file, to show what it makes of the neuron; may be repeated."),
    ] = None,
    corpus: Corpus = None,
    windows: Annotated[
        int, typer.Option(help="Documents to scan, the first 256 tokens of each.")
    ] = 48,
    top: Annotated[int, typer.Option(help="Tokens at each end, and concepts.")] = 10,
    examples: Annotated[int, typer.Option(help="Texts at each end, up to 8.")] = 5,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show one neuron: what it writes and reads, where in real text it fires, which concepts."""
    from tars_lens.patch.patch import Patch

    patches = [Patch.load(file) for file in patch or ()]
    with progress(quiet) as advance:
        advance(f"loading {model}", 0, 1)
        from tars_lens.attribution.neuron_card import neuron_card, parse_label
        from tars_lens.attribution.neuron_index import NeuronIndex
        from tars_lens.model.loading import load
        from tars_lens.text.corpus import load_corpus

        lens = load(model, advance=advance)
        layer, number = parse_label(lens, name)
        text = load_corpus(corpus, advance=advance)
        index = NeuronIndex.of_corpus(lens, text, windows=windows, advance=advance)
        advance(f"reading {name}", 0, 1)
        card = neuron_card(
            lens, layer, number, index=index, patches=patches, top=top, examples=examples
        )
        advance(f"reading {name}", 1, 1)
    if as_json:
        tell_json(card)
        return
    from tars_lens.cli.neuron_view import print_card

    print_card(card, console(), concepts=top)
