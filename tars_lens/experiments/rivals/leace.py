"""LEACE (Belrose et al., arXiv 2306.03819): concept scrubbing, layer after layer."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.experiments.rivals.base import Edit, extra
from tars_lens.experiments.rivals.choosing import forward_prompts, other_prompts
from tars_lens.model.lens import Batch, Lens, Point
from tars_lens.text.windows import Windows

PLAIN_WINDOWS = 64  # fewer positions than dimensions would say little of a covariance
_STRIDE = 8  # neighbouring positions of a text say much the same of a covariance


def leace(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """The least change of the stream after which no linear reader tells the concept's prompts.

    Positives are the last tokens of prompts that lead to the concept or from it, negatives those
    of near and unrelated prompts, and plain text without its first token, whose stream is like no
    other. The eraser of a layer is fitted to streams that those before it have erased, as the
    paper's concept scrubbing has it; none stands after the last layer. It is no edit of weights:
    the stream is mapped as it enters a layer, after the erasers of earlier concepts.
    """
    package = extra("leace")
    own = [*forward_prompts(concept), *(p.prompt for p in concept.validation.reverse)]
    others = other_prompts(concept)
    batch = lens.prompts([*own, *others])
    plain = windows.statistics[:PLAIN_WINDOWS]
    erasers: list[Any] = []
    left: list[Tensor | None] = [None, None]  # what the layer before hands out, not yet erased
    with ExitStack() as stack:
        for layer in range(1, lens.n_layers):
            runs = [
                _entering(lens, ids, layer, stream)
                for ids, stream in zip((batch.ids, plain), left, strict=True)
            ]
            left = [run.left for run in runs]
            x, z = _labelled([run.entering for run in runs], batch, len(own))
            # by the default tolerance a rare class's covariance with the stream passes for none
            erasers.append(package.LeaceEraser.fit(x, z, svd_tol=1e-4))
            stack.enter_context(_held(lens, layer, erasers[-1]))
    return erased_with(erasers)


def erased_with(erasers: list[Any]) -> Edit:
    """Maps the stream after layers 0, 1, ... as it enters the next one."""

    @contextmanager
    def held(base: Lens) -> Iterator[Lens]:
        with ExitStack() as stack:
            for layer, eraser in enumerate(erasers, start=1):
                stack.enter_context(_held(base, layer, eraser))
            yield base

    return held


@contextmanager
def _held(lens: Lens, layer: int, eraser: Any) -> Iterator[None]:
    """Maps the stream as it enters a layer, after what is held there already."""
    handle = lens.model.blocks[layer].register_forward_pre_hook(_erasing(eraser))
    try:
        yield
    finally:
        handle.remove()


class _Run(NamedTuple):
    """The stream between two layers: as the first leaves it, and as the second reads it."""

    left: Float[Tensor, "batch pos d_model"]
    entering: Float[Tensor, "batch pos d_model"]


def _entering(lens: Lens, ids: Tensor, layer: int, stream: Tensor | None) -> _Run:
    """Runs one layer more, from what the layer before that one left."""
    points = [Point("resid_post", layer - 1), Point("resid_pre", layer)]
    resume = None if stream is None else (layer - 1, stream)
    found = lens.capture(ids, points, resume=resume)
    return _Run(*(found[point] for point in points))


def _labelled(
    streams: list[Any], batch: Batch, own: int
) -> tuple[Float[Tensor, "samples d_model"], Float[Tensor, " samples"]]:
    prompts, plain = streams
    last = prompts[torch.arange(len(prompts), device=prompts.device), batch.last]
    text = plain[:, 1::_STRIDE].flatten(0, 1)
    x = torch.cat([last, text]).float()
    z = torch.zeros(len(x), device=x.device)
    z[:own] = 1
    return x, z


def _erasing(eraser: Any) -> Any:
    def hook(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        stream, *more = inputs
        return (eraser(stream.float()).to(stream.dtype), *more)

    return hook
