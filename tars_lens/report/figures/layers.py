"""The figure of a concept's way up through the layers: its rank at the end of a prompt."""

import pandas as pd
from matplotlib.axes import Axes

from tars_lens.report.figures.parts import need
from tars_lens.report.style import BLUE, VERMILLION, safe_text, styled


@styled
def rank_by_layer(frame: pd.DataFrame, axes: Axes, *, prompt: int) -> Axes:
    """The rank of the concept's token after each layer, as the logit lens reads it at the end.

    Args:
        frame: Propagation: prompt, position, layer, rank_before, rank_after; `concept` for the
            title where it is there.
        axes: Where to draw; its y axis becomes logarithmic, 1 on top.
        prompt: Which prompt.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "rank_by_layer", "prompt", "position", "layer", "rank_before", "rank_after")
    rows = frame[frame["prompt"] == prompt]
    last = rows[rows["position"] == rows["position"].max()].sort_values("layer")
    for column, label, colour, line in (
        ("rank_before", "before", VERMILLION, "-"),
        ("rank_after", "after", BLUE, "--"),
    ):
        axes.plot(last["layer"], last[column], line, marker="o", markersize=2.5, color=colour)
        end = last.iloc[-1]
        axes.annotate(
            label,
            (end["layer"], end[column]),
            textcoords="offset points",
            xytext=(5, 0),
            va="center",
            color=colour,
        )
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"after layer (-1: the embedding; n = {len(last)})")
    axes.set_ylabel("rank of the concept's token (1: top)")
    if "concept" in last:
        axes.set_title(safe_text(str(last["concept"].iloc[0])))
    return axes
