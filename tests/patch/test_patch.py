"""A patch: built from the base, applied, reverted, kept in a file, compared and joined."""

import json
import logging
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from patch_models import boot, random_edits, random_patch, same, save_model, snapshot

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.model.weights import Rows
from tars_lens.patch import stack
from tars_lens.patch.edit import angles_degrees
from tars_lens.patch.patch import Patch
from tars_lens.patch.patch_tools import diff, merge, show

WHERE = {(1, "out"): [5, 3], (2, "in"): [7]}
IDS = torch.tensor([[4, 9, 33, 2, 17]])


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    return boot(save_model(tmp_path_factory.mktemp("llama"), "llama"))[0]


@pytest.fixture(scope="module")
def bf16_lens(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("bf16"), "llama", dtype=torch.bfloat16)
    return boot(folder)[0]


@pytest.fixture(scope="module")
def other_lens(tmp_path_factory):
    return boot(save_model(tmp_path_factory.mktemp("other"), "llama", seed=1), "another")[0]


@pytest.fixture(autouse=True)
def clean(lens, bf16_lens, other_lens):
    """Every test gets the models as they were, and must leave no patch on them."""
    yield
    assert not any(stack.applied_patches(found) for found in (lens, bf16_lens, other_lens))


def test_build_keeps_the_bases_rows_and_hashes(lens):
    edits = random_edits(lens, WHERE, seed=1)
    concept = Concept("Saturn", "Saturn", "The ringed planet is")
    patch = Patch.build(lens, edits, concepts=[concept], method={"name": "tars"}, seed=3)
    rows = patch.edits[1, "out"]
    assert rows.neurons.tolist() == [5, 3]
    assert torch.equal(rows.old, lens.vectors(1, "out")[[5, 3]])
    assert torch.equal(rows.new, edits[1, "out"].values)
    assert patch.base_sha256[2, "in"] == lens.tensor_sha256(2, "in")
    assert (patch.base_name, patch.label, patch.seed) == ("tiny", "Saturn", 3)
    assert patch.n_rows == 3
    assert patch.concepts == (concept.to_dict(),)


def test_build_ignores_patches_that_are_applied(lens):
    clean_hash, old = lens.tensor_sha256(1, "out"), lens.vectors(1, "out")[[5, 3]].clone()
    first = random_patch(lens, {(1, "out"): [3, 4]}, seed=1)
    with first.applied(lens):
        second = random_patch(lens, WHERE, seed=2)
        assert lens.tensor_sha256(1, "out") != clean_hash
    assert second.base_sha256[1, "out"] == clean_hash
    assert torch.equal(second.edits[1, "out"].old, old)


def test_a_patch_does_not_follow_the_tensors_it_was_built_from(lens):
    edits = random_edits(lens, WHERE, seed=1)
    before = edits[1, "out"].values.clone()
    patch = Patch.build(lens, edits)
    edits[1, "out"].values.zero_()
    assert torch.equal(patch.edits[1, "out"].new, before)


def test_to_frame_gives_one_line_per_row(lens):
    old = lens.vectors(1, "out")[[4]].clone()
    cosines = {(1, "out"): torch.tensor([0.25])}
    edits = {(1, "out"): Rows(torch.tensor([4]), -2 * old)}
    line = Patch.build(lens, edits, cosines=cosines).to_frame().iloc[0]
    assert (line.layer, line.role, line.neuron, line.label) == (1, "out", 4, "L1N4")
    assert line.cosine == 0.25
    assert line.angle_degrees == pytest.approx(180)
    assert line.new_norm == pytest.approx(2 * line.old_norm, rel=1e-6)


def test_angles_are_exact_where_the_arc_cosine_is_not():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[1.0, 1e-5], [0.0, 3.0]])
    angles = torch.deg2rad(angles_degrees(a, b))
    assert angles[0].item() == pytest.approx(1e-5, rel=1e-6)
    assert angles[1].item() == pytest.approx(torch.pi / 2)


def test_build_refuses_what_does_not_fit(lens):
    rows = Rows(torch.tensor([24]), torch.zeros(1, 16))
    with pytest.raises(TarsError, match="neurons must be 0 to 23"):
        Patch.build(lens, {(0, "out"): rows})
    with pytest.raises(TarsError, match="method must be JSON values"):
        random_patch(lens, WHERE, method={"rate": float("nan")})
    with pytest.raises(TarsError, match="2 rows need as many cosines"):
        random_patch(lens, WHERE, cosines={(1, "out"): torch.zeros(3)})


