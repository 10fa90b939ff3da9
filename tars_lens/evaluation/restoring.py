"""A model put back bit by bit after whatever was done to all of its weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.model.lens import Lens


@contextmanager
def restored(lens: Lens) -> Iterator[None]:
    """Keeps a copy of every tensor while the block runs, and writes it back in the end."""
    kept = {name: tensor.clone() for name, tensor in lens.state()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in lens.state():
                tensor.copy_(kept[name])


@contextmanager
def rounded(lens: Lens, bits: int) -> Iterator[None]:
    """Holds the blocks' matrices rounded to the nearest of `2^bits - 1` steps a row.

    Each row has its own scale, its largest magnitude; embedding, unembedding, norms and biases
    stay, as in weight-only quantisation.
    """
    with restored(lens):
        with torch.no_grad():
            for name, tensor in lens.state():
                if tensor.ndim == 2 and _in_a_block(name):
                    tensor.copy_(round_rows(tensor, bits))
        yield


def round_rows(weights: Float[Tensor, "rows columns"], bits: int) -> Float[Tensor, "rows columns"]:
    """Each row rounded to the nearest multiple of its largest magnitude over `2^(bits-1) - 1`."""
    steps = 2 ** (bits - 1) - 1
    scale = weights.float().abs().amax(dim=1, keepdim=True) / steps
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return ((weights.float() / scale).round() * scale).to(weights.dtype)


def _in_a_block(name: str) -> bool:
    """Whether a parameter stands in one of the layers, whatever the architecture calls them."""
    return any(part in name for part in ("blocks.", "layers.", ".h."))
