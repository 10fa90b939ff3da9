"""`tars-lens concepts` and `tars-lens models`: what is built in."""

from typing import Any

from tars_lens.cli.options import console


def concepts() -> None:
    """List the built-in concept cards, with the probes that each reports on."""
    from rich.table import Table

    from tars_lens.concept.card import Concept, builtin_concepts

    table = Table(title="Built-in concepts, and the numbers of their probes")
    for title in ("name", "answer", "forward", "reverse", "neighbour", "languages"):
        table.add_column(title)
    for name in builtin_concepts():
        card = Concept.load(name)
        probes = card.probes
        counts = (str(len(k)) for k in (probes.forward, probes.reverse, probes.neighbour))
        languages = sorted({probe.language for probe in probes.multilingual})
        table.add_row(name, card.answer, *counts, " ".join(languages))
    console().print(table)


def models() -> None:
    """List the built-in models, with size, licence and whether they are cached."""
    from rich.table import Table

    from tars_lens.model.checkpoints import model_table

    frame = model_table()
    table = Table(title="Built-in models; a hub id, a folder or a .gguf file works too")
    for title in frame.columns:
        size = str(title).endswith("_bytes")
        table.add_column(str(title).removesuffix("_bytes"), justify="right" if size else "left")
    for row in frame.to_dict("records"):
        table.add_row(*[_cell(title, value) for title, value in row.items()])
    console().print(table)


def _cell(title: Any, value: Any) -> str:
    if str(title).endswith("_bytes") and value == value and value is not None:
        return f"{int(value) / 1e6:,.0f} MB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
