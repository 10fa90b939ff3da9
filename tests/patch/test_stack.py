"""Patches on one model: any can be taken out in any order, and the proof of what changed."""

import logging
from itertools import permutations

import pytest
import torch
from patch_models import boot, random_patch, same, save_model, snapshot

from tars_lens.common.errors import TarsError
from tars_lens.model.lens import Lens, tensor_sha256
from tars_lens.model.model_state import model_hashes, model_state
from tars_lens.model.weights import Rows
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch
from tars_lens.patch.stack import applied_patches
from tars_lens.patch.verification import Verification, verify

APART = [{(0, "out"): [1, 2]}, {(1, "in"): [3]}, {(0, "out"): [7], (2, "out"): [0]}]
SHARED = [{(1, "out"): [1, 2, 3]}, {(1, "out"): [2, 3, 4]}, {(1, "out"): [3, 1, 5], (0, "in"): [2]}]


@pytest.fixture(scope="module", params=["llama", "gpt2", "phi3", "opt", "neox", "gemma3"])
def lens(request, tmp_path_factory):
    return boot(save_model(tmp_path_factory.mktemp(request.param), request.param))[0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("llama16"), "llama", dtype=torch.bfloat16)
    return boot(folder)[0]


@pytest.mark.parametrize("where", [APART, SHARED])
def test_taking_out_the_first_of_three_leaves_exactly_the_other_two(lens, where):
    patches = [random_patch(lens, rows, seed) for seed, rows in enumerate(where)]
    base = snapshot(lens)
    expected = _state_with(lens, patches[1:])
    for patch in patches:
        patch.apply(lens)
    patches[0].revert(lens)
    assert applied_patches(lens) == tuple(patches[1:])
    assert same(snapshot(lens), expected)
    patches[2].revert(lens)
    patches[1].revert(lens)
    assert same(snapshot(lens), base)


def test_every_order_of_removal_leaves_what_would_have_been(llama):
    patches = [random_patch(llama, rows, seed) for seed, rows in enumerate(SHARED)]
    base = snapshot(llama)
    assert same(_state_with(llama, []), base)
    for order in permutations(range(3)):
        for patch in patches:
            patch.apply(llama)
        left = [0, 1, 2]
        for i in order:
            patches[i].revert(llama)
            left.remove(i)
            found = snapshot(llama)
            with stack.holding(llama, ()):
                assert same(snapshot(llama), base)
            assert same(found, _state_with(llama, [patches[j] for j in left]))


def test_the_later_patch_wins_a_shared_row_and_says_so(llama, caplog):
    first, second = (
        random_patch(llama, {(1, "out"): [4]}, seed, label=f"p{seed}") for seed in (1, 2)
    )
    with caplog.at_level(logging.INFO), first.applied(llama), second.applied(llama):
        assert torch.equal(llama.vectors(1, "out")[4], second.edits[1, "out"].new[0])
    assert "p1 and p2 share 1 rows; the later wins." in caplog.text


def test_a_base_is_recognised_under_the_patches_on_it(llama):
    with random_patch(llama, {(1, "out"): [4]}, 1).applied(llama):
        random_patch(llama, {(1, "out"): [4, 5]}, 2).apply(llama)
        assert len(applied_patches(llama)) == 2
        applied_patches(llama)[1].revert(llama)
    assert applied_patches(llama) == ()


def test_a_patch_is_applied_once_and_reverted_once(llama):
    patch = random_patch(llama, {(1, "out"): [4]}, label="once")
    with pytest.raises(TarsError, match="'once' is not applied to tiny. Applied: none"):
        patch.revert(llama)
    with patch.applied(llama), pytest.raises(TarsError, match="'once' is applied already"):
        patch.apply(llama)


def test_two_lenses_over_one_model_see_one_stack(llama):
    twin = Lens(llama.model, llama.tokenizer, name="twin")
    patch = random_patch(llama, {(1, "out"): [4]})
    before = snapshot(llama)
    patch.apply(llama)
    assert applied_patches(twin) == (patch,)
    patch.revert(twin)
    assert same(snapshot(llama), before)


def test_rows_that_no_patch_touches_any_more_are_the_models_own(llama):
    patch = random_patch(llama, {(1, "out"): [4]})
    with patch.applied(llama):
        pass
    row = llama.vectors(1, "out")[4]
    kept = row.clone()
    row.fill_(0.5)
    assert torch.equal(stack.base_rows(llama, (1, "out"), torch.tensor([4])).values[0], row)
    row.copy_(kept)
    with patch.applied(llama):
        pass


def test_verify_proves_a_patch_and_leaves_the_model_as_it_was(lens):
    patches = [random_patch(lens, rows, seed) for seed, rows in enumerate(SHARED)]
    base = snapshot(lens)
    assert verify(lens, patches[0]) == Verification(3, 3, True, True)
    assert verify(lens, patches) == Verification(6, 6, True, True)
    assert same(snapshot(lens), base)
    assert applied_patches(lens) == ()


