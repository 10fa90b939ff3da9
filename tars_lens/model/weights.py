"""Weight-editing utilities: rows of MLP weight vectors, written in place and put back exactly."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.model.lens import Lens, Role

Place = tuple[int, Role]
"""A weight matrix by layer and role; its rows are the neurons' vectors."""


class Rows(NamedTuple):
    """Some rows of one weight matrix.

    Attributes:
        neurons: Row indices, each at most once.
        values: One row of weights a neuron.
    """

    neurons: Int[Tensor, " rows"]
    values: Float[Tensor, "rows d_model"]


Edits = Mapping[Place, Rows]
"""Rows by the matrix they stand in."""


def neuron_label(layer: int, neuron: int) -> str:
    """What tables and messages call a neuron, as in `L29N506`."""
    return f"L{layer}N{neuron}"


def read_rows(lens: Lens, place: Place, neurons: Int[Tensor, " rows"]) -> Rows:
    """A copy of some rows as they are now."""
    return Rows(neurons, lens.vectors(*place)[neurons].clone())


@torch.no_grad()
def write_rows(lens: Lens, edits: Edits) -> None:
    """Writes rows into the model, in its dtype: all of them, or none where one doesn't fit.

    Raises:
        TarsError: A neuron that the model doesn't have, one given twice, a wrong width, or a row
            that isn't finite in the model's dtype.
    """
    check_edits(lens, edits)
    for place, rows in edits.items():
        vectors = lens.vectors(*place)
        vectors[rows.neurons] = rows.values.to(vectors.dtype).to(vectors.device)
    torch.clear_autocast_cache()  # which would go on with what stood there before


@contextmanager
def written(lens: Lens, edits: Edits) -> Iterator[None]:
    """Holds `edits` in the model while the block runs, then puts the old rows back bit by bit."""
    check_edits(lens, edits)
    before = {place: read_rows(lens, place, rows.neurons) for place, rows in edits.items()}
    try:
        write_rows(lens, edits)
        yield
    finally:
        write_rows(lens, before)


def joined(parts: Iterable[Edits]) -> Edits:
    """Edits of several neurons as one, matrix by matrix."""
    rows: dict[Place, list[Rows]] = {}
    for edits in parts:
        for place, more in edits.items():
            rows.setdefault(place, []).append(more)
    return {
        place: Rows(torch.cat([r.neurons for r in found]), torch.cat([r.values for r in found]))
        for place, found in rows.items()
    }


def check_edits(lens: Lens, edits: Edits) -> None:
    """Refuses, before anything is written, rows that the model has no place for.

    Raises:
        TarsError: As `write_rows`.
    """
    for place, rows in edits.items():
        _check(lens, place, rows)


def _check(lens: Lens, place: Place, rows: Rows) -> None:
    vectors = lens.vectors(*place)
    count, width = vectors.shape
    label = f"layer {place[0]}, role {place[1]!r}"
    if rows.values.shape != (len(rows.neurons), width):
        raise TarsError(
            f"{label}: {len(rows.neurons)} neurons need rows of width {width}, got values of "
            f"shape {tuple(rows.values.shape)}."
        )
    if not torch.isfinite(rows.values).all():
        raise TarsError(f"{label}: a new row is not finite; nothing was written.")
    cast = rows.values.dtype != vectors.dtype
    if cast and not torch.isfinite(rows.values.to(vectors.dtype)).all():
        raise TarsError(
            f"{label}: a new row is too large for the model's {vectors.dtype}; nothing was "
            "written. Load the model in a wider dtype."
        )
    indices = rows.neurons.tolist()
    if len(set(indices)) != len(indices):
        raise TarsError(f"{label}: a neuron is given twice.")
    if indices and not 0 <= min(indices) <= max(indices) < count:
        raise TarsError(f"{label}: neurons must be 0 to {count - 1}, got up to {max(indices)}.")
