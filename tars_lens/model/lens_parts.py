"""What the residual stream and a logit are made of: attention output by head, norms held still."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.model import lens_checks
from tars_lens.model.lens import Lens


class HeldNorm(NamedTuple):
    """A norm with the scale of one run held still, which makes it linear.

    `norm(x) = (x - mean x) / scale * gain + bias`; an RMSNorm takes no mean out and has no bias.

    Attributes:
        inverse_scale: `1 / scale` of each row, in float64.
        gain: `1 + weight` where the architecture stores an offset.
        bias: Zero where there is none.
        centres: Whether the mean is taken out.
    """

    inverse_scale: Float[Tensor, " rows"]
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centres: bool

    def pulled_back(
        self, direction: Float[Tensor, "rows d_model"]
    ) -> Float[Tensor, "rows d_model"]:
        """What to multiply the norm's input with for its part in `norm(x) @ direction`."""
        pulled = direction * self.gain
        if self.centres:
            pulled = pulled - pulled.mean(dim=-1, keepdim=True)
        return pulled * self.inverse_scale[:, None]


def attention_output(
    lens: Lens, layer: int
) -> tuple[Float[Tensor, "heads d_head d_model"], Float[Tensor, " d_model"] | None]:
    """The output weights of a layer's heads, and their common bias where there is one.

    Raises:
        TarsError: The architecture doesn't show them by head.
    """
    attention = lens.model.blocks[layer].attn
    weights = lens_checks.weight(attention, "W_O")
    if weights is None or weights.ndim != 3:
        raise TarsError(
            f"layer {layer} of {lens.name} doesn't show its attention's output weights by head, "
            "so it can't be taken apart. Choose a model with plain multi-head attention."
        )
    bias = lens_checks.weight(attention, "b_O")
    return weights.detach(), None if bias is None else bias.detach()


def unembedding_bias(lens: Lens) -> Float[Tensor, " d_vocab"] | None:
    """The bias of the logits, where the model has one."""
    found = lens_checks.weight(lens.model.unembed, "b_U")
    return None if found is None else found.detach()


@torch.no_grad()
def final_normed(lens: Lens, rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
    """Rows of the residual stream after the final norm, in the model's dtype."""
    return lens.model.ln_final(rows.to(lens.dtype)[None])[0]


def final_norm_weights(
    lens: Lens,
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    """The gain and the bias of the final norm, in float64; see `HeldNorm`."""
    return _weights(lens, lens.model.ln_final)


def held_final_norm(lens: Lens, rows: Float[Tensor, "rows d_model"]) -> HeldNorm:
    """The final norm at the scale that it gives these rows."""
    return _held(lens, lens.model.ln_final, rows)


def held_post_norm(
    lens: Lens, layer: int, part: str, rows: Float[Tensor, "rows d_model"]
) -> HeldNorm | None:
    """The norm after a layer's `attention` or `mlp` (Gemma 2 and 3), or `None`.

    Args:
        lens: The model.
        layer: Which layer.
        part: `attention` or `mlp`.
        rows: What it takes in, which sets its scale.
    """
    name = {"attention": "ln1_post", "mlp": "ln2_post"}[part]
    norm = lens_checks.submodule(lens.model.blocks[layer], name)
    return None if norm is None else _held(lens, norm, rows)


@torch.no_grad()
def _held(lens: Lens, norm: Any, rows: Float[Tensor, "rows d_model"]) -> HeldNorm:
    """Reads the scale off what the norm makes of the rows, whatever its epsilon and its offset."""
    gain, shift = _weights(lens, norm)
    out = norm(rows.to(lens.dtype)[None])[0].double() - shift
    unscaled = rows.to(lens.dtype).double()
    if lens.centres:
        unscaled = unscaled - unscaled.mean(dim=-1, keepdim=True)
    unscaled = unscaled * gain
    inverse = (out * unscaled).sum(dim=-1) / unscaled.square().sum(dim=-1)
    return HeldNorm(inverse, gain, shift, lens.centres)


def _weights(lens: Lens, norm: Any) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    gain = lens.norm_gain(norm).detach().to(torch.float64, copy=True)
    bias = lens_checks.weight(norm, "b")
    bias = lens_checks.weight(norm, "bias") if bias is None else bias
    return gain, torch.zeros_like(gain) if bias is None else bias.detach().double()
