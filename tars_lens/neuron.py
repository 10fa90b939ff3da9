"""A neuron that reads a concept and writes its reversal: the rows to put into a host."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.discriminant import Discriminant
from tars_lens.lens import Lens, Role
from tars_lens.neutral import Neutral
from tars_lens.weights import Edits, Rows, joined

GAIN = 64.0
"""Pre-activation at score 1: high enough that the neuron is silent below a threshold of 0.15.

At 16 the gate stands at -2.8 where the score is 0, and silu of that writes a hundredth of the
stream's norm on all text: five concepts then had a median KL of 0.0026 (SmolLM2-135M).
"""

_POST_NORM_RIDGE = 0.05

Unit = Literal["linear", "squared"]
"""How the activation grows with the score: `linear` for a late write, `squared` for an early."""


def activation_at_one(lens: Lens, unit: Unit) -> float:
    """The neuron's activation where the discriminant's score is 1."""
    return GAIN * GAIN if lens.gated and unit == "squared" else GAIN


def reading_rows(
    lens: Lens,
    layer: int,
    neuron: int,
    reader: Discriminant,
    *,
    threshold: float,
    unit: Unit,
    gain: float = GAIN,
    beside: Discriminant | None = None,
) -> Edits:
    """The `gate` and `in` rows that make a neuron silent below the threshold and loud at score 1.

    A gated MLP reads through both; without a gate the `in` row reads alone, and the neuron's own
    bias, which stays, is taken out of it. With `beside`, a second reader, the activation of a
    `linear` unit is the product of both scores: the neuron speaks where both are high.
    """
    row = reader.row(threshold=threshold, gain=gain)
    read: dict[Role, Tensor] = {"in": row}
    if lens.gated:
        linear = reader.bias if beside is None else beside.score_row
        read = {"gate": row, "in": row if unit == "squared" else linear}
    return {
        (layer, role): one_row(
            lens, neuron, without_bias(lens, layer, role, neuron, values, reader)
        )
        for role, values in read.items()
    }


def capped_rows(
    lens: Lens,
    layer: int,
    neurons: tuple[int, int],
    reader: Discriminant,
    direction: Float[Tensor, " d_model"],
    *,
    threshold: float,
    cap: float,
    size: float,
    beside: Discriminant | None = None,
) -> Edits:
    """Two neurons that write `-size * direction` at every score above the cap.

    The first is silent below the threshold and grows from there on, as one neuron would; the
    second begins at the cap with the same slope and writes the opposite. A prompt with a high
    score then gets no more than is needed: a write many times as large would swell the residual
    stream, and the final norm would flatten everything else that is said. With `beside` both
    write in proportion to its score.
    """
    first, second = neurons
    slope = (cap - threshold) / (1 - threshold)
    gain = GAIN * (1 - cap) / (1 - threshold)
    at_one = size / slope
    place = (lens, layer)
    return joined(
        [
            reading_rows(
                *(*place, first, reader), threshold=threshold, unit="linear", beside=beside
            ),
            writing_row(*place, first, direction, size=at_one, unit="linear"),
            reading_rows(
                *(*place, second, reader), threshold=cap, unit="linear", gain=gain, beside=beside
            ),
            writing_row(*place, second, -direction, size=at_one, unit="linear"),
        ]
    )


def without_bias(
    lens: Lens,
    layer: int,
    role: Role,
    neuron: int,
    row: Float[Tensor, " d_model"],
    reader: Discriminant,
) -> Float[Tensor, " d_model"]:
    """A read row less what cancels the host's own bias, where the model has biases."""
    bias = lens.bias(layer, role)
    return row if bias is None else row - float(bias[neuron]) * reader.bias


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
    row = -size / activation_at_one(lens, unit) * post_norm_row(lens, layer, direction)
    return {(layer, "out"): one_row(lens, neuron, row)}


def post_norm_row(
    lens: Lens, layer: int, direction: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    """The unit row that ends up as `direction` in the stream, past the MLP's post-norm if any."""
    unit_direction = direction / direction.norm()
    gain = lens.post_norm_gain(layer)
    if gain is None:
        return unit_direction
    # the gains are exactly 0 in places (Gemma-3-270M), so the division is regularised
    square = gain.float().square()
    row = unit_direction * gain.float() / (square + _POST_NORM_RIDGE * square.mean())
    return row / row.norm()


def write_scale(lens: Lens, layer: int, neutral: Neutral) -> float:
    """The natural size of a write: the median residual norm, or MLP output's before a post-norm."""
    plain = lens.post_norm_gain(layer) is None
    return float((neutral.residual_norm if plain else neutral.mlp_norm)[layer])


def one_row(lens: Lens, neuron: int, values: Float[Tensor, " d_model"]) -> Rows:
    """One neuron's row in the model's dtype."""
    return Rows(torch.tensor([neuron], device=lens.device), values[None].to(lens.dtype))
