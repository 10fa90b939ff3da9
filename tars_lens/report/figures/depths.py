"""The figure of a concept in other languages: which word each layer reads of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tars_lens.report.figures.parts import axis_label, colormap, need, nothing, panels
from tars_lens.report.style import prompt_text, safe_text, styled

_WORDS = {"english": "English token", "own": "own word"}
_STATES = {"p_before": "before", "p_after": "after"}


@styled
def language_depths(frame: pd.DataFrame, axes: Any, *, states: Mapping[str, str] = _STATES) -> Any:
    """What the logit lens reads at the ends of prompts in other languages, by language and layer.

    Args:
        frame: Of `attribution.languages_by_layer`, of one concept: language, prompt, answer, word,
            layer, and a column of probabilities for each state. Prompts of one language and answer
            are averaged.
        axes: As many panels as words (the English one, the language's own) times states; those of
            the English word come first.
        states: What is drawn of each word: columns, and what their titles say.

    Raises:
        TarsError: A column is missing, or another number of panels.
    """
    need(frame, "language_depths", "language", "prompt", "answer", "word", "layer", *states)
    shown = panels(axes, len(_WORDS) * len(states), "language_depths")
    if frame.empty:
        why = "no prompt in another language is known"
        return [nothing(panel, why) for panel in shown] and axes
    n = f"n = {frame['prompt'].nunique()} prompts"
    pairs = [(word, state) for word in _WORDS for state in states]
    for index, (panel, (word, state)) in enumerate(zip(shown, pairs, strict=True)):
        by = frame[frame["word"] == word].groupby(["language", "answer", "layer"], sort=False)
        grid = by[state].mean().unstack("layer", sort=False)
        image = panel.imshow(
            np.ma.masked_invalid(grid.to_numpy(dtype=float)),
            cmap=colormap("cividis"),
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="none",
        )
        panel.set_title(f"{_WORDS[word]}, {states[state]}", loc="left")
        _ticks(panel, grid, first=index % len(states) == 0)
        panel.set_xlabel("after layer (e: the embedding)")
        if index % len(states) == 0:
            axis_label(panel, "y", "language, its word", n)
    bar = shown[0].figure.colorbar(image, ax=shown, aspect=40, pad=0.01)
    bar.set_label("p by the logit lens")
    bar.outline.set_visible(False)
    return axes


def _ticks(panel: Axes, grid: pd.DataFrame, *, first: bool) -> None:
    names = [f"{safe_text(str(lang))}  {prompt_text(str(own), 16)}" for lang, own in grid.index]
    panel.set_yticks(range(len(names)), names if first else [])
    layers = list(grid.columns)
    every = max(1, round(len(layers) / 8))
    ticks = [i for i, la in enumerate(layers) if la == -1 or (la % every == 0 and la >= every)]
    panel.set_xticks(ticks, ["e" if layers[i] == -1 else str(layers[i]) for i in ticks])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
