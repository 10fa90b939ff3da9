"""`tars-lens neuron`: one neuron's card."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tars_lens.cli.options import path_option

Model = Annotated[
    str, typer.Option("--model", "-m", help="A built-in name, a hub id, a folder or a .gguf file.")
]


def neuron(
    name: Annotated[str, typer.Argument(help="Layer and neuron, as in L23N1038.")],
    model: Model = "smollm2-135m",
    patch: Annotated[
        list[Path] | None,
        path_option("A patch file, to show what it makes of the neuron; may be repeated."),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Text to look for activations in, scanned once for all neurons; as for erase."
        ),
    ] = None,
    windows: Annotated[
        int, typer.Option(help="Documents to scan, the first 256 tokens of each.")
    ] = 48,
    top: Annotated[int, typer.Option(help="Tokens at each end, and concepts.")] = 10,
    examples: Annotated[int, typer.Option(help="Texts at each end, up to 8.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="All tables as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Show one neuron: what it writes and reads, where in real text it fires, which concepts."""
    from tars_lens.common.progress import progress
    from tars_lens.patch.patch import Patch

    patches = [Patch.load(file) for file in patch or ()]
    with progress(quiet=quiet) as advance:
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
        typer.echo(json.dumps(card.to_dict(), indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    from tars_lens.cli.neuron_view import print_card

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=130)  # a pipe has no width of its own
    print_card(card, console, concepts=top)
