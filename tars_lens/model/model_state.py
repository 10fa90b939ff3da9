"""Every tensor of a model, each piece of memory once."""

import hashlib
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_MOST_THREADS = 8  # each holds a copy of one tensor where the model lies on a GPU


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


def model_hashes(model: torch.nn.Module, without: Container[str] = ()) -> dict[str, str]:
    """SHA-256 of every tensor of `model_state`, on as many threads as torch uses.

    One core hashes 0.4 to 1.5 GB a second, which for 8B is longer than an erasure's passes take on
    a GPU.

    Args:
        model: Whose tensors.
        without: Names that are left out.
    """
    named = [(name, tensor) for name, tensor in model_state(model) if name not in without]
    with ThreadPoolExecutor(min(_MOST_THREADS, torch.get_num_threads())) as pool:
        digests = pool.map(tensor_sha256, [tensor for _, tensor in named])
        return dict(zip((name for name, _ in named), digests, strict=True))


def tensor_sha256(values: Tensor) -> str:
    """SHA-256 of a tensor's contiguous bytes, as hex."""
    plain = values.detach().cpu().contiguous().reshape(-1)  # a scalar can't be viewed as bytes
    return hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()


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
