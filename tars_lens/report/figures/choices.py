"""The figure of an ablation: what each choice of the method does to effect and damage."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tars_lens.report.figures.parts import need
from tars_lens.report.style import BLUE, GREY, ORANGE, VERMILLION, safe_text, styled

_MARKS = {
    "forward_mean": ("forward: worst probability left", VERMILLION, "o"),
    "reverse_kept": ("reverse kept", ORANGE, "s"),
    "neighbours_lost": ("neighbours lost", BLUE, "D"),
}


@styled
def ablation(frame: pd.DataFrame, axes: Axes) -> Axes:
    """Means over concepts of what is left and what is lost, a row for each variant.

    Args:
        frame: variant, axis, concepts (how many), forward_mean (of each concept's worst probe),
            reverse_kept, neighbours_kept.
        axes: Where to draw.

    Raises:
        TarsError: A column is missing.
    """
    need(frame, "ablation", "variant", "axis", "concepts", *list(_MARKS)[:2], "neighbours_kept")
    table = frame.assign(neighbours_lost=1 - frame["neighbours_kept"])
    rows = np.arange(len(table))
    for column, (label, colour, marker) in _MARKS.items():
        axes.plot(
            table[column].clip(0, 1),
            rows,
            marker,
            color=colour,
            markersize=4,
            markerfacecolor="none" if marker == "D" else colour,
            label=label,
            clip_on=False,
        )
    for row in rows:
        axes.axhline(float(row), color=GREY, linewidth=0.3, alpha=0.5, zorder=0)
    names = [f"{axis}: {name}" for axis, name in zip(table["axis"], table["variant"], strict=True)]
    axes.set_yticks(rows, [safe_text(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"share, low is good (means over {int(table['concepts'].max())} concepts)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return axes
