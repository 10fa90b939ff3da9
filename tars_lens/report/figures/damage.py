"""The figure of the damage: the divergence on plain text, with its median and its tails."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from tars_lens.report.figures.parts import legend_above, need, nothing, plain_logarithm
from tars_lens.report.style import BLUE, INK, ORANGE, VERMILLION, styled

_MARKS = {"median": (INK, "-"), "p95": (INK, "--"), "p99": (INK, ":"), "max": (VERMILLION, "-.")}
_DECADES = 9


@styled
def kl_distribution(
    frame: pd.DataFrame, axes: Axes, *, figures: Mapping[str, Any] | None = None
) -> Axes:
    """How the KL of the next token is spread over the positions of plain text.

    Args:
        frame: Counts (bin_low, bin_high in nats, count, elsewhere_count), or one row a position
            (kl in nats). `elsewhere_count` may be missing.
        axes: Where to draw; its x axis becomes logarithmic.
        figures: The exact median, p95, p99 and max; read off the counts where not given.

    Raises:
        TarsError: Neither set of columns is there.
    """
    counts = kl_histogram(frame["kl"]) if "kl" in frame else frame
    need(counts, "kl_distribution", "bin_low", "bin_high", "count")
    total = int(counts["count"].sum())
    if not total or not (counts["bin_high"] > 0).any():
        return nothing(axes, "no position of plain text was compared")
    edges = _edges(counts)
    shares = counts["count"].to_numpy(dtype=float) / total * 100
    tallest = shares.max()
    axes.stairs(shares, edges, fill=True, color=BLUE, alpha=0.35)
    axes.stairs(shares, edges, color=BLUE, label=f"all text (n = {total:,})")
    if "elsewhere_count" in counts and counts["elsewhere_count"].sum():
        n = int(counts["elsewhere_count"].sum())
        elsewhere = counts["elsewhere_count"].to_numpy(dtype=float) / n * 100
        tallest = max(tallest, elsewhere.max())
        axes.stairs(
            elsewhere,
            edges,
            color=ORANGE,
            linestyle="--",
            label=f"naming no removed concept (n = {n:,})",
        )
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(tallest * 1.75, 1e-9))
    for name, value in _marks(counts, figures).items():
        color, line = _MARKS[name]
        place = min(max(value, edges[0]), edges[-1])
        axes.axvline(place, color=color, linestyle=line, linewidth=1)
        axes.annotate(
            f"{name} {value:.2g}",
            (place, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-1.5, -2),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=5.5,
        )
    plain_logarithm(axes.xaxis)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("KL(base || edited) of the next token (nats)")
    axes.set_ylabel("share of positions (%)")
    return legend_above(axes)


def kl_histogram(values: pd.Series, elsewhere: pd.Series | None = None) -> pd.DataFrame:
    """Counts of KL values in eight bins a decade.

    Args:
        values: Nats, one a position; all below 1e-9 (rounding) count in the first bin.
        elsewhere: Whether the position's text names no removed concept.

    Returns:
        Columns bin_low, bin_high, count and, with `elsewhere`, elsewhere_count.
    """
    low = 10.0**-_DECADES
    clipped = values.astype(float).clip(lower=low)
    top = max(float(np.ceil(np.log10(clipped.max()))), 0.0) if len(clipped) else 0.0
    edges = np.logspace(-_DECADES, top, round((top + _DECADES) * 8) + 1)
    counted = np.histogram(clipped.clip(upper=edges[-1]), edges)[0]
    frame = pd.DataFrame({"bin_low": edges[:-1], "bin_high": edges[1:], "count": counted})
    frame.loc[0, "bin_low"] = 0.0
    if elsewhere is not None:
        chosen = clipped[elsewhere.astype(bool)].clip(upper=edges[-1])
        frame["elsewhere_count"] = np.histogram(chosen, edges)[0]
    return frame


def _edges(counts: pd.DataFrame) -> np.ndarray:
    """Bin edges fit for a logarithmic axis: a bin from 0 begins a third of its end."""
    low, high = counts["bin_low"].to_numpy(float), counts["bin_high"].to_numpy(float)
    first = low[0] if low[0] > 0 else high[0] / 3
    return np.concatenate([[first], high])


def _marks(counts: pd.DataFrame, figures: Mapping[str, Any] | None) -> dict[str, float]:
    if figures is not None:
        return {name: float(figures[name]) for name in _MARKS if figures.get(name) is not None}
    shares = counts["count"].cumsum() / counts["count"].sum()
    levels = {"median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    at = {name: int(np.searchsorted(shares, level - 1e-12)) for name, level in levels.items()}
    return {name: float(counts["bin_high"].iloc[index]) for name, index in at.items()}
