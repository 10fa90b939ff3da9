"""A neuron that reads a concept and writes its reversal: the rows to put into a host."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.discriminant import Discriminant
from tars_lens.lens import Lens
from tars_lens.weights import Edits, Rows

GAIN = 16.0
"""Pre-activation at score 1: high enough that silu and gelu are straight there."""

_POST_NORM_RIDGE = 0.05

Unit = Literal["linear", "squared"]
"""How the activation grows with the score: `linear` for a late write, `squared` for an early."""


def activation_at_one(lens: Lens, unit: Unit) -> float:
    """The neuron's activation where the discriminant's score is 1."""
    return GAIN * GAIN if lens.gated and unit == "squared" else GAIN


def reading_rows(
    lens: Lens, layer: int, neuron: int, reader: Discriminant, *, threshold: float, unit: Unit
) -> Edits:
    """The `gate` and `in` rows that make a neuron silent below the threshold and loud at score 1.

    A gated MLP reads through both; without a gate the `in` row reads alone, and the neuron's own
    bias, which stays, is taken out of it.
    """
    row = reader.row(threshold=threshold, gain=GAIN)
    if lens.gated:
        other = row if unit == "squared" else reader.bias
        rows = {"gate": row, "in": other}
    else:
        rows = {"in": row}
    for role in rows:
        bias = lens.bias(layer, role)
        if bias is not None:
            rows[role] = rows[role] - float(bias[neuron]) * reader.bias
    return {(layer, role): _one(lens, neuron, values) for role, values in rows.items()}


def writing_row(
    lens: Lens,
    layer: int,
    neuron: int,
    direction: Float[Tensor, " d_model"],
    *,
    size: float,
    unit: Unit,
) -> Edits:
    """The `out` row that writes `-size * direction` where the score is 1.

    Where the MLP's output is normed again (Gemma), the row is divided by that norm's gain;
    `size` is then in units of the MLP's output before the norm.
    """
    unit_direction = direction / direction.norm()
    gain = lens.post_norm_gain(layer)
    if gain is not None:
        # the gains are exactly 0 in places (Gemma-3-270M), so the division is regularised
        square = gain.float().square()
        unit_direction = unit_direction * gain.float() / (square + _POST_NORM_RIDGE * square.mean())
        unit_direction = unit_direction / unit_direction.norm()
    row = -size / activation_at_one(lens, unit) * unit_direction
    return {(layer, "out"): _one(lens, neuron, row)}


def write_scale(
    lens: Lens, layer: int, residual: Float[Tensor, " layers"], mlp: Float[Tensor, " layers"]
) -> float:
    """The natural size of a write: the median residual norm, or MLP output's before a post-norm."""
    return float((residual if lens.post_norm_gain(layer) is None else mlp)[layer])


def _one(lens: Lens, neuron: int, values: Float[Tensor, " d_model"]) -> Rows:
    return Rows(torch.tensor([neuron], device=lens.device), values[None].to(lens.dtype))
