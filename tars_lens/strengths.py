"""How much a forward neuron writes: the grid of strengths, and the smallest that is enough."""

from collections.abc import Callable

STRENGTHS = tuple(2.0 ** (k / 2) for k in range(-12, 11))
"""Sizes of the forward write, in units of the layer's natural write."""

LARGEST = 2.0**-1.5
"""Of a forward write, in units of the residual's norm.

A larger one swells the stream, and the final norm then scales every other logit down: oxygen's
at twice the norm (SmolLM2-135M) left "Methane consists of carbon and" with a 250th of its hydrogen.
"""

LARGEST_BY_BOTH = 0.5
"""The same where the write is in proportion to how well the description fits: few get all of it."""


def smallest_strength(
    left: Callable[[float], float],
    goal: float,
    *,
    largest: float = STRENGTHS[-1],
    like: float | None = None,
) -> float:
    """The smallest strength of the grid that leaves at most `goal`, by bisection.

    Where none does, that of every fourth that leaves least.

    Args:
        left: What a strength leaves.
        goal: What may be left.
        largest: The largest strength that is tried.
        like: The strength of the grid where to begin.
    """
    strengths = [strength for strength in STRENGTHS if strength <= largest]
    start = len(strengths) - 1 if like is None else strengths.index(like)
    low, high = _bracket(lambda index: left(strengths[index]) <= goal, start, len(strengths) - 1)
    if low > high:
        return min(strengths[::-4], key=left)
    while low < high:
        middle = (low + high) // 2
        if left(strengths[middle]) <= goal:
            high = middle
        else:
            low = middle + 1
    return strengths[high]


def _bracket(enough: Callable[[int], bool], start: int, last: int) -> tuple[int, int]:
    """Between which indices the first lies that is enough; `(last + 1, last)` where none is.

    Goes from `start` by steps that double; where that is the last, halves do better.
    """
    low, high, step = 0, last, 1
    if enough(start):
        high = start
        while low < high < last and enough(at := max(0, high - step)):
            high, step = at, 2 * step
        return (low, high) if high == last or low == high else (at + 1, high)
    low = start + 1
    while low <= last and not enough(at := min(last, low + step - 1)):
        low, step = at + 1, 2 * step
    return (low, at) if low <= last else (last + 1, last)
