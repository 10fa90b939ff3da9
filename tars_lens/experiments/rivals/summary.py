"""A comparison as a person reads it in a terminal."""

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tars_lens.evaluation.verdict import PARTS
from tars_lens.experiments.rivals.comparing import OURS, Comparison

_HEADLINES = ("forward", "reverse", "alias", "neighbour", "wikipedia", "logit_lens", "relearning")
_NONE = "-"


def print_summary(found: Comparison, console: Console) -> None:
    """Prints `summary`, with a blank line before."""
    console.print()
    console.print(summary(found), soft_wrap=not console.is_terminal)


def summary(found: Comparison) -> RenderableType:
    """The verdict on each method with its headlines, and where `tars` wins and loses."""
    report = found.report
    heading = Text.assemble(
        (", ".join(report["concepts"]), "bold"),
        f" in {report['model']['name']}: suite {report['suite']['name']}, seed {report['seed']}",
    )
    return Group(heading, Text(), _table(found), *(Text(line) for line in duel_lines(found)))


def duel_lines(found: Comparison) -> list[str]:
    """A line for each other method: the measures on which `tars` is better, and worse."""
    duels, lines = found.duels(), []
    for other, rows in duels.groupby("other", sort=False):
        if other != "untouched":
            won, lost = (_named(rows, outcome) for outcome in ("won", "lost"))
            lines.append(f"{OURS[0]} against {other}: better on {won}; worse on {lost}.")
    return lines


def _table(found: Comparison) -> Table:
    report, frame = found.report, found.to_frame()
    measures = [name for name in _HEADLINES if name in report["measures"]]
    table = Table(title="Every method by the same measures; + and - say which way is good")
    table.add_column("method")
    for title in ("score", *PARTS):
        table.add_column(f"{title} (+)", justify="right")
    for name in measures:
        sign = "+" if report["measures"][name]["better"] == "high" else "-"
        table.add_column(f"{name} ({sign})", justify="right")
    for row in frame.to_dict("records"):
        cells = (_number(row[name]) for name in ("score", *PARTS, *measures))
        table.add_row(escape(str(row["method"])), *cells)
    return table


def _named(rows: pd.DataFrame, outcome: str) -> str:
    return ", ".join(rows.loc[rows["outcome"] == outcome, "measure"]) or "none"


def _number(value: float | None) -> str:
    if value is None or value != value:
        return _NONE
    return f"{value:.2g}" if 0 < abs(value) < 0.001 else f"{value:.3f}"
