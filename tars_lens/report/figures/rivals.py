"""The figure of a comparison: what each method erases against what it damages."""

from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from tars_lens.report.figures.parts import need, nothing, plain_logarithm
from tars_lens.report.style import BLUE, GREY, INK, ORANGE, PAPER, safe_text, styled

Damage = Literal["wikipedia", "neighbour"]
_DAMAGE = {
    "wikipedia": "damage: mean KL(base || edited) on plain text (nats)",
    "neighbour": "damage: mean log probability that neighbours lose (nats)",
}
_LEAST = {"wikipedia": 1e-6, "neighbour": 1e-3}  # nats; less is drawn there
_NONE_KEPT = 1e-12  # of the neighbours' probability; less is drawn there
_OURS = ("tars", "paper")
_NO_METHODS = ("blocked token", "untouched")
_SIDES = ("left", "right")  # where the name begins, or ends, at the mark
_LEVELS = (3, -4, 9, -10, 16, -17)  # points above the mark
_LETTER = 3.6  # points of width, at most
_FAR = 9  # points, from which on a line leads from the name to its mark
_LEADER = {"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}


@styled
def pareto(frame: pd.DataFrame, axes: Axes, *, damage: Damage = "wikipedia") -> Axes:
    """Erasure against one kind of damage, with the line of those that none betters in both.

    Args:
        frame: method, erasure (0 to 1), and wikipedia (mean KL in nats) or neighbour (the geometric
            mean of what neighbours keep, 0 to 1); a row without one of the two is left out, and so
            is the untouched model, which lies where nothing is done. The blocked token is never on
            the line: it hides a word.
        axes: Where to draw; its x axis becomes logarithmic.
        damage: The column that is the damage.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "pareto", "method", "erasure", damage)
    measured = frame[frame["method"] != "untouched"]
    rows = measured.dropna(subset=["erasure", damage]).reset_index(drop=True)
    if rows.empty:
        return nothing(axes, "no method was measured")
    found = rows[damage].astype(float)
    if damage == "neighbour":
        found = -np.log(found.clip(lower=_NONE_KEPT))
    rows["damage"] = found.clip(lower=_LEAST[damage])
    rows["erasure"] = rows["erasure"].astype(float)
    axes.set_xscale("log")
    plain_logarithm(axes.xaxis)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(rows["damage"].min() / 4, rows["damage"].max() * 12)
    axes.set_ylim(-0.06, 1.2)
    best = front(rows)
    axes.step(
        *(best["damage"], best["erasure"]),
        where="post",
        color=GREY,
        linestyle="--",
        linewidth=0.8,
        zorder=1,
    )
    for row in rows.itertuples():
        own, aside = row.method in _OURS, row.method in _NO_METHODS
        axes.plot(
            [row.damage],
            [row.erasure],
            "s" if own else ("x" if aside else "o"),
            color=ORANGE if own else (INK if aside else BLUE),
            markersize=5.5 if own else 4,
            markeredgecolor=INK if own else None,
            markeredgewidth=0.6 if own else 1,
            markerfacecolor=None if own or aside else PAPER,
            zorder=3 if own else 2,
        )
    axes.set_xlabel(_DAMAGE[damage])
    axes.set_ylabel("erasure: 1 - residual knowledge")
    _name(axes, rows)
    return axes


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """The methods that no other betters in both, from the least damage on.

    Args:
        rows: method, erasure, damage.
    """
    methods = rows[~rows["method"].isin(_NO_METHODS)]
    ordered = methods.sort_values(["damage", "erasure"], ascending=[True, False], kind="stable")
    highest = ordered["erasure"].cummax()
    return ordered[(ordered["erasure"] == highest) & ~highest.duplicated()].reset_index(drop=True)


def _name(axes: Axes, rows: pd.DataFrame) -> None:
    """Writes each method's name beside its mark, on the side where it meets the fewest others."""
    root: Any = axes.get_figure(root=True)
    root.draw_without_rendering()  # lays the panels out, so that places are known
    places = axes.transData.transform(rows[["damage", "erasure"]].to_numpy(float))
    places = places * 72 / root.dpi  # points
    taken: list[tuple[float, ...]] = [(x - 4, x + 4, y - 4, y + 4) for x, y in places.tolist()]
    for row, (x, y) in zip(rows.itertuples(), places.tolist(), strict=True):
        text = safe_text(str(row.method).replace("_", " "))
        width = _LETTER * len(text)
        beside = {
            (side, level): _box(x, y, width, side, level) for side in _SIDES for level in _LEVELS
        }
        side, level = min(beside, key=lambda at: sum(_meet(beside[at], box) for box in taken))
        taken.append(beside[side, level])
        axes.annotate(
            text,
            (row.damage, row.erasure),
            xytext=(5 if side == "left" else -5, level),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=6,
            fontweight="bold" if row.method in _OURS else "normal",
            arrowprops=None if abs(level) < _FAR else _LEADER,
        )


def _box(x: float, y: float, width: float, side: str, level: int) -> tuple[float, ...]:
    start = x + 5 if side == "left" else x - 5 - width
    return (start, start + width, y + level - 3, y + level + 3)


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
