"""Figures of the effect: what the model no longer says, and what it still does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tars_lens.report.figures.parts import (
    Group,
    axis_label,
    characters,
    concepts_of,
    dumbbells,
    legend_over,
    matrix,
    need,
    nothing,
    of_concept,
    panels,
    plain_logarithm,
    whole_numbers,
)
from tars_lens.report.style import GREY, SERIES, prompt_text, safe_text, styled

ERASED = 0.005
"""As in the measures: a forward probe at or below counts as erased."""

_DIRECTIONS = {
    "forward": "description to name",
    "reverse": "name to attribute",
    "neighbour": "neighbours",
}


@styled
def forward_probabilities(frame: pd.DataFrame, axes: Axes) -> Axes:
    """The concept's probability at each known forward probe, before and after.

    Args:
        frame: Probes: concept, kind, prompt, p_before, p_after, known.
        axes: Where to draw.

    Raises:
        TarsError: A column is missing.
    """
    return probe_probabilities(frame, axes, kinds=("forward",))


@styled
def probe_probabilities(
    frame: pd.DataFrame, axes: Axes, *, kinds: Sequence[str] = ("forward", "reverse", "neighbour")
) -> Axes:
    """The answer's probability at each known probe of some kinds, before and after.

    Args:
        frame: Probes: concept, kind, prompt, p_before, p_after, known.
        axes: Where to draw.
        kinds: Which probes; each kind of each concept under a heading.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "probe_probabilities", "kind", "prompt", "p_before", "p_after", "known")
    asked = frame[frame["kind"].isin(kinds)]
    known = asked[asked["known"].astype(bool)]
    if known.empty:
        why = f"none of {len(asked)} {', '.join(kinds)} probes is known to the base model"
        return nothing(axes, why)
    limit = characters(axes)
    groups = []
    for concept in concepts_of(known):
        for kind in kinds:
            of = of_concept(known, concept)
            rows = of[of["kind"] == kind].sort_values("p_before", ascending=False, kind="stable")
            labels = [prompt_text(prompt, limit) for prompt in rows["prompt"]]
            heading = concept if len(kinds) == 1 else f"{concept}: {kind}".removeprefix(": ")
            if len(rows):
                groups.append(Group(heading, labels, list(rows["p_before"]), list(rows["p_after"])))
    if "forward" in kinds:
        axes.axvline(
            ERASED, color=GREY, linewidth=0.8, linestyle=":", label=f"erased: p ≤ {ERASED}"
        )
    dumbbells(axes, groups, labels=("before", "after"))
    n = f"n = {len(known)} of {len(asked)} probes known"
    _probability_axis(axes, "probability of the answer", n)
    return axes


@styled
def directions(frame: pd.DataFrame, axes: Axes) -> Axes:
    """The answer's mean probability by concept and direction of knowledge, before and after.

    Args:
        frame: Probes: concept, kind, p_before, p_after, known. With a column set_phrase, reverse
            probes that don't depend on the concept are left out.
        axes: Where to draw.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "directions", "kind", "p_before", "p_after", "known")
    asked = frame[frame["kind"].isin(_DIRECTIONS)]
    known = asked["known"].astype(bool)
    if "set_phrase" in asked:
        known &= ~asked["set_phrase"].astype(bool)
    if not known.any():
        return nothing(axes, f"none of {len(asked)} probes is known to the base model")
    groups = []
    for concept in concepts_of(asked[known]):
        of, every = of_concept(asked[known], concept), of_concept(asked, concept)
        means = of.groupby("kind")[["p_before", "p_after"]].mean()
        sizes, counts = every["kind"].value_counts(), of["kind"].value_counts()
        kinds = [kind for kind in _DIRECTIONS if kind in means.index]
        labels = [f"{_DIRECTIONS[kind]} ({counts[kind]} of {sizes[kind]})" for kind in kinds]
        rows = means.loc[kinds]
        groups.append(Group(concept, labels, list(rows["p_before"]), list(rows["p_after"])))
    dumbbells(axes, groups, labels=("before", "after"))
    axes.set_ylabel("direction (probes counted, of n)")
    n = f"n = {int(known.sum())} of {len(asked)} probes"
    _probability_axis(axes, "mean probability of the answer", n)
    return axes


@styled
def languages(frame: pd.DataFrame, axes: Axes) -> Axes:
    """The answer's mean probability by language, before and after.

    Args:
        frame: Probes: concept, kind, language, p_before, p_after, known.
        axes: Where to draw.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "languages", "kind", "language", "p_before", "p_after", "known")
    asked = frame[frame["kind"] == "multilingual"]
    known = asked[asked["known"].astype(bool)]
    if known.empty:
        return nothing(axes, f"none of {len(asked)} probes in other languages is known")
    groups = []
    for concept in concepts_of(known):
        rows = of_concept(known, concept).groupby("language", sort=True)
        means = rows[["p_before", "p_after"]].mean()
        sizes = of_concept(asked, concept)["language"].value_counts()
        counts = rows.size()
        labels = [
            f"{safe_text(str(language))} ({counts[language]} of {sizes[language]})"
            for language in means.index
        ]
        groups.append(Group(concept, labels, list(means["p_before"]), list(means["p_after"])))
    dumbbells(axes, groups, labels=("before", "after"))
    axes.set_ylabel("language (probes known, of n)")
    _probability_axis(
        axes, "mean probability of the answer", f"n = {len(known)} of {len(asked)} probes known"
    )
    return axes


