"""The parts of a logit, by one run: weights as they stand, norms held at that run's scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tars_lens.model.lens import Batch, Lens, Point, Site
from tars_lens.model.lens_parts import (
    HeldNorm,
    attention_output,
    final_norm_weights,
    held_final_norm,
    held_post_norm,
    unembedding_bias,
)


class Reader(NamedTuple):
    """What reads one token's logit off the final residual stream of each prompt, in float64.

    Attributes:
        rows: The token's row of the unembedding, `[batch, d_model]`.
        gain: The final norm's, `[d_model]`.
        shift: The final norm's bias, `[d_model]`.
        bias: The unembedding's bias of the token, `[batch]`.
    """

    rows: Float64[Tensor, "batch d_model"]
    gain: Float64[Tensor, " d_model"]
    shift: Float64[Tensor, " d_model"]
    bias: Float64[Tensor, " batch"]


def reader_of(lens: Lens, tokens: Sequence[int], *, centred: bool = False) -> Reader:
    """The model's own reader of some tokens, one a prompt, as its weights stand now.

    Args:
        lens: The model.
        tokens: The token of each prompt.
        centred: Read the logit less the mean of all logits, which no common shift of them moves.
    """
    gain, shift = final_norm_weights(lens)
    rows, bias = lens.unembedding[:, list(tokens)].T.double(), unembedding_bias(lens)
    constant = rows.new_zeros(len(rows)) if bias is None else bias[list(tokens)].double()
    if centred:
        rows = rows - lens.unembedding.mean(dim=1).double()
        constant = constant if bias is None else constant - bias.double().mean()
    return Reader(rows, gain, shift, constant)


@dataclass(frozen=True)
class Parts:
    """What each part adds to one token's logit at the last token of each prompt, in float64.

    Attributes:
        logit: The model's own, before a soft cap.
        mean_logit: The mean of all the model's own logits, likewise.
        embedding: Of the token and, where the model has one, its position.
        attention: What each layer's attention writes, its bias among it.
        heads: The same by head.
        attention_bias: The heads' common bias, where the model has one.
        mlp: What each layer's MLP writes, its bias among it.
        neurons: The same by neuron.
        mlp_bias: The bias of the MLP's output, where the model has one.
        bias: Of the final norm and of the unembedding.
        inverse_scale: One over the final norm's scale, at which all of them are held.
    """

    logit: Float64[Tensor, " batch"]
    mean_logit: Float64[Tensor, " batch"]
    embedding: Float64[Tensor, " batch"]
    attention: Float64[Tensor, "layers batch"]
    heads: Float64[Tensor, "layers batch heads"]
    attention_bias: Float64[Tensor, "layers batch"] | None
    mlp: Float64[Tensor, "layers batch"]
    neurons: Float64[Tensor, "layers batch d_mlp"]
    mlp_bias: Float64[Tensor, "layers batch"] | None
    bias: Float64[Tensor, " batch"]
    inverse_scale: Float64[Tensor, " batch"]

    @property
    def coarse_error(self) -> Float64[Tensor, " batch"]:
        """Embedding, attention, MLP and the last bias together, less the logit."""
        blocks = self.attention.sum(dim=0) + self.mlp.sum(dim=0)
        return self.embedding + blocks + self.bias - self.logit

    @property
    def fine_error(self) -> Float64[Tensor, " batch"]:
        """Embedding, heads, neurons and all biases together, less the logit."""
        total = self.embedding + self.bias - self.logit
        total = total + self.heads.sum(dim=(0, 2)) + self.neurons.sum(dim=(0, 2))
        biases = (b for b in (self.attention_bias, self.mlp_bias) if b is not None)
        return total + sum(bias.sum(dim=0) for bias in biases)

    @property
    def size(self) -> Float64[Tensor, " batch"]:
        """The sum of the parts' magnitudes, which rounding grows with."""
        layers = self.attention.abs().sum(dim=0) + self.mlp.abs().sum(dim=0)
        return self.embedding.abs() + layers + self.bias.abs()


