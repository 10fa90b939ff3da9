"""Every tensor of a model, each piece of memory once."""

from collections.abc import Iterator

import torch
from torch import Tensor


def model_state(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, by name; what shares memory with one given already is left out.

    Tied embeddings come once, and so do the halves of a joint projection (Phi-3), which the bridge
    registers beside the whole.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    seen: dict[torch.device, list[tuple[int, int]]] = {}
    for name, tensor in sorted(named, key=lambda item: -_size(item[1])):
        if not tensor.numel():
            continue
        start, stop = span(tensor)
        spans = seen.setdefault(tensor.device, [])
        if not any(first <= start and stop <= last for first, last in spans):
            spans.append((start, stop))
            yield name, tensor.detach()


def span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of a tensor's first byte and of the byte after its last."""
    start = tensor.data_ptr()
    return start, start + _size(tensor)


def flat(tensor: Tensor) -> Tensor:
    """The memory that a tensor spans, as a live view of one dimension."""
    return tensor.as_strided((_size(tensor) // tensor.itemsize,), (1,), tensor.storage_offset())


def _size(tensor: Tensor) -> int:
    if not tensor.numel():
        return 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize
