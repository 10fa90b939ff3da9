"""Directional ablation (Arditi et al., arXiv 2406.11717), with the direction out of the weights."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.evaluation.controls import own_unembedding
from tars_lens.experiments.rivals.base import Edit, recorded
from tars_lens.experiments.rivals.choosing import (
    at_last,
    depths,
    forward_prompts,
    gentlest,
    other_prompts,
    unit,
)
from tars_lens.model import lens_checks
from tars_lens.model.lens import Lens, Point
from tars_lens.model.lens_parts import attention_output
from tars_lens.text.windows import Windows

_DEPTHS = (0.8, 0.6, 0.4)


def ablation(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """`W' = W - W r r^T` for every matrix that writes to the stream.

    `r` is the difference in means of the stream at the last token, between prompts that lead to
    the concept and prompts that don't, at the layer which leaves least on validation prompts.
    """
    layers = dict.fromkeys(depths(lens, share)[0] for share in _DEPTHS)
    return gentlest(
        lens, concept, (projected_out(lens, direction(lens, concept, k)) for k in layers)
    )


def direction(lens: Lens, concept: Concept, layer: int) -> Float[Tensor, " d_model"]:
    """The difference in means after a layer, of norm 1."""
    point = Point("resid_post", layer)
    own = at_last(lens, forward_prompts(concept), point).mean(dim=0)
    return unit(own - at_last(lens, other_prompts(concept), point).mean(dim=0))


def projected_out(lens: Lens, towards: Float[Tensor, " d_model"]) -> Edit:
    """Nothing can write along a direction any more.

    The unembedding, which reads the stream, is left as it is where it is tied to the embedding.
    """

    @torch.no_grad()
    def change() -> None:
        for rows, gain in _writes(lens):
            along = unit(towards if gain is None else towards * gain.float())
            values = rows.float()
            rows.copy_(values - (values @ along)[..., None] * along)

    return recorded(lens, change, within=own_unembedding)


def _writes(lens: Lens) -> Iterator[tuple[Float[Tensor, "... d_model"], Tensor | None]]:
    """Live views of all that is added to the stream, each with the gain of a norm in between."""
    for part, name in (("embed", "W_E"), ("pos_embed", "W_pos")):
        module = lens_checks.submodule(lens.model, part)
        found = None if module is None else lens_checks.weight(module, name)
        if found is not None:
            yield found.detach(), None
    for layer in range(lens.n_layers):
        norm = lens_checks.submodule(lens.model.blocks[layer], "ln1_post")
        gains = (None if norm is None else lens.norm_gain(norm), lens.post_norm_gain(layer))
        parts = (
            attention_output(lens, layer),
            (lens.vectors(layer, "out"), lens.bias(layer, "out")),
        )
        for gain, written in zip(gains, parts, strict=True):
            yield from ((values, gain) for values in written if values is not None)