@styled
def interference(frame: pd.DataFrame, axes: Any) -> Any:
    """What the removal of each concept does to every other.

    Args:
        frame: edited (the concept removed), concept (the one asked for), forward_after (its worst
            known probability), reverse_kept.
        axes: Two panels, side by side.

    Raises:
        TarsError: A column is missing, or another number of panels.
    """
    need(frame, "interference", "edited", "concept", "forward_after", "reverse_kept")
    left, right = panels(axes, 2, "interference")
    titles = {"forward_after": "worst forward probability after", "reverse_kept": "reverse kept"}
    edited, asked = list(frame["edited"].unique()), list(frame["concept"].unique())
    for panel, (column, title) in zip((left, right), titles.items(), strict=True):
        table = frame.pivot_table(index="edited", columns="concept", values=column, dropna=False)
        matrix(panel, table.reindex(index=edited, columns=asked).to_numpy(dtype=float))
        panel.set_xticks(range(len(asked)), [safe_text(str(c)) for c in asked], rotation=35)
        for label in panel.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        panel.set_yticks(range(len(edited)), [safe_text(str(c)) for c in edited])
        panel.set_title(title, loc="left")
        axis_label(panel, "x", "concept asked for", f"n = {len(asked)}")
    left.set_ylabel(f"concept removed (n = {len(edited)})")
    right.set_yticks([])
    return axes


@styled
def depth(frame: pd.DataFrame, axes: Axes) -> Axes:
    """The largest probability that the logit lens reads of the answer at any layer.

    Args:
        frame: concept, prompt, largest_before, largest_after.
        axes: Where to draw.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "depth", "prompt", "largest_before", "largest_after")
    if frame.empty:
        return nothing(axes, "no prompt was looked into")
    limit = characters(axes)
    groups = []
    for concept in concepts_of(frame):
        rows = of_concept(frame, concept)
        labels = [prompt_text(prompt, limit) for prompt in rows["prompt"]]
        groups.append(
            Group(concept, labels, list(rows["largest_before"]), list(rows["largest_after"]))
        )
    dumbbells(axes, groups, labels=("before", "after"))
    _probability_axis(
        axes, "largest probability at any layer (logit lens)", f"n = {len(frame)} prompts"
    )
    return axes


@styled
def edit_curve(frame: pd.DataFrame, axes: Any) -> Any:
    """What more edits buy, and what they cost.

    Args:
        frame: concept, edits, forward_worst, neighbours_kept, plain_kl (nats).
        axes: Three panels.

    Raises:
        TarsError: A column is missing, or another number of panels.
    """
    need(frame, "edit_curve", "edits", "forward_worst", "neighbours_kept", "plain_kl")
    three = panels(axes, 3, "edit_curve")
    names = concepts_of(frame)
    titles = {
        "forward_worst": "worst forward probability",
        "neighbours_kept": "neighbours kept",
        "plain_kl": "mean KL, plain text (nats)",
    }
    for panel, (column, title) in zip(three, titles.items(), strict=True):
        for index, concept in enumerate(names):
            rows = of_concept(frame, concept).sort_values("edits")
            style: Any = SERIES[index % len(SERIES)]
            panel.plot(rows["edits"], rows[column], label=safe_text(concept), **style)
        axis_label(panel, "x", "edited weight vectors", f"n = {len(names)} concepts", share=0.9)
        panel.set_ylabel(title)
        whole_numbers(panel)
    three[0].set_ylim(-0.03, 1.03)
    three[1].set_ylim(-0.03, 1.03)
    if (frame["plain_kl"] > 0).any():
        three[2].set_yscale("symlog", linthresh=_decade(frame["plain_kl"]))
        plain_logarithm(three[2].yaxis)
        three[2].set_ylim(bottom=0)
    if any(names):
        legend_over(three)
    return axes


def _probability_axis(axes: Axes, what: str, n: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks(np.linspace(0, 1, 6))
    axis_label(axes, "x", what, n, share=0.62)
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.4)


def _decade(values: pd.Series) -> float:
    """The power of ten below the smallest positive value."""
    return float(10.0 ** np.floor(np.log10(values[values > 0].min())))
