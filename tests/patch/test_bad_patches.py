"""Patch files that hold what no patch can: one plain message, and nothing is written."""

import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from commands import mistake, run
from patch_models import boot, random_patch, save_model

from tars_lens.common.errors import TarsError
from tars_lens.common.files import sha256_file
from tars_lens.model.layout import checkpoint_slots
from tars_lens.model.weights import Rows, write_rows
from tars_lens.patch.checkpoint_stack import RECORD, recorded_patches
from tars_lens.patch.export import export
from tars_lens.patch.patch import Patch
from tars_lens.patch.patch_tools import merge

WHERE = {(1, "out"): [5, 3], (2, "in"): [7]}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def parts(tiny_base, tmp_path):
    """A file's path, and the tensors and the metadata of a good patch to put there."""
    file = tmp_path / "p.safetensors"
    random_patch(tiny_base[1], WHERE, label="Saturn").save(file)
    with safetensors.safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["tars_lens.patch"])
    return file, safetensors.torch.load_file(file), header


def _write(file, tensors, metadata):
    safetensors.torch.save_file(tensors, file, {"tars_lens.patch": metadata})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["old", "new"])
def test_a_row_that_is_not_finite_is_refused_by_every_command(
    tiny_base, parts, tmp_path, part, value
):
    file, tensors, header = parts
    tensors[f"L1.out.{part}"][1, 4] = value
    _write(file, tensors, json.dumps(header))
    own = tmp_path / "own"
    shutil.copytree(tiny_base[0], own)
    before = sha256_file(own / "model.safetensors")
    for words in (
        ("show", file),
        ("apply", file, "--model", own, "--out", tmp_path / "out"),
        ("export", file, "--model", own, "--out", tmp_path / "out", "--force"),
    ):
        assert "a row of L1.out is not finite" in mistake("patch", *words)
    assert not (tmp_path / "out").exists()
    assert sha256_file(own / "model.safetensors") == before


def test_a_row_too_large_for_the_checkpoints_dtype_is_refused_even_with_force(tiny_base, tmp_path):
    half = save_model(tmp_path / "half", "llama", dtype=torch.float16)
    patch = random_patch(tiny_base[1], WHERE)
    patch.edits[1, "out"].new[0, 0] = 1e6
    with pytest.raises(TarsError, match=r"layer 1, role 'out' that is not finite in .*float16"):
        export(patch, half, tmp_path / "out", force=True)
    assert not (tmp_path / "out").exists()
    assert export(patch, tiny_base[0], tmp_path / "out").is_dir()


def test_a_row_too_large_for_the_models_dtype_is_not_written_into_it(tmp_path):
    lens, _ = boot(save_model(tmp_path / "half", "llama", dtype=torch.float16))
    before = lens.tensor_sha256(1, "out")
    rows = Rows(torch.tensor([3]), torch.full((1, lens.d_model), 1e6))
    with pytest.raises(TarsError, match=r"too large for the model's torch\.float16"):
        write_rows(lens, {(1, "out"): rows})
    assert lens.tensor_sha256(1, "out") == before


