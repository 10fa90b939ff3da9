"""Figures of the flow: where the concept is read, which part writes it, which edit stops it."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tars_lens.report.figures.parts import (
    axis_label,
    characters,
    colormap,
    legend_above,
    legend_over,
    need,
    nothing,
    panels,
)
from tars_lens.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    prompt_text,
    safe_text,
    styled,
    token_text,
)

_KINDS = {"forward": (BLUE, "o"), "reverse": (ORANGE, "s"), "neighbour": (GREEN, "^")}
_WHOLE = {"attention": "head", "mlp": "neuron"}


@styled
def propagation_map(
    frame: pd.DataFrame, axes: Any, *, prompt: int | None = None, value: str = "p"
) -> Any:
    """What the logit lens reads of the concept, by layer and position: before, after, difference.

    Cells in which the concept is the top token have a dot. The difference is after less before;
    cells that rose by more than 0.01 are marked by a plus, so that its sign survives a grey print.

    Args:
        frame: Propagation: prompt, position, token, layer, p_before, p_after (or cosine_before,
            cosine_after) and, for the dots, rank_before and rank_after (1 is the top).
        axes: Three panels, side by side.
        prompt: Which prompt; the first where not given.
        value: `p` or `cosine`.

    Raises:
        TarsError: A column is missing, or another number of panels.
    """
    columns = [f"{value}_before", f"{value}_after"]
    need(frame, "propagation_map", "prompt", "position", "token", "layer", *columns)
    three = panels(axes, 3, "propagation_map")
    if frame.empty:
        return [nothing(panel, "no prompt") for panel in three] and axes
    rows = frame[frame["prompt"] == (frame["prompt"].iloc[0] if prompt is None else prompt)]
    before, after = (_grid(rows, column) for column in columns)
    difference = after - before
    patched = bool(np.isfinite(after.to_numpy(dtype=float)).any())
    both = np.stack([before.to_numpy(dtype=float), after.to_numpy(dtype=float)])
    high = max(float(np.nanmax(np.abs(both), initial=0.0)), 0.01)
    low = 0.0 if value == "p" else -high
    titles = (f"{value} before (∘ top token)", "after", "after less before (+ rose)")
    for panel, title, grid in zip(three, titles, (before, after, difference), strict=True):
        if panel is not three[0] and not patched:
            nothing(panel, "no patch")
            continue
        if panel is three[2]:
            _heatmap(panel, grid, "RdBu_r", (-high, high), title)
        else:
            _heatmap(panel, grid, "cividis", (low, high), title)
        _tokens(panel, rows)
    for panel, column in zip(three[:2], ("rank_before", "rank_after"), strict=True):
        if column in rows and (patched or panel is three[0]):
            _mark(panel, _grid(rows, column) == 1, ".", "the top token")
    if patched:
        _mark(three[2], difference > 0.01, "+", "rose")
    three[0].set_ylabel(f"layer (n = {len(before)}; e: the embedding)")
    return axes


@styled
def attribution_waterfall(
    frame: pd.DataFrame, axes: Axes, *, prompt: int | None = None, top: int = 12
) -> Axes:
    """How the parts of the model add up to the concept's logit, or how a patch changes it.

    With `logit_after`: from the logit before, through the parts that changed most, to the logit
    after. Without: from zero, through the largest parts, to the logit.

    Args:
        frame: Direct attribution: prompt, component, layer, label, logit_before, logit_after.
        axes: Where to draw.
        prompt: Which prompt; the first where not given.
        top: How many parts are shown by themselves.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "attribution_waterfall", "prompt", "component", "layer", "label", "logit_before")
    if frame.empty:
        return nothing(axes, "no prompt")
    rows = frame[frame["prompt"] == (frame["prompt"].iloc[0] if prompt is None else prompt)]
    rows = _disjoint(rows)
    patched = "logit_after" in rows and bool(rows["logit_after"].notna().any())
    start = float(rows["logit_before"].sum()) if patched else 0.0
    steps = rows["logit_after"] - rows["logit_before"] if patched else rows["logit_before"]
    order = steps.abs().sort_values(ascending=False, kind="stable").index[:top]
    chosen = [index for index in rows.index if index in set(order)]
    limit = characters(axes, 0.3)
    names = [prompt_text(str(rows.loc[index, "label"]), limit) for index in chosen]
    sizes = [float(steps[index]) for index in chosen]
    if len(rows) > len(chosen):
        names.append(f"{len(rows) - len(chosen)} other parts")
        sizes.append(float(steps.sum()) - sum(sizes))
    _waterfall(axes, names, sizes, start, patched)
    axis_label(axes, "x", "logit of the concept's token", f"sum of n = {len(rows)} parts")
    return axes


