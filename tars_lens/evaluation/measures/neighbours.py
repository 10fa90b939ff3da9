"""Near things that are to stay: siblings, the same field, unrelated, homographs."""

from typing import Any

import pandas as pd

from tars_lens.concept.card import DISTANCES
from tars_lens.evaluation import intervals
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.measure import Measure, Result


def neighbours(context: Context) -> Result:
    """The geometric mean of `p / p0`, capped at 1, and the worst one by name.

    `distances` has both for each distance that the cards mark.
    """
    frame = context.answers("neighbour").drop(columns=["top_before", "top_after"])
    frame["kept"] = (frame["p_after"] / frame["p_before"]).clip(upper=1)
    known = frame[frame["known"]]
    values = known[["p_after", "p_before"]].to_numpy(float)
    figures = {
        **_figures(frame, known),
        "distances": _distances(frame),
        "concepts": {
            str(name): {**_figures(part, part[part["known"]]), "distances": _distances(part)}
            for name, part in frame.groupby("concept", sort=False)
            if part["known"].any()
        },
    }
    interval = intervals.bootstrap(
        values, intervals.geometric_mean, seed=context.seed, resamples=context.suite.resamples
    )
    return Result("neighbour", "kept", figures, interval, frame)


def _figures(every: pd.DataFrame, known: pd.DataFrame) -> dict[str, Any]:
    values = known[["p_after", "p_before"]].to_numpy(float)
    worst = known.loc[known["kept"].idxmin()] if len(known) else None
    return {
        "kept": intervals.number(intervals.geometric_mean(values)) if len(known) else None,
        "n": len(every),
        "known": len(known),
        "worst": None if worst is None else str(worst["answer"]),
        "worst_kept": None if worst is None else float(worst["kept"]),
        "worst_prompt": None if worst is None else str(worst["prompt"]),
    }


def _distances(frame: pd.DataFrame) -> dict[str, Any]:
    """The figures of each distance that is marked, in the order of `DISTANCES`."""
    parts = ((distance, frame[frame["way"] == distance]) for distance in DISTANCES)
    return {name: _figures(part, part[part["known"]]) for name, part in parts if len(part)}


MEASURES = (
    Measure(
        name="neighbour",
        about="other things: geometric mean of p / p0",
        better="high",
        suite="quick",
        run=neighbours,
    ),
)
