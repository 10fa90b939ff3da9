"""A model's parameters, as they are copied, put back and trained, and runs that keep gradients."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tars_lens.common.errors import TarsError
from tars_lens.model import lens_checks
from tars_lens.model.lens import Lens
from tars_lens.model.lens_parts import attention_output
from tars_lens.model.model_state import model_state, span


def copied(lens: Lens, names: Container[str] | None = None) -> dict[str, Tensor]:
    """A copy of every tensor of the model, or of those of some names."""
    return {
        name: tensor.clone()
        for name, tensor in model_state(lens.model)
        if names is None or name in names
    }


def differing(lens: Lens, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of every tensor that is no longer what it was."""
    return {
        name: tensor.clone()
        for name, tensor in model_state(lens.model)
        if not torch.equal(tensor, before[name])
    }


@torch.no_grad()
def put(lens: Lens, values: Mapping[str, Tensor]) -> None:
    """Writes tensors into the model, by name."""
    for name, tensor in model_state(lens.model):
        if name in values:
            tensor.copy_(values[name])


def parameters(lens: Lens) -> list[nn.Parameter]:
    """Every parameter, each once."""
    named = dict(lens.model.named_parameters())
    return [named[name] for name, _ in model_state(lens.model) if name in named]


def out_parameter(lens: Lens, layer: int) -> nn.Parameter:
    """The parameter behind `lens.vectors(layer, "out")`.

    Raises:
        TarsError: The architecture keeps them in no weight of their own.
    """
    wanted = span(lens.vectors(layer, "out"))
    for weight in parameters(lens):
        if span(weight) == wanted:
            return weight
    raise TarsError(
        f"{lens.name} doesn't show the out vectors of layer {layer} as one weight, so they can't "
        "be trained. Name baselines that don't train (--baselines)."
    )


@contextmanager
def trainable(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Asks for gradients of some weights, and leaves them afterwards as they were."""
    wanted = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, want in zip(weights, wanted, strict=True):
            weight.grad = None
            weight.requires_grad_(want)


def logits(lens: Lens, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits at every position in the model's dtype, with gradients where they are enabled."""
    found: Tensor = lens.model(ids, return_type="logits")
    return found


def stream_after(
    lens: Lens, layer: int, ids: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_model"]:
    """The stream after a layer in float32, with gradients where they are enabled."""
    seen: list[Tensor] = []

    def look(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = lens.model.blocks[layer].register_forward_hook(look)
    try:
        logits(lens, ids)
    finally:
        handle.remove()
    return seen[0].float()


@contextmanager
def mapping_stream(lens: Lens, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Maps the stream, in float32, as it enters a layer, after what is held there already."""

    def mapped(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        stream, *more = inputs
        return (change(stream.float()).to(stream.dtype), *more)

    handle = lens.model.blocks[layer].register_forward_pre_hook(mapped)
    try:
        yield
    finally:
        handle.remove()


def stream_writers(lens: Lens) -> Iterator[tuple[Float[Tensor, "... d_model"], Tensor | None]]:
    """Live views of all that is added to the stream, each with the gain of a norm in between.

    Raises:
        TarsError: The architecture doesn't show its attention's output weights by head.
    """
    for part, name in (("embed", "W_E"), ("pos_embed", "W_pos")):
        module = lens_checks.submodule(lens.model, part)
        found = None if module is None else lens_checks.weight(module, name)
        if found is not None:
            yield found.detach(), None
    for layer in range(lens.n_layers):
        norm = lens_checks.submodule(lens.model.blocks[layer], "ln1_post")
        gain = None if norm is None else lens.norm_gain(norm)
        for values in attention_output(lens, layer):
            if values is not None:
                yield values, gain
        for values in (lens.vectors(layer, "out"), lens.bias(layer, "out")):
            if values is not None:
                yield values, lens.post_norm_gain(layer)
