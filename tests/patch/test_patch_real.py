"""The patch's promises on the real SmolLM2: exact revert, a stack, a checkpoint that loads."""

from pathlib import Path

import pytest
import torch
from patch_models import random_patch, read_model, save_model

from tars_lens.common.errors import TarsError
from tars_lens.common.files import sha256_file
from tars_lens.model.lens import tensor_sha256
from tars_lens.model.loading import load
from tars_lens.model.model_state import model_state
from tars_lens.patch.export import export, verify_checkpoint
from tars_lens.patch.patch import Patch
from tars_lens.patch.verification import Verification, verify

pytestmark = pytest.mark.real

ROWS = [
    {(23, "out"): [1368, 7], (10, "gate"): [5]},
    {(23, "out"): [1368, 9], (4, "in"): [0, 1535]},  # shares a row with the first
    {(29, "out"): [3], (10, "gate"): [5, 6]},  # so does this
]
PROMPT = "The sixth planet from the Sun, famous for its bright rings, is called"


@pytest.fixture(scope="module")
def smollm2():
    return load("smollm2-135m")


@pytest.fixture(scope="module")
def source(smollm2):
    """The checkpoint that the lens was loaded from."""
    return Path(smollm2.tokenizer.name_or_path)


@pytest.fixture(scope="module")
def patches(smollm2):
    return [random_patch(smollm2, rows, seed, label=f"p{seed}") for seed, rows in enumerate(ROWS)]


def test_verify_and_exact_revert(smollm2, patches):
    base = _hashes(smollm2)
    assert verify(smollm2, patches[0]) == Verification(3, 3, True, True)
    assert verify(smollm2, patches) == Verification(8, 8, True, True)
    patches[0].apply(smollm2)
    assert _hashes(smollm2) != base
    patches[0].revert(smollm2)
    assert _hashes(smollm2) == base


def test_taking_out_the_first_of_three_leaves_exactly_the_other_two(smollm2, patches):
    with patches[1].applied(smollm2), patches[2].applied(smollm2):
        expected = _hashes(smollm2)
    for patch in patches:
        patch.apply(smollm2)
    patches[0].revert(smollm2)
    found = _hashes(smollm2)
    patches[1].revert(smollm2)
    patches[2].revert(smollm2)
    assert found == expected


@torch.no_grad()
def test_the_exported_checkpoint_loads_as_the_edited_model(smollm2, source, patches, tmp_path):
    out = export(patches, source, tmp_path / "out")
    ids = torch.tensor([smollm2.tokens(PROMPT)])
    before = smollm2.model(ids)
    for patch in patches:
        patch.apply(smollm2)
    edited = smollm2.model(ids)
    for patch in patches[::-1]:
        patch.revert(smollm2)
    assert (read_model(out)(ids).logits - edited).abs().max() == 0.0
    assert (edited - before).abs().max() > 0.01
    assert sha256_file(out / "model.safetensors") != sha256_file(source / "model.safetensors")
    assert verify_checkpoint(patches, source, out) == Verification(8, 8, True, True)


def test_a_file_replays_the_edit_and_another_model_refuses_it(smollm2, patches, tmp_path):
    patches[0].save(tmp_path / "p.safetensors")
    with patches[0].applied(smollm2):
        expected = _hashes(smollm2)
    loaded = Patch.load(tmp_path / "p.safetensors")
    with loaded.applied(smollm2):
        assert _hashes(smollm2) == expected
    tiny = save_model(tmp_path / "tiny", "llama")
    with pytest.raises(TarsError, match="edits layer 10, role 'gate', which .* doesn't have"):
        export(loaded, tiny, tmp_path / "out")


def _hashes(lens):
    return {name: tensor_sha256(tensor) for name, tensor in model_state(lens.model)}
