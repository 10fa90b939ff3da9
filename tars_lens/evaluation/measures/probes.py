"""Probes of every kind that asks for the concept: what is left of each, and residual knowledge."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from tars_lens.common.errors import TarsError
from tars_lens.evaluation import intervals
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.measure import Measure, Result
from tars_lens.evaluation.probes import ERASED
from tars_lens.evaluation.suites import SuiteName

_COLUMNS = ["p_after", "p_before", "chance"]


def kind_measure(
    kind: str, about: str, *, suite: SuiteName = "quick", better: Any = "low"
) -> Measure:
    """The measure of one kind of probe.

    Its headline is the share of the base's probability that is left: `kept` of `intervals`.
    """
    return Measure(
        name=kind,
        about=about,
        better=better,
        suite=suite,
        run=partial(_kind, kind),
        controls={"quick": "all" if kind in _EVERYWHERE else "blocked", "full": "all"},
    )


def residual_knowledge(context: Context) -> Result:
    """`RK = (s(f) - chance) / (s(f0) - chance)` over forward and reverse probes together."""
    known = _frame(pd.concat([context.known("forward"), context.known("reverse")]))
    values = known[_COLUMNS].to_numpy(float)
    figures = {
        "residual": _figure(values, intervals.chance_corrected),
        "known": len(known),
        "concepts": {
            str(name): _figure(part[_COLUMNS].to_numpy(float), intervals.chance_corrected)
            for name, part in known.groupby("concept", sort=False)
        },
    }
    interval = intervals.bootstrap(
        values,
        intervals.chance_corrected,
        seed=context.seed,
        resamples=context.suite.resamples,
    )
    return Result("residual_knowledge", "residual", figures, interval, known)


def _kind(kind: str, context: Context) -> Result:
    every, known = context.answers(kind), context.known(kind)
    _check_finite("base", every["prompt"], every["p_before"])
    _check_finite(context.subject.name, known["prompt"], known["p_after"])
    values = known[_COLUMNS].to_numpy(float)
    figures = {
        "kept": _figure(values, intervals.kept),
        **_figures(every, known),
        "ways": {
            str(way): _figure(part[_COLUMNS].to_numpy(float), intervals.kept)
            for way, part in known.groupby("way", sort=False)
            if way
        },
        "concepts": {
            str(name): _figures(every[every["concept"] == name], part)
            for name, part in known.groupby("concept", sort=False)
        },
    }
    interval = intervals.bootstrap(
        values, intervals.kept, seed=context.seed, resamples=context.suite.resamples
    )
    return Result(kind, "kept", figures, interval, _frame(every))


def _check_finite(model: str, prompts: pd.Series, values: pd.Series) -> None:
    """Refuses a model whose answers are no numbers, which no figure could be made of.

    Not where answers are read: a fine-tuning that diverges (`relearning`, in float16) is a result.
    """
    broken = prompts[values.isna()]
    if len(broken):
        raise TarsError(
            f"the model {model!r} gives no finite probability after "
            f"{str(broken.iloc[0])!r}: its weights have NaN or infinite numbers, or its "
            "activations are too large for its dtype. Check its weights, or give them as float32."
        )


def _figures(every: pd.DataFrame, known: pd.DataFrame) -> dict[str, Any]:
    worst = known.loc[known["p_after"].idxmax()] if len(known) else None
    return {
        "n": len(every),
        "known": len(known),
        "set_phrases": int((every["known"] & every["set_phrase"]).sum()),
        "before_mean": _mean(known["p_before"]),
        "after_mean": _mean(known["p_after"]),
        "after_max": None if worst is None else float(worst["p_after"]),
        "worst": None if worst is None else str(worst["prompt"]),
        "erased": _mean((known["p_after"] <= ERASED).astype(float)),
        "said_before": int(known["top_before"].sum()),
        "said_after": int(known["top_after"].sum()),
        "said_substitute": int(known["top_chance"].sum()),
        "said_after_own": int((known["top_after"] & ~known["top_chance"]).sum()),
    }


def _mean(values: pd.Series) -> float | None:
    return intervals.number(values.mean()) if len(values) else None


def _figure(values: np.ndarray, statistic: intervals.Statistic) -> float | None:
    return intervals.number(statistic(values)) if len(values) else None


def _frame(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.reset_index(drop=True)


_EVERYWHERE = ("forward", "reverse", "alias")

MEASURES = (
    kind_measure("forward", "description to name: share of p kept"),
    kind_measure("reverse", "name to attribute: share of p above chance kept"),
    kind_measure("paraphrase", "facts in other settings: share of p kept"),
    kind_measure("alias", "by the concept's other names: share of p kept"),
    kind_measure("multi_hop", "a description in place of the name: share of p kept"),
    kind_measure("multilingual", "in languages that weren't targeted: share of p kept"),
    kind_measure("hint", "after further descriptions: share of p kept"),
    kind_measure(
        "reading", "the answer stands in the text: share of p kept (not a leak)", better="high"
    ),
    Measure(
        name="residual_knowledge",
        about="RK over forward and reverse, chance corrected: 1 is the base, 0 is chance",
        better="low",
        suite="quick",
        run=residual_knowledge,
    ),
)
