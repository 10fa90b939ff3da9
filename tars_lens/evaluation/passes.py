"""Forward passes counted as they happen, to hold each measure to the cost that it declares."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tars_lens.model.lens import Lens


class Passes:
    """A running count.

    Attributes:
        count: Sequences that have been read to the last layer, and tokens that were written.
    """

    def __init__(self) -> None:
        self.count = 0


@contextmanager
def counted(lens: Lens, into: Passes | None = None) -> Iterator[Passes]:
    """Counts the sequences that enter the last layer while the block runs."""
    passes = into or Passes()

    def count(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        passes.count += len(given[0]) if given else 0

    last = list(lens.model.blocks)[-1]
    handle = last.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()
