"""The figure of the capacity: what is left and what is lost with every further concept."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from tars_lens.report.figures.parts import (
    axis_label,
    legend_above,
    need,
    panels,
    plain_logarithm,
    whole_numbers,
)
from tars_lens.report.style import GREY, SERIES, styled

_SHARES = {
    "neighbours_kept": "neighbours kept (mean)",
    "neighbours_worst": "neighbours kept (worst concept)",
    "others_kept": "concepts not yet removed, kept",
    "reverse_kept": "reverse kept",
    "forward_worst": "worst forward probability",
}
_GROWTH = {"elsewhere_mean": "mean", "elsewhere_p99": "p99"}
_LEAST = 1e-9


@styled
def capacity(frame: pd.DataFrame, axes: Any, *, keep: float, max_kl: float) -> Any:
    """Shares on the left, the KL on plain text on the right, over the number of concepts.

    Args:
        frame: removed (how many), neighbours_kept, neighbours_worst, others_kept, reverse_kept,
            forward_worst, elsewhere_mean, elsewhere_p99 (nats, of text that names no removed
            concept).
        axes: Two panels, side by side.
        keep: The share of neighbours from which on they count as kept.
        max_kl: The mean KL up to which plain text counts as unharmed.

    Raises:
        TarsError: A column is missing, or another number of panels.
    """
    need(frame, "capacity", "removed", *_SHARES, *_GROWTH)
    left, right = panels(axes, 2, "capacity")
    rows = frame.sort_values("removed")
    _lines(left, rows, _SHARES)
    left.axhline(keep, color=GREY, linewidth=0.6, zorder=0)
    left.set_ylim(-0.03, 1.03)
    left.set_ylabel("share, or probability")
    _lines(right, rows.assign(**{k: rows[k].clip(lower=_LEAST) for k in _GROWTH}), _GROWTH)
    right.axhline(max_kl, color=GREY, linewidth=0.6, zorder=0)
    right.set_yscale("log")
    plain_logarithm(right.yaxis)
    right.set_ylabel("KL(base || edited) (nats)")
    return axes


def _lines(panel: Axes, rows: pd.DataFrame, columns: dict[str, str]) -> None:
    for index, (column, label) in enumerate(columns.items()):
        style: Any = SERIES[index]
        panel.plot(rows["removed"], rows[column].astype(float), label=label, **style)
    whole_numbers(panel)
    axis_label(panel, "x", "concepts removed", f"n = {len(rows)} counts")
    legend_above(panel)
