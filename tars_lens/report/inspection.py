"""An inspection as a person reads it in a terminal; plain text in a pipe."""

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tars_lens.method.inspection import NULL, PLAIN_TEXT, Inspection

_STEPS = 6


def print_inspection(found: Inspection, console: Console) -> None:
    """Prints `inspection_view`, with a blank line before."""
    console.print()
    console.print(inspection_view(found))


def inspection_view(found: Inspection) -> RenderableType:
    """Prompts, vectors, refinement, ranking and null, each with a line on how to read it."""
    parts = (
        _heading(found),
        _prompts(found),
        _vectors(found),
        _angles(found),
        _trajectory(found),
        _ranking(found),
        _null(found),
    )
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def _heading(found: Inspection) -> Text:
    model = found.model
    roles = ", ".join(model["roles"])
    return Text.assemble(
        (found.concept, "bold"),
        f" in {model['name']} (layers 0 to {model['layers'] - 1}, d_model {model['d_model']}, "
        f"{found.null.vectors:,} MLP weight vectors: {roles}), seed {found.seed}. "
        "Nothing was changed.",
    )


def _prompts(found: Inspection) -> RenderableType:
    table = Table()
    for title in ("", "prompt"):
        table.add_column(title)
    for title in ("p", "rank"):
        table.add_column(title, justify="right")
    table.add_column("the model says")
    for row in found.prompts.itertuples(index=False):
        table.add_row(
            "*" if row.used else "",
            escape(str(row.text)),
            f"{row.probability:z.3f}",
            str(row.rank),
            escape(f"{row.says!r} {row.says_p:z.2f}"),
        )
    return _titled(
        f"1. Which prompts lead to {found.answer!r}",
        table,
        "p is the probability of its tokens as the next text, rank that of the likeliest of them. "
        "The vectors are made from the prompt marked *.",
    )


def _vectors(found: Inspection) -> RenderableType:
    table = Table()
    table.add_column("vector")
    titles = ("p", "cosine with\nplain text", "above\nchance", "largest\ncosine", "shared")
    for title in titles:
        table.add_column(title, justify="right")
    table.add_column("it says", no_wrap=True)
    for row in found.vectors.itertuples(index=False):
        plain = row.vector == PLAIN_TEXT
        table.add_row(
            f"{row.vector}{' *' if row.vector == found.variant else ''}",
            f"{row.probability:z.3f}",
            "" if plain else f"{row.cosine_plain:z.2f}",
            f"{row.above_null:,}",
            f"{row.largest_cosine:z.2f}",
            "" if plain else str(row.shared_with_plain),
            escape(row.says),
        )
    count = len(found.ranking)
    return _titled(
        "2. The vectors that can be made from it",
        table,
        "raw: the last residual stream at the prompt's end. refined: raw after noise (3). "
        "centred: raw less plain text, which is the mean of unrelated prompts. unembedding: the "
        "answer's own vector in the unembedding. whitened: that one, turned so that it moves other "
        "tokens least.\n"
        "p and tokens: by the model's final norm and unembedding. above chance: weight vectors "
        f"with a cosine over {found.null.threshold:.3f} (5). shared: how many of the {count} "
        f"nearest weight vectors are among the {count} nearest to plain text, too. *: ranked in 4.",
    )


def _angles(found: Inspection) -> RenderableType:
    pairs = {(row.a, row.b): row.angle_degrees for row in found.angles.itertuples(index=False)}
    names = list(dict.fromkeys([*found.angles["a"], *found.angles["b"]]))
    table = Table()
    table.add_column("")
    for name in names[1:]:
        table.add_column(name, justify="right")
    for a in names[:-1]:
        cells = (f"{pairs[a, b]:.0f}" if (a, b) in pairs else "" for b in names[1:])
        table.add_row(a, *cells)
    return _titled("Angles between them, in degrees (unrelated directions: about 90)", table)


def _trajectory(found: Inspection) -> RenderableType:
    frame = found.trajectory
    table = Table()
    for title in ("step", "p", "degrees from raw"):
        table.add_column(title, justify="right")
    for row in _few(frame).itertuples(index=False):
        table.add_row(str(int(row.step)), f"{row.probability:.4f}", f"{row.angle_degrees:.1f}")
    return _titled(
        f"3. The refinement of raw: {len(frame) - 1} steps of noise",
        table,
        "Each step tries many small random changes, and keeps the one that says the answer most.",
    )


def _ranking(found: Inspection) -> RenderableType:
    table = Table()
    for title in ("neuron", "role"):
        table.add_column(title)
    for title in ("cosine", "norm", "activation\non concept", "on plain\ntext"):
        table.add_column(title, justify="right")
    table.add_column("its vector says", no_wrap=True)
    above = int(found.ranking["above_null"].sum())
    for index, row in enumerate(found.ranking.itertuples(index=False), 1):
        table.add_row(
            row.label,
            row.role,
            f"{row.cosine:z.3f}",
            f"{row.norm:z.2f}",
            f"{row.activation_concept:z.2f}",
            f"{row.activation_plain:z.2f}",
            escape(row.top_tokens),
            end_section=index == above,
        )
    return _titled(
        f"4. The weight vectors nearest to the {found.variant} vector",
        table,
        _reading(found),
        _shared(found),
    )


def _reading(found: Inspection) -> str:
    every = int(found.vectors.set_index("vector").loc[found.variant, "above_null"])
    return (
        f"{every:,} of {found.null.vectors:,} weight vectors are above chance "
        f"({found.null.threshold:.3f}; below it a line is drawn). An activation is the neuron's: "
        "the mean at the ends of the concept's prompts, and the root mean square on unrelated "
        "ones. A neuron as loud there is not the concept's own."
    )


def _shared(found: Inspection) -> str:
    shared = int(found.vectors.set_index("vector").loc[found.variant, "shared_with_plain"])
    if shared < len(found.ranking) / 4:
        return ""
    return (
        f"{shared} of these {len(found.ranking)} are near to any text, not to the concept alone: "
        "the streams of all prompts share a direction. --variant whitened leaves it out."
    )


def _null(found: Inspection) -> RenderableType:
    null = found.null
    wide = found.spread.pivot(index="vector", columns="quantile", values="cosine")
    table = Table()
    table.add_column("vector")
    for level in wide.columns:
        title = "largest" if level == 1 else "median" if level == 0.5 else f"{100 * level:g} %"
        table.add_column(title, justify="right")
    for name in (NULL, *found.vectors["vector"]):
        table.add_row(str(name), *(f"{value:z.3f}" for value in wide.loc[name]))
    return _titled(
        "5. Cosines with all weight vectors, and what chance gives",
        table,
        f"null: {null.directions} random directions, on average. The largest cosine that one of "
        f"them has with any of the {null.vectors:,} weight vectors, {null.threshold:.3f}, is the "
        "threshold: a cosine below it may be chance.",
    )


def _titled(title: str, table: Table, *lines: str) -> RenderableType:
    """A table between its title and what is to be known, which are wider than the table."""
    return Group(Text(title, "bold"), table, *(Text(line, "dim") for line in lines if line))


def _few(frame: pd.DataFrame) -> pd.DataFrame:
    """The first and the last step, and some between them at even distances."""
    last = len(frame) - 1
    count = min(last, _STEPS - 1)
    return frame.iloc[[round(k * last / count) for k in range(count + 1)] if count else [0]]