@styled
def edit_effects(frame: pd.DataFrame, axes: Any, *, role: str = "neuron") -> Any:
    """What each edit does by itself, and what is lost without it.

    Args:
        frame: Edit effects: label, role, mode (alone, left_out), kind, effect (the probability
            taken away, by the edit alone or by it only); with a column concept, labels say whose
            edit it is.
        axes: Two panels, side by side.
        role: Which rows: `neuron` for all three vectors of a neuron at once, or a role.

    Raises:
        TarsError: A column is missing, or another number of panels.
    """
    need(frame, "edit_effects", "label", "role", "mode", "kind", "effect")
    left, right = panels(axes, 2, "edit_effects")
    rows = frame[frame["role"] == role]
    if rows.empty:
        return [nothing(panel, f"no effect of a {role} was measured") for panel in (left, right)]
    names = list(dict.fromkeys(_owned(rows)))
    titles = {"alone": "this edit alone takes away", "left_out": "only this edit takes away"}
    for panel, (mode, title) in zip((left, right), titles.items(), strict=True):
        panel.axvline(0, color=GREY, linewidth=0.6)
        for offset, (kind, (color, marker)) in zip((-0.22, 0, 0.22), _KINDS.items(), strict=True):
            of = rows[(rows["mode"] == mode) & (rows["kind"] == kind)]
            places = [names.index(name) + offset for name in _owned(of)]
            panel.hlines(places, 0, of["effect"], color=color, linewidth=0.8)
            panel.plot(of["effect"], places, marker, color=color, mec=INK, mew=0.4, label=kind)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_yticks(range(len(names)), [safe_text(n) for n in names] if panel is left else [])
        panel.tick_params(axis="y", length=0)
        panel.margins(x=0.12)
        panel.set_xlabel(f"mean probability that {title}")
    left.set_ylabel(f"edited {'neuron' if role == 'neuron' else role} (n = {len(names)})")
    legend_over([left, right])
    return axes


def _grid(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Layers downwards from the last to the embedding, positions across."""
    table = rows.pivot_table(index="layer", columns="position", values=column, dropna=False)
    wanted = sorted(rows["layer"].unique(), reverse=True)
    return table.reindex(index=wanted, columns=sorted(rows["position"].unique()))


def _heatmap(
    axes: Axes, grid: pd.DataFrame, shades: str, limits: tuple[float, float], title: str
) -> None:
    image = axes.imshow(
        np.ma.masked_invalid(grid.to_numpy(dtype=float)),
        cmap=colormap(shades),
        vmin=limits[0],
        vmax=limits[1],
        aspect="auto",
        interpolation="none",
    )
    layers = list(grid.index)
    every = max(1, round(len(layers) / 8))
    # 0 would lie on the embedding's letter
    shown = [layer for layer in layers if layer == -1 or (layer % every == 0 and layer >= every)]
    ticks = [layers.index(layer) for layer in shown]
    axes.set_yticks(ticks, ["e" if layers[i] == -1 else str(layers[i]) for i in ticks])
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left")
    bar = axes.figure.colorbar(image, ax=axes, location="bottom", aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=6, width=0.4, length=2)


def _tokens(axes: Axes, rows: pd.DataFrame) -> None:
    first = rows.drop_duplicates("position").sort_values("position")
    names = [token_text(str(token), 14) for token in first["token"]]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5.5)
    axes.tick_params(axis="x", length=0)
    axis_label(axes, "x", "token", f"n = {len(names)}")


def _mark(axes: Axes, where: pd.DataFrame, marker: str, label: str) -> None:
    down, across = np.nonzero(where.to_numpy())
    axes.plot(across, down, marker, color="#fffffe", mec="#1a1a1b", mew=0.5, ms=4, label=label)


def _disjoint(rows: pd.DataFrame) -> pd.DataFrame:
    """Parts none of which holds another: a layer's attention, not its heads and bias as well."""
    there = set(rows["component"])
    held = {part for whole, part in _WHOLE.items() if whole in there}
    kept = rows[~rows["component"].isin(held)]
    if not held:
        return kept
    last = kept.loc[kept["component"].isin(_WHOLE), "layer"].max()
    return kept[(kept["component"] != "bias") | (kept["layer"] > last)]


def _waterfall(
    axes: Axes, names: list[str], sizes: list[float], start: float, patched: bool
) -> None:
    ends = start + np.cumsum(sizes)
    begins = np.concatenate([[start], ends[:-1]])
    labels = (["before"] if patched else []) + names + ["after" if patched else "logit"]
    first = int(patched)
    if patched:
        axes.barh(0, start, color=GREY, edgecolor=INK, linewidth=0.4)
    for index, (begin, size) in enumerate(zip(begins, sizes, strict=True)):
        up = size >= 0
        axes.barh(
            first + index,
            size,
            left=begin,
            color=BLUE if up else ORANGE,
            hatch="" if up else "////",
            edgecolor=INK,
            linewidth=0.4,
            label="raises" if up else "lowers",
        )
        axes.annotate(
            f"{size:+.2f}".replace("-", "−"),
            (max(begin, begin + size), first + index),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            fontsize=5.5,
        )
    axes.barh(len(labels) - 1, ends[-1] if len(ends) else start, color=GREY, edgecolor=INK, lw=0.4)
    axes.axvline(0, color=INK, linewidth=0.5)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.1)
    legend_above(axes)


def _owned(rows: pd.DataFrame) -> list[str]:
    labels = [str(label) for label in rows["label"]]
    if "concept" not in rows:
        return labels
    owners = zip(rows["concept"], labels, strict=True)
    return [f"{owner}: {label}" for owner, label in owners]