@torch.no_grad()
def logit_parts(
    lens: Lens, batch: Batch, tokens: Sequence[int], reader: Reader | None = None
) -> Parts:
    """Runs the model as it stands once, and takes one token's logit after each prompt apart.

    Args:
        lens: The model.
        batch: Prompts.
        tokens: The token of each prompt.
        reader: Read the stream with these weights; with the model's own by default.
    """
    reader = reader or reader_of(lens, tokens)
    layers = range(lens.n_layers)
    start, end = Point("resid_pre", 0), Point("resid_post", lens.n_layers - 1)
    sites: tuple[Site, ...] = ("attn_z", "attn_out", "mlp_post", "mlp_out")
    points = [Point(site, layer) for layer in layers for site in sites]
    seen = lens.capture(batch.ids, [start, *points, end], positions=batch.last)
    logits = _uncapped(lens, seen[end])
    norm = held_final_norm(lens, seen[end])._replace(gain=reader.gain)
    direction = norm.pulled_back(reader.rows)
    heads, attention_bias = zip(
        *(_by_head(lens, layer, seen[Point("attn_z", layer)], direction) for layer in layers),
        strict=True,
    )
    neurons, mlp_bias = zip(
        *(_by_neuron(lens, layer, seen[Point("mlp_post", layer)], direction) for layer in layers),
        strict=True,
    )
    return Parts(
        logit=logits[torch.arange(len(logits), device=logits.device), list(tokens)],
        mean_logit=logits.mean(dim=1),
        embedding=_dot(seen[start], direction),
        attention=torch.stack([_dot(seen[Point("attn_out", k)], direction) for k in layers]),
        heads=torch.stack(heads),
        attention_bias=_stacked(attention_bias),
        mlp=torch.stack([_dot(seen[Point("mlp_out", k)], direction) for k in layers]),
        neurons=torch.stack(neurons),
        mlp_bias=_stacked(mlp_bias),
        bias=reader.rows @ reader.shift + reader.bias,
        inverse_scale=norm.inverse_scale,
    )


def _by_head(
    lens: Lens,
    layer: int,
    read: Float[Tensor, "batch heads d_head"],
    direction: Float64[Tensor, "batch d_model"],
) -> tuple[Float64[Tensor, "batch heads"], Float64[Tensor, " batch"] | None]:
    weights, bias = attention_output(lens, layer)
    written = torch.einsum("bhe,hem->bhm", read.double(), weights.double())
    whole = written.sum(dim=1) if bias is None else written.sum(dim=1) + bias.double()
    direction = _past(held_post_norm(lens, layer, "attention", whole), direction)
    heads = torch.einsum("bhm,bm->bh", written, direction)
    return heads, None if bias is None else direction @ bias.double()


def _by_neuron(
    lens: Lens,
    layer: int,
    active: Float[Tensor, "batch d_mlp"],
    direction: Float64[Tensor, "batch d_model"],
) -> tuple[Float64[Tensor, "batch d_mlp"], Float64[Tensor, " batch"] | None]:
    rows, bias = lens.vectors(layer, "out"), lens.bias(layer, "out")
    if lens.post_norm_gain(layer) is not None:
        whole = (active @ rows).double()
        whole = whole if bias is None else whole + bias.double()
        direction = _past(held_post_norm(lens, layer, "mlp", whole), direction)
    # in the weights' own float32: in float64 they would be copied, all of them
    parts = active.double() * (direction.to(rows.dtype) @ rows.T).double()
    return parts, None if bias is None else direction @ bias.double()


def _past(
    norm: HeldNorm | None, direction: Float64[Tensor, "batch d_model"]
) -> Float64[Tensor, "batch d_model"]:
    return direction if norm is None else norm.pulled_back(direction)


def _dot(
    values: Float[Tensor, "batch d_model"], direction: Float64[Tensor, "batch d_model"]
) -> Float64[Tensor, " batch"]:
    return (values.double() * direction).sum(dim=-1)


def _uncapped(
    lens: Lens, residual: Float[Tensor, "batch d_model"]
) -> Float64[Tensor, "batch d_vocab"]:
    """The model's own logits, before a soft cap."""
    logits, cap = lens.read_out(residual).double(), lens.logit_cap
    return logits if cap is None else cap * torch.atanh(logits / cap)


def _stacked(
    values: Sequence[Float64[Tensor, " batch"] | None],
) -> Float64[Tensor, "layers batch"] | None:
    found = [value for value in values if value is not None]
    return torch.stack(found) if len(found) == len(values) else None
