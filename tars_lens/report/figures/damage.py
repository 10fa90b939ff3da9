"""The figure of the damage: the divergence on plain text, with its median and its tails."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from tars_lens.evaluation.spread import kl_histogram
from tars_lens.report.figures.parts import (
    axis_label,
    legend_above,
    legend_over,
    need,
    nothing,
    panels,
    plain_logarithm,
)
from tars_lens.report.style import BLUE, INK, ORANGE, SERIES, VERMILLION, safe_text, styled

_GROWTH = ("median", "mean", "p95", "p99", "max")
_LEAST = 1e-9
_MARKS = {"median": (INK, "-"), "p95": (INK, "--"), "p99": (INK, ":"), "max": (VERMILLION, "-.")}


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


@styled
def silence_bound(frame: pd.DataFrame, axes: Axes) -> Axes:
    """What a certificate promises against what was measured, a point for each position.

    Args:
        frame: Positions at which the last layer speaks: kl, bound (nats).
        axes: Where to draw; both of its axes become logarithmic.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "silence_bound", "kl", "bound")
    shown = frame[frame["bound"] > 0]
    if shown.empty:
        return nothing(axes, "the last layer is silent at every position")
    kl, bound = shown["kl"].clip(lower=_LEAST), shown["bound"].clip(lower=_LEAST)
    axes.scatter(kl, bound, s=6, color=BLUE, alpha=0.6, linewidths=0)
    ends = [_LEAST, max(float(bound.max()), 10 * _LEAST) * 2]
    axes.plot(ends, ends, color=INK, linewidth=1)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        plain_logarithm(axis)
        axis.set_minor_locator(NullLocator())
    axis_label(axes, "x", "measured KL (nats)", f"n = {len(shown):,} positions that speak")
    axes.set_ylabel("bound by activations (nats)")
    return axes


@styled
def kl_by_concepts(frame: pd.DataFrame, axes: Any) -> Any:
    """How the divergence on plain text grows with every further concept that is removed.

    Args:
        frame: removed (how many), concept (the last of them), text (`all` or `elsewhere`: naming
            no removed concept), tokens, median, mean, p95, p99, max (nats).
        axes: Two panels, side by side.

    Raises:
        TarsError: A column is missing, or another number of panels.
    """
    need(frame, "kl_by_concepts", "removed", "concept", "text", "tokens", *_GROWTH)
    two = panels(axes, 2, "kl_by_concepts")
    titles = {"all": "all text", "elsewhere": "text naming no removed concept"}
    for panel, (text, title) in zip(two, titles.items(), strict=True):
        rows = frame[(frame["text"] == text) & frame["median"].notna()].sort_values("removed")
        if rows.empty:
            nothing(panel, f"no {title} was compared")
            continue
        for index, name in enumerate(_GROWTH):
            style: Any = SERIES[index]
            panel.plot(rows["removed"], rows[name].clip(lower=_LEAST), label=name, **style)
        panel.set_yscale("log")
        plain_logarithm(panel.yaxis)
        panel.yaxis.set_minor_locator(NullLocator())
        names = [
            safe_text(f"{n} {c}") for n, c in zip(rows["removed"], rows["concept"], strict=True)
        ]
        panel.set_xticks(list(rows["removed"]), names, rotation=35)
        for label in panel.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        panel.set_title(title, loc="left")
        n = f"n = {_range(rows['tokens'])} positions"
        axis_label(panel, "x", "concepts removed, one after another", n)
    two[0].set_ylabel("KL(base || edited)\nof the next token (nats)")
    legend_over(two)
    return axes


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


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
