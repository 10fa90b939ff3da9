"""SNMF-style reflection: features of the MLPs (Shafran et al., arXiv 2506.10920), mirrored."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.experiments.rivals.base import Edit, recorded
from tars_lens.experiments.rivals.choosing import (
    at_last,
    depths,
    forward_prompts,
    gentlest,
    other_prompts,
    unit,
)
from tars_lens.model.lens import Lens, Point
from tars_lens.text.windows import Windows

_STRENGTHS = (1.0, 2.0, 4.0)
_FROM, _TO = 0.5, 1.0
_FEATURES = 8
_ROUNDS = 100


def reflection(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """`w - d (w.f) f` for the out vectors `w` of the upper half's layers.

    `f` is the direction that the concept's feature of a layer writes to; a strength `d` of 1 takes
    it out, 2 mirrors it.
    """
    first, last = depths(lens, _FROM)[0], depths(lens, _TO)[-1]
    found = {k: feature(lens, concept, k, seed) for k in range(first, last + 1)}
    return gentlest(lens, concept, _edits(lens, found))


def feature(lens: Lens, concept: Concept, layer: int, seed: int) -> Float[Tensor, " d_model"]:
    """The direction written by the feature that tells the concept's prompts from others best."""
    point = Point("mlp_post", layer)
    own = at_last(lens, forward_prompts(concept), point)
    values = torch.cat([own, at_last(lens, other_prompts(concept), point)])
    features, parts = semi_nmf(values, min(_FEATURES, len(values) - 1), seed)
    share = parts * features.norm(dim=1)
    best = int((share[: len(own)].mean(dim=0) - share[len(own) :].mean(dim=0)).argmax())
    return unit(features[best] @ lens.vectors(layer, "out").float())


def semi_nmf(
    values: Float[Tensor, "samples neurons"], rank: int, seed: int
) -> tuple[Float[Tensor, "rank neurons"], Float[Tensor, "samples rank"]]:
    """`values = parts @ features` with parts that are not negative, by multiplicative updates.

    Ding, Li and Jordan (2010): the features by least squares, then the parts, in turns; no round
    makes the error larger.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = (torch.rand(len(values), rank, generator=generator) + 0.1).to(values)
    features = _least_squares(parts, values)
    for _ in range(_ROUNDS):
        drawn, gram = values @ features.T, features @ features.T
        up = _positive(drawn) + parts @ _positive(-gram)
        down = _positive(-drawn) + parts @ _positive(gram)
        parts = parts * (up / down.clamp(min=1e-12)).sqrt()
        features = _least_squares(parts, values)
    return features, parts


def reflected(
    rows: Float[Tensor, "rows d_model"], towards: Float[Tensor, " d_model"], strength: float
) -> Float[Tensor, "rows d_model"]:
    """`w - d (w.f) f`, in float32."""
    along = unit(towards)
    return rows.float() - strength * (rows.float() @ along)[:, None] * along


def _edits(lens: Lens, found: dict[int, Float[Tensor, " d_model"]]) -> Iterator[Edit]:
    for strength in _STRENGTHS:

        def change(strength: float = strength) -> None:
            for layer, towards in found.items():
                rows = lens.vectors(layer, "out")
                rows.copy_(reflected(rows, towards, strength))

        yield recorded(lens, change)


def _least_squares(
    parts: Float[Tensor, "samples rank"], values: Float[Tensor, "samples neurons"]
) -> Float[Tensor, "rank neurons"]:
    return torch.linalg.pinv(parts) @ values


def _positive(values: Tensor) -> Tensor:
    return values.clamp(min=0)
