"""What several figures are drawn with: checks of their tables, dumbbells, matrices."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tars_lens.common.errors import TarsError
from tars_lens.report.style import AFTER, BEFORE, GREY, INK, PAPER, safe_text

_ROW = 0.145
_WIDE_COLUMNS = 10  # with more, a cell has no room for four characters


@dataclass(frozen=True)
class Group:
    """Rows of a dumbbell that belong together, under a heading."""

    heading: str
    labels: Sequence[str]
    before: Sequence[float]
    after: Sequence[float]


def need(frame: pd.DataFrame, of: str, *columns: str) -> None:
    """Refuses a table that lacks a column which a figure is drawn from.

    Raises:
        TarsError: Names the columns it has not.
    """
    lacking = [column for column in columns if column not in frame]
    if lacking:
        raise TarsError(
            f"the figure {of!r} needs the columns {', '.join(columns)}; this table lacks "
            f"{', '.join(lacking)} (it has {', '.join(map(str, frame.columns)) or 'none'})."
        )


def panels(axes: Any, count: int, of: str) -> list[Axes]:
    """The axes of a figure of several panels, as a list.

    Raises:
        TarsError: Another number was given.
    """
    found = list(np.atleast_1d(np.asarray(axes, dtype=object)).flat)
    if len(found) != count:
        raise TarsError(f"the figure {of!r} has {count} panels, got {len(found)} axes.")
    return found


def nothing(axes: Axes, why: str) -> Axes:
    """An axes that says in words why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", color=GREY, transform=axes.transAxes)
    return axes


def rows_height(rows: int, headings: int = 0) -> float:
    """Inches that a figure of so many labelled rows needs."""
    return 0.75 + _ROW * (rows + 1.6 * headings)


def concepts_of(frame: pd.DataFrame) -> list[str]:
    """The concepts of a table in its order; one empty name where it has no such column."""
    return [str(name) for name in frame["concept"].unique()] if "concept" in frame else [""]


def of_concept(frame: pd.DataFrame, concept: str) -> pd.DataFrame:
    """The rows of one concept."""
    return frame[frame["concept"] == concept] if "concept" in frame else frame


def characters(axes: Axes, share: float = 0.42) -> int:
    """How many characters of a label fit into a share of the figure's width."""
    root: Any = axes.get_figure(root=True)
    return max(14, int(share * root.get_size_inches()[0] / 0.052))


def dumbbells(axes: Axes, groups: Iterable[Group], *, labels: tuple[str, str]) -> Axes:
    """Before (hollow) and after (filled) of each row, joined by a line; rows run downwards."""
    places: list[float] = []
    names: list[str] = []
    heads: list[int] = []
    y = 0.0
    for group in groups:
        if group.heading:
            y += 0.3
            heads.append(len(places))
            places.append(y)
            names.append(safe_text(group.heading))
            y += 1
        rows = y + np.arange(len(group.labels))
        axes.hlines(rows, group.before, group.after, color=GREY, linewidth=0.8, zorder=1)
        axes.plot(
            group.before, rows, "o", mfc=PAPER, mec=BEFORE, mew=1.1, label=labels[0], zorder=2
        )
        axes.plot(group.after, rows, "o", mfc=AFTER, mec=INK, mew=0.5, label=labels[1], zorder=3)
        places += rows.tolist()
        names += list(group.labels)
        y = places[-1] + 1
    axes.set_yticks(places, names)
    for index, text in enumerate(axes.get_yticklabels()):
        if index in heads:
            text.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.4, -0.6)
    return legend_above(axes, right=True)


def legend_above(axes: Axes, *, right: bool = False) -> Axes:
    """A legend over the panel, each name once: nothing that is drawn lies under it."""
    found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    root: Any = axes.get_figure(root=True)
    room = (1 if right else axes.get_position().width) * root.get_size_inches()[0]
    longest = max((len(name) for name in found), default=1)
    axes.legend(
        found.values(),
        found.keys(),
        loc="lower right" if right else "lower left",
        bbox_to_anchor=(int(right), 1),
        ncols=max(1, min(len(found), int(room / (0.36 + 0.058 * longest)))),
        borderaxespad=0.3,
        handletextpad=0.5,
        columnspacing=1.2,
    )
    return axes


def legend_over(panels: Sequence[Axes]) -> None:
    """One legend for all panels, above them."""
    found = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    panels[0].figure.legend(
        list(found.values()), list(found.keys()), loc="outside upper left", ncols=len(found)
    )


def axis_label(axes: Axes, axis: str, what: str, n: str, share: float = 1.0) -> None:
    """Labels an axis with what it shows and of how many; on two lines where one has no room.

    Args:
        axes: Whose axis.
        axis: `x` or `y`.
        what: With its unit.
        n: As `n = 7 probes`.
        share: Of the room that the panel has before labels are laid out.
    """
    root: Any = axes.get_figure(root=True)
    place = axes.get_position()
    side = place.width if axis == "x" else place.height
    room = share * side * root.get_size_inches()[0 if axis == "x" else 1]
    whole = f"{what} ({n})" if n else what
    axes.set(**{f"{axis}label": whole if 0.062 * len(whole) < room else f"{what}\n({n})"})


def whole_numbers(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers alone."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def matrix(axes: Axes, values: Any, *, low: float = 0.0, high: float = 1.0, digits: int = 2) -> Any:
    """A matrix in shades with each figure written in it; a cross where there is none.

    Many columns leave room for three characters a cell: .76, 1.0.
    """
    narrow = values.shape[1] > _WIDE_COLUMNS
    shades = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=colormap("cividis"),
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="none",
    )
    for (row, column), value in np.ndenumerate(values):
        known = np.isfinite(value)
        dark = known and (value - low) < 0.55 * (high - low)
        axes.text(
            column,
            row,
            _cell(value, digits, narrow) if known else "×",
            ha="center",
            va="center",
            fontsize=5 if narrow else 6,
            color="#fffffe" if dark else "#1a1a1b",  # on the shade, so never the page's own ink
        )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return shades


def _cell(value: float, digits: int, narrow: bool) -> str:
    text = f"{value:.{digits}f}"
    if not narrow:
        return text
    return text[1:] if text.startswith("0.") else f"{value:.{max(digits - 1, 0)}f}"


def plain_logarithm(axis: Any) -> None:
    """Powers of ten as text: no formula has to be set, nor its fonts embedded."""
    axis.set_major_formatter(FuncFormatter(_power))


def colormap(name: str) -> Any:
    """A colour map whose missing values are grey."""
    return matplotlib.colormaps[name].with_extremes(bad="#bbbbbb")


def _power(value: float, _position: int | None = None) -> str:
    if value <= 0:
        return "0"
    exponent = round(float(np.log10(value)))
    if exponent == 0:
        return "1"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
