"""Tiny random models, and patches of random rows, for the tests of patches, stacks and exports."""

from pathlib import Path
from typing import Any

import tiny
import torch

from tars_lens.model.lens import Lens
from tars_lens.model.weights import Edits, Place, Rows
from tars_lens.patch.patch import Patch


def save_model(
    folder: Path, arch: str, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Writes a tiny random checkpoint with a tokenizer, as Hugging Face would."""
    return tiny.save_checkpoint(folder, arch, seed=seed, dtype=dtype)


read_model = tiny.read_checkpoint


def boot(folder: Path, name: str = "tiny") -> tuple[Lens, Any]:
    """A lens over a checkpoint, and the Hugging Face model whose weights it shares."""
    bridge, tokenizer = tiny.boot(folder, name)
    return Lens(bridge, tokenizer, name=name), bridge.original_model


def random_edits(lens: Lens, where: dict[Place, list[int]], seed: int) -> Edits:
    """New random rows for the given neurons."""
    generator = torch.Generator().manual_seed(seed)
    return {
        place: Rows(
            torch.tensor(neurons),
            torch.randn(len(neurons), lens.d_model, generator=generator) * 0.3,
        )
        for place, neurons in where.items()
    }


def random_patch(lens: Lens, where: dict[Place, list[int]], seed: int = 0, **options: Any) -> Patch:
    """A patch of new random rows."""
    return Patch.build(lens, random_edits(lens, where, seed), seed=seed, **options)


def snapshot(lens: Lens) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    named = [*lens.model.named_parameters(), *lens.model.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two snapshots are equal bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