def test_no_patch_is_made_of_a_base_whose_own_row_is_not_finite(tiny_base, tmp_path):
    """It could be neither taken out of the model nor read back from its file."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base[0], broken)
    slot = checkpoint_slots(broken)[1, "out"]
    slot.view(slot.tensor.bits("r+"))[5] = 0x7FC00000
    patch = random_patch(tiny_base[1], WHERE, label="Saturn")
    patch.save(tmp_path / "p.safetensors")
    with pytest.raises(TarsError, match="a row of the model itself is not finite"):
        random_patch(boot(broken)[0], WHERE)
    words = ("apply", tmp_path / "p.safetensors", "--model", broken, "--force")
    said = mistake("patch", *words, "--out", tmp_path / "out").splitlines()[-1]
    assert "that is not finite, which 'Saturn' replaces" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"concepts": [1]}, "'concepts' holds what is no concept card"),
        ({"versions": {"torch": 2}}, "'versions' holds what is no text"),
        ({"method": {"rate": float("nan")}}, "is not JSON .*Out of range"),
        ({"figures": {"kl": [float("-inf")]}}, "is not JSON .*Out of range"),
        ({"label": "\ud800"}, "is not JSON .*surrogates not allowed"),
        ({"figures": {"\udfff": 1}}, "is not JSON .*surrogates not allowed"),
        ({"weights_sha256": 1}, "'weights_sha256' is no text"),
        ({"seed": True}, "key 'seed' is missing or no int"),
        ({"format": True}, "has patch format True"),
        ({"base_sha256": {"L" + "1" * 5000 + ".out": "00"}}, "malformed hash"),
        ({"base_sha256": {"L01.out": "00"}}, "malformed hash 'L01.out'"),
    ],
)
def test_metadata_of_another_kind_is_refused(parts, change, problem):
    file, tensors, header = parts
    _write(file, tensors, json.dumps(header | change))
    with pytest.raises(TarsError, match=rf"p\.safetensors' .*{problem}"):
        Patch.load(file)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("1" * 5000, "5000 digits"),
        ("1e999", "Out of range float"),
        ("[" * 100_000, "recursion"),
        ("[" * 300 + "]" * 300, "more than 100 deep"),
    ],
)
def test_metadata_that_cannot_be_written_again_is_refused(parts, value, problem):
    file, tensors, header = parts
    metadata = json.dumps(header | {"figures": {"x": "HERE"}}).replace('"HERE"', value)
    _write(file, tensors, metadata)
    assert problem in mistake("patch", "show", file)


def test_metadata_as_deep_as_is_allowed_is_shown_as_json(parts):
    file, tensors, header = parts
    metadata = json.dumps(header | {"figures": {"x": "HERE"}})
    _write(file, tensors, metadata.replace('"HERE"', "[" * 98 + "]" * 98))
    assert run("patch", "show", file, "--json").code == 0


@pytest.mark.parametrize("name", ["L" + "1" * 5000 + ".out.new", "L01.out.new", "L1٣.out.new"])
def test_a_tensor_of_a_layer_that_is_no_number_is_refused(parts, name):
    file, tensors, header = parts
    _write(file, tensors | {name: torch.zeros(1)}, json.dumps(header))
    with pytest.raises(TarsError, match="it has an unknown tensor 'L"):
        Patch.load(file)


def test_rows_in_a_dtype_that_no_base_has_are_refused(parts):
    file, tensors, header = parts
    for key in ("L1.out.old", "L1.out.new"):
        tensors[key] = tensors[key].to(torch.float8_e4m3fn)
    _write(file, tensors, json.dumps(header))
    with pytest.raises(TarsError, match="the tensors of L1.out don't fit together: .*float8"):
        Patch.load(file)


def test_rows_of_two_widths_are_not_merged(tiny_base):
    ours = random_patch(tiny_base[1], WHERE, label="ours")
    rows = ours.edits[1, "out"]
    narrow = replace(rows, old=rows.old[:, :15], new=rows.new[:, :15])
    theirs = replace(ours, edits={**ours.edits, (1, "out"): narrow}, label="theirs")
    with pytest.raises(TarsError, match=r"'ours' and 'theirs' .*\(width 16, .*\(width 15, "):
        merge([ours, theirs])


def test_a_norm_beyond_all_numbers_is_shown_as_json(tiny_base, tmp_path):
    folder = save_model(tmp_path / "wide", "llama", dtype=torch.float64)
    patch = random_patch(boot(folder)[0], WHERE)
    patch.edits[1, "out"].new[:] = 1e200
    patch.save(tmp_path / "p.safetensors")
    shown = json.loads(run("patch", "show", tmp_path / "p.safetensors", "--json").out)
    assert [edit["new_norm"] is None for edit in shown["edits"]] == [True, True, False]


def test_a_patch_given_twice_is_refused_before_anything_is_written(tiny_base, parts, tmp_path):
    own, copy = tmp_path / "own", tmp_path / "copy.safetensors"
    shutil.copytree(tiny_base[0], own)
    shutil.copy(parts[0], copy)
    before = sha256_file(own / "model.safetensors")
    words = ("patch", "apply", parts[0], copy, "--model", own, "--out", tmp_path / "out")
    assert "'Saturn' is given twice. Nothing was written" in mistake(*words)
    assert not (tmp_path / "out").exists() and not (own / RECORD).exists()
    assert sha256_file(own / "model.safetensors") == before and not recorded_patches(own)
