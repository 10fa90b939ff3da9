"""Bootstrap intervals, and the statistics that they are taken of."""

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Takes `[..., items, columns]` and gives `[...]`."""


def bootstrap(
    values: np.ndarray, statistic: Statistic, *, seed: int, resamples: int = 1000
) -> tuple[float, float] | None:
    """The 2.5th and 97.5th percentile of a statistic over resampled items.

    Args:
        values: `[items, columns]`.
        statistic: What is estimated.
        seed: Of the draws.
        resamples: How many draws.

    Returns:
        `None` for fewer than two items, which say nothing of how much items differ.
    """
    if len(values) < 2:
        return None
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    found = statistic(values[draws])
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def mean(values: np.ndarray) -> np.ndarray:
    """The mean of the first column."""
    return np.asarray(values[..., 0].mean(axis=-1))


def kept(values: np.ndarray) -> np.ndarray:
    """`sum max(after - chance, 0) / sum (before - chance)` of columns after, before, chance."""
    above = np.clip(values[..., 0] - values[..., 2], 0, None).sum(axis=-1)
    span = (values[..., 1] - values[..., 2]).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(span > 0, above / span, np.nan)


def chance_corrected(values: np.ndarray) -> np.ndarray:
    """`RK = (s(f) - chance) / (s(f0) - chance)` of columns after, before, chance."""
    above = (values[..., 0] - values[..., 2]).mean(axis=-1)
    span = (values[..., 1] - values[..., 2]).mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(span > 0, above / span, np.nan)


def geometric_mean(values: np.ndarray) -> np.ndarray:
    """The geometric mean of `after / before`, capped at 1; columns after, before."""
    ratio = np.clip(values[..., 0] / values[..., 1], 1e-12, 1)
    return np.asarray(np.exp(np.log(ratio).mean(axis=-1)))


def number(value: float | np.floating | np.ndarray) -> float | None:
    """A plain float, or `None` for what is not a number."""
    found = float(value)
    return found if np.isfinite(found) else None
