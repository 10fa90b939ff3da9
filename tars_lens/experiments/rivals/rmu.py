"""RMU (Li et al., arXiv 2403.03218): representation misdirection for unlearning."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.experiments.rivals.base import Edit, recorded
from tars_lens.experiments.rivals.choosing import depths, unit
from tars_lens.experiments.rivals.facts import Facts, own_facts
from tars_lens.experiments.rivals.training import RETAINED_TOKENS, out_weight, train
from tars_lens.model.lens import Lens
from tars_lens.text.windows import Windows

_DEPTH = 0.5
_STEPS = 80
_RATE = 5e-4
_TIMES = 2.0
_RETAIN = 10.0


def rmu(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """`|h(x_f) - c u|^2 + alpha |h(x_r) - h0(x_r)|^2` on the out vectors of three layers.

    `h` is the stream after the last of them, `u` a random direction, `x_f` the card's facts and
    `x_r` plain text, both without padding and without the first token. Both terms are in units of
    the square of the stream's mean norm, and `c` is twice that norm.
    """
    layer = depths(lens, _DEPTH)[0]
    facts = Facts.of(lens, own_facts(concept))
    text = windows.statistics[:, :RETAINED_TOKENS]
    with torch.no_grad():
        kept = [stream_after(lens, layer, window[None]) for window in text]
        size = stream_after(lens, layer, facts.ids)[facts.read].norm(dim=-1).mean()
    towards = _TIMES * size * control(lens, seed)

    def loss(step: int) -> Tensor:
        here = step % len(text)
        away = (stream_after(lens, layer, facts.ids)[facts.read] - towards).square().sum(dim=-1)
        moved = (stream_after(lens, layer, text[here][None]) - kept[here])[:, 1:]
        return (away.mean() + _RETAIN * moved.square().sum(dim=-1).mean()) / size.square()

    weights = [out_weight(lens, k) for k in range(max(0, layer - 2), layer + 1)]
    return recorded(lens, lambda: train(lens, concept, weights, loss, steps=_STEPS, rate=_RATE))


def control(lens: Lens, seed: int) -> Float[Tensor, " d_model"]:
    """The random direction that the stream of what is to be forgotten is sent to."""
    drawn = torch.rand(lens.d_model, generator=torch.Generator().manual_seed(seed))
    return unit(drawn.to(lens.device))


def stream_after(
    lens: Lens, layer: int, ids: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_model"]:
    """The stream after a layer in float32, with gradients where they are enabled."""
    with _watched(lens.model.blocks[layer]) as seen:
        lens.model(ids, return_type="logits")
    return seen[0].float()


@contextmanager
def _watched(block: Any) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def look(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
