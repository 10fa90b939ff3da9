"""The figure of a comparison: what each method erases against what it damages."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from tars_lens.report.figures.parts import need, nothing, plain_logarithm
from tars_lens.report.style import BLUE, GREY, INK, ORANGE, PAPER, safe_text, styled

_LEAST = 1e-6  # nats; less is drawn there
_OURS = ("tars", "paper")
_NO_METHODS = ("blocked token", "untouched")


@styled
def pareto(frame: pd.DataFrame, axes: Axes) -> Axes:
    """Erasure against the mean KL on plain text, with the line of those that none betters in both.

    Args:
        frame: method, erasure (0 to 1), wikipedia (mean KL in nats); a row without one of the two
            is left out. The blocked token and the untouched model are drawn, and never on the
            line: the one hides a word, the other does nothing.
        axes: Where to draw; its x axis becomes logarithmic.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "pareto", "method", "erasure", "wikipedia")
    rows = frame.dropna(subset=["erasure", "wikipedia"]).reset_index(drop=True)
    if rows.empty:
        return nothing(axes, "no method was measured")
    rows["damage"] = rows["wikipedia"].astype(float).clip(lower=_LEAST)
    best = front(rows)
    axes.step(best["damage"], best["erasure"], where="post", color=GREY, linestyle="--", zorder=1)
    for row in rows.itertuples():
        method = str(row.method)
        own = method in _OURS
        aside = method in _NO_METHODS
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
        axes.annotate(
            safe_text(method.replace("_", " ")),
            (row.damage, row.erasure),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=6,
            fontweight="bold" if own else "normal",
        )
    axes.set_xscale("log")
    plain_logarithm(axes.xaxis)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(rows["damage"].min() / 3, rows["damage"].max() * 12)
    axes.set_ylim(-0.04, 1.1)
    axes.set_xlabel("damage: mean KL(base || edited) on plain text (nats)")
    axes.set_ylabel("erasure: 1 - residual knowledge")
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