@pytest.mark.parametrize("name", ["lens", "bf16_lens"])
def test_apply_writes_the_rows_and_revert_is_exact(name, request):
    lens = request.getfixturevalue(name)
    before, logits = snapshot(lens), lens.model(IDS)
    patch = random_patch(lens, WHERE, seed=1)
    patch.apply(lens)
    assert torch.equal(lens.vectors(1, "out")[[5, 3]], patch.edits[1, "out"].new)
    assert not torch.equal(lens.model(IDS), logits)
    patch.revert(lens)
    assert same(snapshot(lens), before)
    assert torch.equal(lens.model(IDS), logits)


def test_applied_restores_when_the_block_fails(lens):
    before = snapshot(lens)
    with pytest.raises(ZeroDivisionError), random_patch(lens, WHERE).applied(lens):
        assert not same(snapshot(lens), before)
        raise ZeroDivisionError
    assert same(snapshot(lens), before)


def test_a_block_may_take_its_patch_out_itself(lens):
    before = snapshot(lens)
    patch = random_patch(lens, WHERE)
    with patch.applied(lens):
        patch.revert(lens)
    assert same(snapshot(lens), before)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_apply_or_revert_leaves_the_model_as_it_was(lens, monkeypatch, stop):
    patch, before = random_patch(lens, WHERE), snapshot(lens)
    _interrupt_next_write(monkeypatch, stop)
    with pytest.raises(stop):
        patch.apply(lens)
    assert same(snapshot(lens), before)
    assert stack.applied_patches(lens) == ()
    patch.apply(lens)
    edited = snapshot(lens)
    _interrupt_next_write(monkeypatch, stop)
    with pytest.raises(stop):
        patch.revert(lens)
    assert same(snapshot(lens), edited)
    assert stack.applied_patches(lens) == (patch,)
    patch.revert(lens)
    assert same(snapshot(lens), before)


def test_another_base_is_refused_before_anything_is_written(lens, other_lens):
    patch, before = random_patch(lens, WHERE), snapshot(other_lens)
    with pytest.raises(TarsError) as caught:
        patch.apply(other_lens)
    actual = other_lens.tensor_sha256(1, "out")[:12]
    expected = lens.tensor_sha256(1, "out")[:12]
    for part in ("layer 1, role 'out'", actual, expected, "another", "tiny", "--force"):
        assert part in str(caught.value)
    assert same(snapshot(other_lens), before)


def test_a_base_that_differs_in_one_later_tensor_is_refused(lens):
    patch = random_patch(lens, WHERE)
    cell = lens.vectors(2, "in")[20]
    kept = cell.clone()
    cell += 1
    before = snapshot(lens)
    with pytest.raises(TarsError, match="layer 2, role 'in'"):
        patch.apply(lens)
    assert same(snapshot(lens), before)
    cell.copy_(kept)


def test_force_warns_and_still_reverts_to_what_was_there(lens, other_lens, caplog):
    patch, before = random_patch(lens, WHERE), snapshot(other_lens)
    with caplog.at_level(logging.WARNING):
        patch.apply(other_lens, force=True)
    assert "forced onto another base" in caplog.text
    assert torch.equal(other_lens.vectors(1, "out")[[5, 3]], patch.edits[1, "out"].new)
    patch.revert(other_lens)
    assert same(snapshot(other_lens), before)


def test_another_dtype_is_refused_by_name(lens, bf16_lens):
    with pytest.raises(TarsError, match="is bfloat16 in tiny, float32 in the patch"):
        random_patch(lens, WHERE).apply(bf16_lens)


@pytest.mark.parametrize("name", ["lens", "bf16_lens"])
def test_a_file_holds_the_whole_patch(name, request, tmp_path):
    lens = request.getfixturevalue(name)
    patch = random_patch(
        lens,
        WHERE,
        concepts=[Concept("Saturne d'été", "Saturn", "The ringed planet is")],
        method={"name": "tars", "strength": 1.5},
        figures={"kl": {"median": 0.001}},
        cosines={(1, "out"): torch.tensor([0.2, 0.1])},
    )
    patch = replace(patch, weights_sha256="0a" * 32)
    patch.save(tmp_path / "a.safetensors")
    loaded = Patch.load(tmp_path / "a.safetensors")
    for place, rows in patch.edits.items():
        for part in ("neurons", "old", "new", "cosine"):
            ours, theirs = getattr(rows, part), getattr(loaded.edits[place], part)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours.nan_to_num(9), theirs.nan_to_num(9))
    fields = "base_name", "base_sha256", "concepts", "method", "seed", "versions", "figures"
    for field in (*fields, "label", "sha256", "weights_sha256"):
        assert getattr(loaded, field) == getattr(patch, field)
    loaded.apply(lens)
    patch.revert(lens)  # another copy of the same patch