def test_the_whole_model_is_seen_and_each_piece_of_memory_once(lens):
    seen = dict(model_state(lens.model))
    tensors = [*lens.model.parameters(), *lens.model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert sum(t.nbytes for t in seen.values()) == sum(storages.values())


@pytest.mark.parametrize("threads", [1, 3])
def test_every_tensor_is_hashed_alike_on_any_number_of_threads(lens, monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    every = {name: tensor_sha256(tensor) for name, tensor in model_state(lens.model)}
    assert model_hashes(lens.model) == every
    first = next(iter(every))
    assert model_hashes(lens.model, without={first}).keys() == every.keys() - {first}


def test_verify_works_while_patches_are_applied(llama):
    a, b = (random_patch(llama, rows, seed) for seed, rows in enumerate(SHARED[:2]))
    with a.applied(llama):
        found = snapshot(llama)
        assert verify(llama, a) == Verification(3, 3, True, True)
        assert verify(llama, [a, b]) == Verification(4, 4, True, True)
        assert verify(llama, b).ok
        assert same(snapshot(llama), found)
        assert applied_patches(llama) == (a,)


def test_verify_refuses_another_base_unless_forced(llama, tmp_path):
    other = boot(save_model(tmp_path, "llama", seed=1, dtype=torch.bfloat16), "other")[0]
    patch = random_patch(other, {(1, "out"): [4]})
    with pytest.raises(TarsError, match="made for another base"):
        verify(llama, patch)
    assert verify(llama, patch, force=True).ok


def test_a_planned_row_that_equals_the_old_is_not_counted_as_changed(llama):
    old = llama.vectors(1, "out")[[4]].clone()
    found = verify(llama, Patch.build(llama, {(1, "out"): Rows(torch.tensor([4]), old)}))
    assert found == Verification(0, 1, True, True)
    assert not found.ok
    assert not found.to_frame().ok[0]


@pytest.mark.parametrize("where", [(1, "out", 9), (1, "in", 9), (0, "gate", 1)])
def test_verify_sees_a_row_that_was_not_planned(llama, monkeypatch, where):
    layer, role, neuron = where
    patch = random_patch(llama, {(1, "out"): [4]})
    before = snapshot(llama)
    row = llama.vectors(layer, role)[neuron]
    kept = row.clone()
    _with_every_write(monkeypatch, lambda edited: row.copy_(kept + 1 if edited else kept), patch)
    found = verify(llama, patch)
    assert (found.others_identical, found.restored_identical, found.ok) == (False, True, False)
    assert found.rows_changed == (2 if (layer, role) == (1, "out") else 1)
    assert same(snapshot(llama), before)


def test_verify_sees_the_other_half_of_a_joint_projection(tmp_path, monkeypatch):
    lens = boot(save_model(tmp_path, "phi3"))[0]
    patch = random_patch(lens, {(1, "in"): [4]})
    row = lens.vectors(1, "gate")[4]
    kept = row.clone()
    _with_every_write(monkeypatch, lambda edited: row.copy_(kept + 1 if edited else kept), patch)
    assert verify(lens, patch) == Verification(1, 1, False, True)


def test_verify_sees_a_buffer(llama, monkeypatch):
    patch = random_patch(llama, {(1, "out"): [4]})
    buffer = next(iter(llama.model.buffers()))
    kept = buffer.clone()
    _with_every_write(monkeypatch, lambda edited: buffer.copy_(kept + 1 if edited else kept), patch)
    assert verify(llama, patch) == Verification(1, 1, False, True)


@pytest.mark.parametrize("place", [(1, "out"), (2, "in")])  # compared by value, and by hash
def test_verify_sees_the_sign_of_a_zero(llama, monkeypatch, place):
    cell = llama.vectors(*place)[9, :1]
    kept = cell.clone()
    cell.fill_(0.0)
    patch = random_patch(llama, {(1, "out"): [4]})
    _with_every_write(monkeypatch, lambda edited: cell.fill_(-0.0 if edited else 0.0), patch)
    found = verify(llama, patch)
    cell.copy_(kept)
    assert (found.others_identical, found.restored_identical) == (False, True)


def test_verify_sees_what_a_revert_leaves_behind(llama, monkeypatch):
    patch = random_patch(llama, {(1, "out"): [4]})
    cell = llama.vectors(2, "in")[0, :1]
    kept = cell.clone()
    _with_every_write(monkeypatch, lambda edited: None if edited else cell.add_(1), patch)
    found = verify(llama, patch)
    assert (found.restored_identical, found.ok) == (False, False)
    cell.copy_(kept)


def test_verify_sees_a_planned_row_with_a_wrong_value(llama, monkeypatch):
    patch = random_patch(llama, {(1, "out"): [4, 5]})
    row = llama.vectors(1, "out")[4]
    _with_every_write(monkeypatch, lambda edited: row.mul_(2) if edited else None, patch)
    assert verify(llama, patch) == Verification(1, 2, True, True)


def test_verify_holds_no_second_model(llama, monkeypatch):
    sizes = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(
        torch.Tensor, "clone", lambda t, **k: sizes.append(t.numel()) or clone(t, **k)
    )
    verify(llama, random_patch(llama, {(1, "out"): [4], (2, "in"): [1]}))
    touched = llama.vectors(1, "out").numel()
    assert max(sizes) == touched < max(p.numel() for p in llama.model.parameters())
    assert sizes.count(touched) == 2


def _state_with(lens, patches):
    with stack.holding(lens, patches):
        return snapshot(lens)


def _with_every_write(monkeypatch, disturb, patch):
    """Calls `disturb(edited)` after every write, `edited` telling whether the patch is in."""
    write = stack.write_rows
    place, rows = next(iter(patch.edits.items()))

    def disturbed(lens, edits):
        write(lens, edits)
        if place in edits:
            disturb(torch.equal(lens.vectors(*place)[rows.neurons], rows.new))

    monkeypatch.setattr(stack, "write_rows", disturbed)
