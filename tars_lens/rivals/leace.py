"""LEACE (Belrose et al., arXiv 2306.03819): concept scrubbing, layer after layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept import Concept
from tars_lens.errors import TarsError
from tars_lens.lens import Batch, Lens, Point
from tars_lens.rivals.base import Edit
from tars_lens.rivals.choosing import forward_prompts, other_prompts
from tars_lens.windows import Windows

PLAIN_WINDOWS = 64  # fewer positions than dimensions would say little of a covariance
_STRIDE = 8  # neighbouring positions of a text say much the same of a covariance


def leace(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """The least change of the stream after which no linear reader tells the concept's prompts.

    Positives are the last tokens of prompts that lead to the concept or from it, negatives those
    of near and unrelated prompts, and plain text. The eraser of a layer is fitted to streams that
    those before it have erased, as the paper's concept scrubbing has it; none stands after the
    last layer. It is no edit of weights: the stream is mapped as it enters a layer.
    """
    package = concept_erasure()
    own = [*forward_prompts(concept), *(p.prompt for p in concept.validation.reverse)]
    others = other_prompts(concept)
    batch = lens.prompts([*own, *others])
    plain = windows.statistics[:PLAIN_WINDOWS]
    erasers: list[Any] = []
    streams: list[Tensor | None] = [None, None]
    for layer in range(lens.n_layers - 1):
        streams = [
            _after(lens, ids, layer, stream)
            for ids, stream in zip((batch.ids, plain), streams, strict=True)
        ]
        x, z = _labelled(streams, batch, len(own))
        # the default tolerance would let a rare class's covariance with the stream pass for none
        fitted = package.LeaceEraser.fit(x, z, svd_tol=1e-4)
        erasers.append(fitted)
        streams = [fitted(stream) for stream in streams]
    return erased_with(erasers)


def erased_with(erasers: list[Any]) -> Edit:
    """Maps the stream after layers 0, 1, ... as it enters the next one."""

    @contextmanager
    def held(base: Lens) -> Iterator[Lens]:
        blocks = list(base.model.blocks)[1:]
        handles = [
            block.register_forward_pre_hook(_erasing(eraser))
            for block, eraser in zip(blocks, erasers, strict=True)
        ]
        try:
            yield base
        finally:
            for handle in handles:
                handle.remove()

    return held


def concept_erasure() -> Any:
    """The package.

    Raises:
        TarsError: It isn't installed.
    """
    try:
        import concept_erasure as package
    except ImportError as error:
        raise TarsError(
            "the rival 'leace' needs the concept-erasure package: pip install 'tars-lens[leace]', "
            "or name other rivals (--rivals)."
        ) from error
    return package


def _after(lens: Lens, ids: Tensor, layer: int, stream: Tensor | None) -> Tensor:
    """The stream after a layer, from the erased stream before it."""
    point = Point("resid_post", layer)
    resume = None if stream is None else (layer, stream)
    return lens.capture(ids, [point], resume=resume)[point]


def _labelled(
    streams: list[Any], batch: Batch, own: int
) -> tuple[Float[Tensor, "samples d_model"], Float[Tensor, " samples"]]:
    prompts, plain = streams
    last = prompts[torch.arange(len(prompts), device=prompts.device), batch.last]
    text = plain[:, ::_STRIDE].flatten(0, 1)
    x = torch.cat([last, text]).float()
    z = torch.zeros(len(x), device=x.device)
    z[:own] = 1
    return x, z


def _erasing(eraser: Any) -> Any:
    def hook(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        stream, *more = inputs
        return (eraser(stream.float()).to(stream.dtype), *more)

    return hook
