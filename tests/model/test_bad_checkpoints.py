"""Checkpoint folders whose files were damaged or added to: one plain message, nothing written."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from commands import mistake, run
from patch_models import random_patch

from tars_lens.common.errors import TarsError
from tars_lens.common.files import sha256_file
from tars_lens.model.layout import checkpoint_slots, stored_tensors, weight_files
from tars_lens.model.shape import shape_of
from tars_lens.patch.checkpoint_stack import (
    RECORD,
    apply_to_checkpoint,
    recorded_patches,
    revert_checkpoint,
)
from tars_lens.patch.export import export

WHERE = {(1, "out"): [5, 3], (2, "in"): [7]}
KEY = "model.layers.1.mlp.down_proj.weight"
WEIGHTS = "model.safetensors"
_SURROGATE = b'{"\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def folder(tiny_base, tmp_path):
    """A copy of the checkpoint to be spoilt."""
    return shutil.copytree(tiny_base[0], tmp_path / "model")


@pytest.fixture
def patch(tiny_base):
    return random_patch(tiny_base[1], WHERE, label="Saturn")


@pytest.fixture
def file(patch, tmp_path):
    patch.save(tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


# --- the files of a checkpoint -------------------------------------------------------------------


@pytest.mark.parametrize(
    "table", [[], None, {}, "x", {KEY: 1}, {KEY: None}, {KEY: ["model.safetensors"]}]
)
def test_an_index_without_a_table_of_files_is_refused(folder, table):
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(TarsError, match="has no 'weight_map' from tensors to files"):
        weight_files(folder)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800", "..", ""])
def test_an_index_that_names_no_possible_file_is_refused(folder, name):
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {KEY: name}}))
    with pytest.raises(TarsError, match="which isn't there: download it again"):
        weight_files(folder)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ('{"model_type": ["llama"]}', "'model_type' that is no text"),
        ("[" * 100_000, "cannot read .*recursion"),
        ('{"x": ' + "1" * 5000 + "}", "cannot read .*5000 digits"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(folder, file, tmp_path, config, problem):
    (folder / "config.json").write_text(config)
    with pytest.raises(TarsError, match=problem):
        checkpoint_slots(folder)
    words = ("patch", "export", file, "--model", folder)
    said = mistake(*words, "--out", tmp_path / "out")
    assert "config.json" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", ["[" * 100_000, '{"x": ' + "1" * 5000 + "}"])
def test_a_config_that_cannot_be_read_has_no_shape(folder, config):
    (folder / "config.json").write_text(config)
    with pytest.raises(TarsError, match="cannot read"):
        shape_of(str(folder))


def test_a_model_without_layers_is_refused(folder, file):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 0}))
    with pytest.raises(TarsError, match="has no layers"):
        shape_of(str(folder))
    assert "the model has no layers" in run("patch", "verify", file, "--model", folder).err


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"data_offsets": [-4096, -4096 + 1536]}, "no whole numbers"),
        ({"data_offsets": [1536, 0]}, "isn't as large as"),
        ({"data_offsets": [0, 768]}, "isn't as large as"),
        ({"data_offsets": [0, 10**9]}, "its data end before"),
        ({"data_offsets": [0.0, 1536.0]}, "no whole numbers"),
        ({"data_offsets": [False, 1536]}, "no whole numbers"),
        ({"data_offsets": [0]}, "not enough values"),
        ({"shape": [24, 24]}, "isn't as large as"),
        ({"shape": [-16, -24]}, "no whole numbers"),
        ({"shape": None}, "has no dtype or no shape"),
        ({"dtype": ["F32"]}, "has no dtype or no shape"),
        ({"dtype": "F64"}, "isn't as large as"),
    ],
)
def test_a_header_that_does_not_fit_its_data_is_refused_and_nothing_is_written(
    folder, patch, tmp_path, change, problem
):
    _spoil(folder, {KEY: change})
    before = sha256_file(folder / WEIGHTS)
    with pytest.raises(TarsError, match=rf"not a whole safetensors file \(.*{problem}"):
        export(patch, folder, tmp_path / "out", force=True)
    assert sha256_file(folder / WEIGHTS) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize("header", [b"[" * 100_000, _SURROGATE])
def test_a_header_that_no_reader_takes_is_refused(folder, header):
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(TarsError, match="not a whole safetensors file"):
        stored_tensors(folder)


def test_a_layer_of_too_many_digits_is_none(folder):
    (folder / WEIGHTS).unlink()
    key = f"model.layers.{'1' * 5000}.mlp.up_proj.weight"
    safetensors.torch.save_file({key: torch.zeros(24, 16)}, folder / WEIGHTS)
    with pytest.raises(TarsError, match="holds no plain MLP weights"):
        checkpoint_slots(folder)


@pytest.mark.parametrize(
    "shapes",
    [
        {"c_fc": (24, 16), "c_proj": (16,)},
        {"gate_up_proj": (49, 16), "down_proj": (16, 24)},
        {"up_proj": (0, 16), "down_proj": (16, 0)},
    ],
)
def test_matrices_of_no_mlp_are_refused(folder, shapes):
    (folder / WEIGHTS).unlink()
    tensors = {f"layers.0.mlp.{k}.weight": torch.zeros(v) for k, v in shapes.items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    with pytest.raises(TarsError, match="is packed|doesn't fit the out-projection"):
        checkpoint_slots(folder)


# --- what an edited checkpoint records ----------------------------------------------------------


def test_a_foreign_file_in_the_record_is_refused_and_kept(tiny_base, folder, patch, tmp_path):
    edited = apply_to_checkpoint([patch], folder, tmp_path / "edited")
    before, mine = sha256_file(edited / WEIGHTS), edited / RECORD / "mine.safetensors"
    other = random_patch(tiny_base[1], {(0, "in"): [1]}, 1)
    other.save(mine)
    for change in (lambda *to: apply_to_checkpoint([to[0]], *to[1:]), revert_checkpoint):
        with pytest.raises(TarsError, match=r"mine\.safetensors' is no file that tars_lens keeps"):
            change(other, edited, tmp_path / "out")
    assert sha256_file(edited / WEIGHTS) == before and mine.is_file()
    assert not (tmp_path / "out").exists()


def test_a_record_of_more_than_a_thousand_stays_in_order(tiny_base, folder, patch):
    other = random_patch(tiny_base[1], {(0, "in"): [1]}, 1, label="other")
    patch.save(folder / RECORD / "999_Saturn.safetensors")
    other.save(folder / RECORD / "1000_other.safetensors")
    assert [found.label for found in recorded_patches(folder)] == ["Saturn", "other"]


def _spoil(folder, changes):
    """Changes entries of the weight file's header, whose data stay where they are."""
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for key, change in changes.items():
        header[key] |= change
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
