"""A neuron's card as a person reads it in a terminal; plain text in a pipe."""

from collections.abc import Iterator

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tars_lens.attribution.neuron_card import NeuronCard
from tars_lens.common.printable import printable, visible

_WEAK = 0.1
"""An end of the activation below this share of the other one isn't worth its examples."""

_BEFORE_SHARE = 0.7
_SHADES = {
    "highest": ("#f9e4c8", "#f2b866", "#e07b00"),  # orange and blue are told apart by all
    "lowest": ("#d6e6f4", "#85b8e0", "#1f78c1"),
}
_LEVELS = (0.2, 0.5, 0.8)


def print_card(card: NeuronCard, console: Console, *, concepts: int = 10) -> None:
    """Prints a card; in a pipe, the strongest token of an example stands in double brackets.

    Args:
        card: The card.
        console: Where to.
        concepts: How many of the concepts are shown, those that the neuron writes most first.
    """
    parts: list[RenderableType] = [
        Text.assemble((card.label, "bold"), f" of {card.model}\n"),
        _tokens(card),
        Text(f"\n{_firing(card)}"),
        *_examples(card, console),
        Text(""),
        _concepts(card, concepts, console),
        *_edits(card),
    ]
    console.print(Group(*parts))


def _tokens(card: NeuronCard) -> Table:
    table = _table("", "norm", "layer's median", "says most", "says least")
    for row in card.norms.itertuples():
        own = card.tokens[card.tokens["role"] == row.role]
        says = [
            " ".join(visible(token) for token in own[own["end"] == end]["token"])
            for end in ("top", "bottom")
        ]
        _add(table, row.role, f"{row.norm:.2f}", f"{row.layer_median:.2f}", *says)
    return table


def _firing(card: NeuronCard) -> str:
    found = card.firing.iloc[0]
    return (
        f"On {int(found['positions']):,} tokens of {card.corpus}: rms {found['rms']:.3g}, mean "
        f"{found['mean']:.3g}, from {found['smallest']:.3g} to {found['largest']:.3g}; over half "
        f"of its maximum at {found['loud']:.2%} of positions; {found['positive']:.0%} of its "
        "squared activation is positive."
    )


def _examples(card: NeuronCard, console: Console) -> Iterator[Text]:
    frame = card.examples
    if frame.empty:
        return
    loudest = frame[frame["peak"]]["activation"].abs().max()
    for end, rows in frame.groupby("end", sort=False):
        peaks = rows[rows["peak"]]
        signed = peaks["activation"] if end == "highest" else -peaks["activation"]
        if signed.max() < _WEAK * loudest:
            continue
        yield Text(f"\n{'Highest' if end == 'highest' else 'Lowest'} activations:", style="bold")
        for _, tokens in rows.groupby("example"):
            yield _example(tokens, str(end), console)


def _example(tokens: pd.DataFrame, end: str, console: Console) -> Text:
    strongest = float(tokens[tokens["peak"]]["activation"].iloc[0])
    line = Text(f"{strongest:>8.3g}  ", no_wrap=True, overflow="crop", end="")
    shown = _around(tokens, console.width - 16)
    for row in shown.itertuples():
        text = printable(str(row.token))
        if not console.is_terminal:
            line.append(f"[[{text}]]" if row.peak else text)
            continue
        shade = _shade(float(row.activation), strongest, end)
        line.append(text, style=f"bold underline {shade}" if row.peak else shade)
    line.append("\n")
    return line


def _around(tokens: pd.DataFrame, width: int) -> pd.DataFrame:
    """The tokens about the peak that a line has room for, more of them before it than after."""
    lengths = [len(printable(str(token))) for token in tokens["token"]]
    at = int(tokens["peak"].to_numpy().argmax())
    room = max(0, width - lengths[at])
    first, last = at, at
    left = int(room * _BEFORE_SHARE)
    while first > 0 and lengths[first - 1] <= left:
        first -= 1
        left -= lengths[first]
    right = room - int(room * _BEFORE_SHARE) + left
    while last + 1 < len(lengths) and lengths[last + 1] <= right:
        last += 1
        right -= lengths[last]
    return tokens.iloc[first : last + 1]


def _shade(activation: float, strongest: float, end: str) -> str:
    share = activation / strongest if strongest else 0.0
    level = sum(share >= limit for limit in _LEVELS)
    return f"black on {_SHADES[end][level - 1]}" if level else ""


def _concepts(card: NeuronCard, count: int, console: Console) -> RenderableType:
    """One row a concept, those that the `out` vector is nearest to first."""
    if card.concepts.empty:
        return Text(f"{card.model} knows none of the concepts.")
    roles = list(dict.fromkeys(card.concepts["role"]))
    wide = card.concepts.pivot(index="concept", columns=["role", "vector"], values="cosine")
    order = wide[("out", "centred")].abs().sort_values(ascending=False).index[:count]
    columns = [("out", kind) for kind in ("raw", "centred", "write_target")]
    columns += [(role, "centred") for role in roles if role != "out"]
    table = _table("cosine with", *(f"{role}, {kind.replace('_', ' ')}" for role, kind in columns))
    for concept in order:
        cells = [_cosine(float(wide.loc[concept, c]), card.threshold, console) for c in columns]
        _add(table, concept, *cells)
    mark = "bold" if console.is_terminal else "with a star"
    note = f"Beyond chance ({card.threshold:.2f}, the largest of random directions): {mark}."
    if card.unknown:
        note += f" Not known by {card.model}: {', '.join(card.unknown)}."
    return Group(table, Text(note, style="dim"))


def _cosine(value: float, threshold: float, console: Console) -> Text:
    beyond = abs(value) > threshold
    star = "*" if beyond and not console.is_terminal else ""
    return Text(f"{value:+.2f}{star}", style="bold" if beyond else "")


def _edits(card: NeuronCard) -> Iterator[RenderableType]:
    if card.edits.empty:
        if card.patches:
            yield Text(f"\nNo edit of {', '.join(card.patches)} touches it.")
        return
    yield Text("\nEdits:", style="bold")
    table = _table("patch", "vector", "cosine", "norm", "said", "says")
    for row in card.edits.itertuples():
        norms = f"{row.old_norm:.2f} to {row.new_norm:.2f}"
        said = [" ".join(map(visible, tokens)) for tokens in (row.old_tokens, row.new_tokens)]
        _add(table, row.patch, row.role, f"{row.cosine:+.2f}", norms, *said)
    yield table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _add(table: Table, *cells: object) -> None:
    """A row as it is: tokens and names may look like rich's markup."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))
