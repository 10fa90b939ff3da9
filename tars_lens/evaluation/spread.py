"""How many values are spread, as tables that are small enough to keep and to draw from."""

import numpy as np
import pandas as pd
from jaxtyping import Bool

CHANCE = "chance"
"""The `source` of the null's rows in `cosine_frame`."""

_DECADES = 9


def kl_histogram(
    values: pd.Series, elsewhere: pd.Series | Bool[np.ndarray, " positions"] | None = None
) -> pd.DataFrame:
    """Counts of KL values in eight bins a decade.

    Args:
        values: Nats, one a position; all below 1e-9 (rounding) count in the first bin.
        elsewhere: Whether the position's text names no removed concept.

    Returns:
        Columns bin_low, bin_high, count and, with `elsewhere`, elsewhere_count.
    """
    low = 10.0**-_DECADES
    clipped = values.astype(float).clip(lower=low)
    top = max(float(np.ceil(np.log10(clipped.max()))), 0.0) if len(clipped) else 0.0
    edges = np.logspace(-_DECADES, top, round((top + _DECADES) * 8) + 1)
    counted = np.histogram(clipped.clip(upper=edges[-1]), edges)[0]
    frame = pd.DataFrame({"bin_low": edges[:-1], "bin_high": edges[1:], "count": counted})
    frame.loc[0, "bin_low"] = 0.0
    if elsewhere is not None:
        chosen = clipped[elsewhere.astype(bool)].clip(upper=edges[-1])
        frame["elsewhere_count"] = np.histogram(chosen, edges)[0]
    return frame


def cosine_frame(ranked: pd.DataFrame, null: pd.DataFrame, *, source: str) -> pd.DataFrame:
    """The table of `cosine_distribution`, small enough to keep.

    Args:
        ranked: Of `rank`, all vectors: cosine.
        null: `Null.quantiles`: quantile, cosine.
        source: Whose vector it is.

    Returns:
        Columns source, quantile, cosine, vectors (how many the row's source has).
    """
    cosines = np.sort(ranked["cosine"].to_numpy(dtype=float))
    shares = np.geomspace(0.5, 1 / max(len(cosines), 2), 60)
    places = np.minimum(len(cosines) - 1, ((1 - shares) * len(cosines)).astype(int))
    own = pd.DataFrame({"quantile": 1 - shares, "cosine": cosines[places]})
    frames = [own.assign(source=source), null[["quantile", "cosine"]].assign(source=CHANCE)]
    found = pd.concat(frames, ignore_index=True).assign(vectors=len(cosines))
    return found[["source", "quantile", "cosine", "vectors"]]
