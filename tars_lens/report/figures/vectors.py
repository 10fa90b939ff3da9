"""Figures of the vectors: how the target was refined, what chance gives, which neurons are near."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from tars_lens.evaluation.spread import CHANCE
from tars_lens.report.figures.parts import (
    axis_label,
    concepts_of,
    legend_above,
    legend_over,
    need,
    nothing,
    of_concept,
    panels,
    plain_logarithm,
    whole_numbers,
)
from tars_lens.report.style import BLUE, GREEN, GREY, INK, ORANGE, SERIES, safe_text, styled

_ROLES = {"gate": (BLUE, "o"), "in": (GREEN, "s"), "out": (ORANGE, "^")}


@styled
def refinement_trajectory(frame: pd.DataFrame, axes: Any) -> Any:
    """How the noise raises the concept's probability, and how far it turns the vector.

    Args:
        frame: Of `TargetingVector.to_frame`: step, probability, angle_degrees; with a column
            concept, a line for each.
        axes: Two panels.

    Raises:
        TarsError: A column is missing, or another number of panels.
    """
    need(frame, "refinement_trajectory", "step", "probability", "angle_degrees")
    left, right = panels(axes, 2, "refinement_trajectory")
    names = concepts_of(frame)
    for index, concept in enumerate(names):
        rows = of_concept(frame, concept)
        style: Any = SERIES[index % len(SERIES)]
        often: Any = {"markevery": max(1, len(rows) // 10)}
        left.plot(rows["step"], rows["probability"], label=safe_text(concept), **style, **often)
        right.plot(rows["step"], rows["angle_degrees"], **style, **often)
    left.set_ylim(-0.03, 1.03)
    right.set_ylim(bottom=0)
    left.set_ylabel("probability of the concept")
    right.set_ylabel("angle to the start (degrees)")
    for panel in (left, right):
        axis_label(panel, "x", "refinement step", f"vectors: n = {len(names)}")
        whole_numbers(panel)
    if any(names):
        legend_over([left, right])
    return axes


@styled
def cosine_distribution(frame: pd.DataFrame, axes: Axes, *, threshold: float | None = None) -> Axes:
    """The share of weight vectors with more than a cosine, beside what chance gives.

    Args:
        frame: Of `measure.spread.cosine_frame`: source (a concept, or `chance`), quantile, cosine.
        axes: Where to draw; its y axis becomes logarithmic.
        threshold: The largest cosine to be expected by chance.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "cosine_distribution", "source", "quantile", "cosine")
    sources = [source for source in frame["source"].unique() if source != CHANCE]
    for index, source in enumerate(sources):
        rows = frame[(frame["source"] == source) & (frame["quantile"] < 1)]
        style: Any = {**SERIES[index % len(SERIES)], "marker": ""}
        axes.plot(rows["cosine"], 1 - rows["quantile"], label=safe_text(str(source)), **style)
    null = frame[(frame["source"] == CHANCE) & (frame["quantile"] < 1)]
    if len(null):
        axes.plot(null["cosine"], 1 - null["quantile"], ":", color=INK, label="a random direction")
    if threshold is not None:
        axes.axvline(
            threshold, color=GREY, linewidth=0.8, label=f"chance's largest {threshold:.2f}"
        )
    axes.set_yscale("log")
    plain_logarithm(axes.yaxis)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("cosine with the targeting vector")
    n = _vectors(frame)
    axis_label(axes, "y", "share of weight vectors above", f"n = {n:,}" if n else "")
    return legend_above(axes)


@styled
def neurons_by_layer(
    frame: pd.DataFrame,
    axes: Axes,
    *,
    n_layers: int | None = None,
    threshold: float | None = None,
    named: int = 6,
) -> Axes:
    """Where in the network the weight vectors lie, in which role, and how near the target.

    Args:
        frame: Of `rank` or `Patch.to_frame`: layer, role, label, cosine.
        axes: Where to draw.
        n_layers: Of the model, for the axis.
        threshold: The largest cosine to be expected by chance; shaded up to it.
        named: How many of the largest |cosine| are labelled.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "neurons_by_layer", "layer", "role", "label", "cosine")
    rows = frame[frame["cosine"].notna()]
    if rows.empty:
        return nothing(axes, "no weight vector has a cosine with a targeting vector")
    if threshold is not None:
        axes.axhspan(-threshold, threshold, color=GREY, alpha=0.18, lw=0, label="within chance")
    axes.axhline(0, color=GREY, linewidth=0.5)
    for role, (color, marker) in _ROLES.items():
        of = rows[rows["role"] == role]
        if len(of):
            axes.plot(
                of["layer"],
                of["cosine"],
                linestyle="",
                marker=marker,
                color=color,
                mec=INK,
                mew=0.4,
                label=f"{role} (n = {len(of)})",
            )
    _name(axes, rows, named)
    if n_layers is not None:
        axes.set_xlim(-1, n_layers)
    whole_numbers(axes)
    axes.margins(y=0.15)
    axes.set_xlabel("layer")
    axes.set_ylabel("cosine with the targeting vector")
    return legend_above(axes)


def _name(axes: Axes, rows: pd.DataFrame, count: int) -> None:
    """Labels the vectors of the largest |cosine|, on the side where the figure has room."""
    best = rows.loc[rows["cosine"].abs().sort_values(ascending=False, kind="stable").index[:count]]
    middle = (rows["layer"].min() + rows["layer"].max()) / 2
    near = 0.07 * (rows["cosine"].max() - rows["cosine"].min())
    wide = 0.25 * (rows["layer"].max() - rows["layer"].min())
    named: list[tuple[float, float]] = []
    for layer, cosine, label in zip(best["layer"], best["cosine"], best["label"], strict=True):
        if any(abs(layer - x) <= wide and abs(cosine - y) < near for x, y in named):
            continue  # its name would lie on another's
        named.append((layer, cosine))
        late = layer > middle
        axes.annotate(
            str(label),
            (layer, cosine),
            xytext=(-4 if late else 4, 0),
            textcoords="offset points",
            ha="right" if late else "left",
            va="center",
            fontsize=5.5,
        )


def _vectors(frame: pd.DataFrame) -> int:
    return int(frame["vectors"].max()) if "vectors" in frame and len(frame) else 0
