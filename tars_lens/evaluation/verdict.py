"""One number of four, and the four beside it."""

import math
from collections.abc import Mapping
from typing import Any

from tars_lens.evaluation.measure import Result

PARTS = ("erasure", "specificity", "utility", "fluency")


def verdict(results: Mapping[str, Result]) -> dict[str, Any]:
    """The harmonic mean of erasure, specificity, utility and fluency; any zero gives zero.

    Erasure is `1 - RK` over forward and reverse probes, specificity the share of neighbours kept,
    utility `exp(-KL mean)` on plain text. A subject whose fluency wasn't measured (a control in
    `quick`) has the mean of the other three.

    Returns:
        `score`, the parts, and `parts`: the names of those that it is made of. `None` for a part
        that could not be measured; without erasure, specificity or utility there is no score.
    """
    found = {
        "erasure": _inverse(_value(results, "residual_knowledge")),
        "specificity": _value(results, "neighbour"),
        "utility": _utility(_value(results, "wikipedia")),
        "fluency": _value(results, "fluency"),
    }
    used = [name for name in PARTS if name != "fluency" or "fluency" in results]
    values = [found[name] for name in used]
    return {"score": harmonic_mean(values), **found, "parts": used}


def harmonic_mean(values: list[float | None]) -> float | None:
    """Of numbers from 0 to 1; `None` where one is missing, 0 where one is 0."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    if min(known) <= 0:
        return 0.0
    return len(known) / sum(1 / value for value in known)


def _value(results: Mapping[str, Result], name: str) -> float | None:
    return results[name].value if name in results else None


def _inverse(residual: float | None) -> float | None:
    return None if residual is None else 1 - min(1.0, max(0.0, residual))


def _utility(kl: float | None) -> float | None:
    return None if kl is None else math.exp(-kl)
