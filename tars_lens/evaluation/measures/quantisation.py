"""Depth by quantisation: whether rounding the weights brings the concept back."""

from functools import partial
from typing import Any

import pandas as pd

from tars_lens.evaluation import intervals
from tars_lens.evaluation.asking import base_answers, subject_answers
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.measure import Measure, Result
from tars_lens.evaluation.restoring import rounded

_KINDS = ("forward", "reverse", "neighbour")
_COLUMNS = ["p_after", "p_before", "chance"]


def quantisation(bits: int, context: Context) -> Result:
    """Residual knowledge over forward and reverse of the rounded subject, against the rounded base.

    Only probes count that the rounded base still has at `p >= 0.05`: rounding to few bits may take
    knowledge away by itself, and that is no merit of the edit. Chance is the rounded base's too,
    and what it half answers by chance is left out beside the set phrases of the unrounded one.
    """
    base = context.base.once(f"rounded {bits}", lambda: _base(bits, context))
    parts = []
    with context.edited() as lens, rounded(lens, bits):
        for kind in _KINDS:
            frame = subject_answers(lens, context.questions(kind), context.base_answers(kind))
            parts.append(frame)
    items = pd.concat(parts, ignore_index=True).drop(columns=["top_before", "top_after"])
    items = items.rename(columns={"p_before": "p_unrounded"})
    items.insert(6, "p_before", base["p_before"])
    items = items[items["known"] & ~items["set_phrase"]].assign(
        chance=base["chance"], set_phrase=base["set_phrase"]
    )
    counted = items[(items["p_before"] >= _LEAST) & ~items["set_phrase"]]
    known = counted[counted["kind"].isin(["forward", "reverse"])]
    near = counted[counted["kind"] == "neighbour"]
    values = known[_COLUMNS].to_numpy(float)
    interval = intervals.bootstrap(
        values,
        intervals.chance_corrected,
        seed=context.seed,
        resamples=context.suite.resamples,
    )
    return Result(f"quantised_{bits}", "residual", _figures(known, near), interval, items)


def _figures(known: pd.DataFrame, near: pd.DataFrame) -> dict[str, Any]:
    values = known[_COLUMNS].to_numpy(float)
    forward = known[known["kind"] == "forward"]
    return {
        "residual": intervals.number(intervals.chance_corrected(values)) if len(known) else None,
        "known": len(known),
        "forward_after_max": float(forward["p_after"].max()) if len(forward) else None,
        "neighbours_kept": intervals.number(
            intervals.geometric_mean(near[["p_after", "p_before"]].to_numpy(float))
        )
        if len(near)
        else None,
        "neighbours_known": len(near),
    }


def _base(bits: int, context: Context) -> pd.DataFrame:
    """What the rounded base says to every question of the kinds, in the order of the tables."""
    questions = [q for kind in _KINDS for q in context.questions(kind)]
    with rounded(context.lens, bits):
        return base_answers(context.lens, questions)


_LEAST = 0.05

MEASURES = tuple(
    Measure(
        name=f"quantised_{bits}",
        about=f"RK with weights rounded to {bits} bits, against the base rounded likewise",
        better="low",
        suite="full",
        run=partial(quantisation, bits),
    )
    for bits in (8, 4)
)