def test_the_same_patch_gives_the_same_bytes(lens, tmp_path):
    patch = random_patch(lens, WHERE, method={"b": 1, "a": 2})
    patch.save(tmp_path / "a.safetensors")
    Patch.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    contents = {(tmp_path / f"{name}.safetensors").read_bytes() for name in "ab"}
    assert len(contents) == 1


def test_a_truncated_file_is_refused_at_every_length(lens, tmp_path):
    file = tmp_path / "cut.safetensors"
    random_patch(lens, WHERE).save(file)
    content = file.read_bytes()
    for length in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(TarsError, match=r"cut\.safetensors' is not a whole safetensors file"):
            Patch.load(file)


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(TarsError, match=r"no patch file .*gone\.safetensors"):
        Patch.load(tmp_path / "gone.safetensors")
    (tmp_path / "note.safetensors").write_text("not a patch")
    with pytest.raises(TarsError, match=r"note\.safetensors' is not a whole safetensors file"):
        Patch.load(tmp_path / "note.safetensors")
    safetensors.torch.save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(TarsError, match=r"model\.safetensors' .* not a patch"):
        Patch.load(tmp_path / "model.safetensors")
    with pytest.raises(TarsError, match="is not a whole safetensors file"):
        Patch.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, "has patch format 2; this version reads 1"),
        ({"format": None}, "has patch format None"),
        ({"seed": "zero"}, "key 'seed' is missing or no int"),
        ({"base_sha256": {}}, "name different tensors"),
        ({"base_sha256": {"L1.up": "00"}}, "malformed hash 'L1.up'"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(lens, tmp_path, change, problem):
    file = tmp_path / "p.safetensors"
    tensors, header = _parts(lens, file)
    metadata = {"tars_lens.patch": json.dumps(header | change)}
    safetensors.torch.save_file(tensors, file, metadata)
    with pytest.raises(TarsError, match=rf"p\.safetensors' .*{problem}"):
        Patch.load(file)


def test_metadata_that_is_not_json_is_refused(lens, tmp_path):
    file = tmp_path / "p.safetensors"
    tensors, _ = _parts(lens, file)
    safetensors.torch.save_file(tensors, file, {"tars_lens.patch": "{"})
    with pytest.raises(TarsError, match="metadata is not JSON"):
        Patch.load(file)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"L1.out.new": None}, "L1.out has no new"),
        ({"L1.out.new": torch.zeros(2, 15)}, "tensors of L1.out don't fit together"),
        ({"L1.out.new": torch.zeros(2, 16).half()}, "tensors of L1.out don't fit together"),
        ({"L1.out.neurons": torch.tensor([5, 5])}, "tensors of L1.out don't fit together"),
        ({"L1.mid.new": torch.zeros(2)}, "unknown tensor 'L1.mid.new'"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(lens, tmp_path, change, problem):
    file = tmp_path / "p.safetensors"
    tensors, header = _parts(lens, file)
    left = {k: v for k, v in (tensors | change).items() if v is not None}
    safetensors.torch.save_file(left, file, {"tars_lens.patch": json.dumps(header)})
    with pytest.raises(TarsError, match=problem):
        Patch.load(file)


def test_an_unwritable_folder_is_one_plain_message(lens, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TarsError, match="cannot write"):
        random_patch(lens, WHERE).save(tmp_path / "file" / "p.safetensors")


def test_with_figures_adds_and_leaves_the_edit(lens):
    patch = random_patch(lens, WHERE, figures={"a": 1})
    more = patch.with_figures({"b": (1, 2)})
    assert more.figures == {"a": 1, "b": [1, 2]}
    assert patch.figures == {"a": 1}
    assert more.sha256 == patch.sha256


def test_diff_tells_rows_apart(lens):
    a = random_patch(lens, {(1, "out"): [1, 2, 3]}, seed=1)
    edits = random_edits(lens, {(1, "out"): [2, 3, 4], (0, "in"): [9]}, seed=2)
    edits[1, "out"].values[0] = a.edits[1, "out"].new[1]
    frame = diff(a, Patch.build(lens, edits)).set_index("label")
    assert frame.status.to_dict() == {
        "L0N9": "only_b",
        "L1N1": "only_a",
        "L1N2": "same",
        "L1N3": "different",
        "L1N4": "only_b",
    }
    assert frame.angle_degrees["L1N2"] == 0
    assert frame.angle_degrees["L1N3"] > 1
    assert frame.angle_degrees.isna().sum() == 3


def test_merge_does_what_the_patches_do_in_order(lens):
    a = random_patch(lens, {(1, "out"): [1, 2]}, seed=1, label="a", method={"name": "tars"})
    b = random_patch(lens, {(1, "out"): [2, 3], (0, "gate"): [0]}, seed=2, label="b")
    merged = merge([a, b])
    with a.applied(lens), b.applied(lens):
        expected = snapshot(lens)
    with merged.applied(lens):
        assert same(snapshot(lens), expected)
    assert (merged.n_rows, merged.label) == (4, "a + b")
    assert merged.method == {"name": "merged", "parts": [{"name": "tars"}, {}]}


def test_merge_refuses_two_bases(lens, other_lens):
    a, b = random_patch(lens, WHERE), random_patch(other_lens, WHERE)
    with pytest.raises(TarsError, match="patches of different bases: layer 1, role 'out'"):
        merge([a, b])
    apart = random_patch(other_lens, {(0, "in"): [1]})
    with pytest.raises(TarsError, match="of tiny, .* of another"):
        merge([a, apart])
    with pytest.raises(TarsError, match="nothing to merge"):
        merge([])


def test_merge_compares_all_that_share_a_matrix(lens, bf16_lens, other_lens):
    """Not with the first alone, which may share nothing with either."""
    first = random_patch(lens, {(0, "in"): [1]}, label="first")
    ours = random_patch(lens, {(2, "out"): [1]}, label="ours")
    for made_on in (other_lens, bf16_lens):
        theirs = replace(random_patch(made_on, {(2, "out"): [2]}, label="theirs"), base_name="tiny")
        with pytest.raises(TarsError, match="'ours' and 'theirs' are .* layer 2, role 'out'"):
            merge([first, ours, theirs])
    theirs = replace(theirs, base_sha256=ours.base_sha256)  # torch would join them as float32
    with pytest.raises(TarsError, match=r"'ours' and 'theirs' .*float32\) and .*bfloat16\)"):
        merge([first, ours, theirs])


def test_merge_takes_one_base_under_two_names(lens):
    """A shared matrix proves it, whichever of the patches before has it."""
    a = random_patch(lens, {(0, "in"): [1]}, label="a")
    b = random_patch(lens, {(0, "in"): [2], (1, "out"): [3]}, label="b")
    c = replace(random_patch(lens, {(1, "out"): [4]}, label="c"), base_name="hub/tiny")
    assert merge([a, b, c]).n_rows == 4
    with pytest.raises(TarsError, match="'a' is a patch of tiny, 'c' of hub/tiny"):
        merge([a, c])


def test_show_has_the_header_and_the_rows(lens):
    patch = random_patch(lens, WHERE, method={"name": "tars"}, label="Saturn")
    header, frame = show(patch)
    assert header["label"] == "Saturn"
    assert header["rows"] == 3
    assert header["base_sha256"]["L1.out"] == lens.tensor_sha256(1, "out")
    assert frame.label.tolist() == ["L1N5", "L1N3", "L2N7"]


def _interrupt_next_write(monkeypatch, stop):
    """Stops the next write after its first matrix; the ones after it work."""
    write = stack.write_rows

    def halfway(lens, edits):
        monkeypatch.setattr(stack, "write_rows", write)
        place, rows = next(iter(edits.items()))
        write(lens, {place: rows})
        raise stop

    monkeypatch.setattr(stack, "write_rows", halfway)


def _parts(lens, file):
    """The tensors and the header of a good patch file."""
    random_patch(lens, WHERE).save(file)
    with safetensors.safe_open(file, framework="pt") as opened:
        return safetensors.torch.load_file(file), json.loads(opened.metadata()["tars_lens.patch"])
