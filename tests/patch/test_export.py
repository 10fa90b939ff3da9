"""A patch put into a checkpoint on disk: the model that loads from it is the edited one."""

import errno
import json
import logging
import shutil

import pytest
import tiny
import torch
import transformers
from patch_models import boot, random_patch, read_model, save_model
from safetensors.torch import load_file, save_file

from tars_lens.common.errors import TarsError
from tars_lens.common.files import sha256_file
from tars_lens.model.layout import checkpoint_slots, stored_tensors
from tars_lens.model.loading import load
from tars_lens.patch import export as export_module
from tars_lens.patch.export import export, verify_checkpoint
from tars_lens.patch.verification import Verification

ARCHS = ["llama", "gpt2", "phi3", "opt", "neox", "gemma3"]
DTYPES = [torch.float32, torch.bfloat16]
_SIZES = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64, "vocab_size": 64}
IDS = torch.tensor([[4, 9, 33, 2, 17], [5, 6, 7, 8, 1]])
WHERE = {(1, "out"): [5, 3], (2, "in"): [7, 0]}


@pytest.fixture(scope="module")
def patch(tiny_base):
    return random_patch(tiny_base[1], WHERE, label="Saturn")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_the_exported_checkpoint_is_the_edited_model(arch, dtype, tmp_path):
    source = save_model(tmp_path / "source", arch, dtype=dtype)
    lens, _ = boot(source)
    gate = {(0, "gate"): [1, 2]} if lens.gated else {}
    patch = random_patch(lens, {**WHERE, **gate})
    out = export(patch, source, tmp_path / "out")
    plain, reloaded = read_model(source), read_model(out)
    assert not torch.equal(reloaded(IDS).logits, plain(IDS).logits)
    _edit_by_hand(plain, arch, patch)
    assert (reloaded(IDS).logits - plain(IDS).logits).abs().max() == 0.0
    with patch.applied(lens):
        edited = lens.model(IDS)
    assert (boot(out)[0].model(IDS) - edited).abs().max() == 0.0
    assert sha256_file(out / "model.safetensors") != sha256_file(source / "model.safetensors")
    planned = patch.n_rows
    assert verify_checkpoint(patch, source, out) == Verification(planned, planned, True, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_matrix_has_the_same_hash_on_disk_and_in_the_model(arch, dtype, tmp_path):
    lens, _ = boot(save_model(tmp_path, arch, dtype=dtype))
    slots = checkpoint_slots(tmp_path)
    assert slots.keys() == {(layer, role) for layer in range(3) for role in lens.roles}
    for place, slot in slots.items():
        assert slot.sha256() == lens.tensor_sha256(*place)
        assert slot.shape == lens.vectors(*place).shape
        assert slot.dtype == lens.dtype


def test_the_halves_of_a_joint_projection_are_told_apart(tmp_path):
    lens, _ = boot(save_model(tmp_path / "source", "phi3"))
    patch = random_patch(lens, {(1, "gate"): [4]})
    out = export(patch, tmp_path / "source", tmp_path / "out")
    key = "model.layers.1.mlp.gate_up_proj.weight"
    before, after = (load_file(f / "model.safetensors")[key] for f in (tmp_path / "source", out))
    assert (before != after).any(dim=1).nonzero().flatten().tolist() == [4]
    assert torch.equal(after[4], patch.edits[1, "gate"].new[0])
    patch = random_patch(lens, {(1, "in"): [4]})
    after = load_file(export(patch, tmp_path / "source", tmp_path / "up") / "model.safetensors")[
        key
    ]
    assert (before != after).any(dim=1).nonzero().flatten().tolist() == [24 + 4]


def test_stacked_patches_are_exported_in_order(tiny_base, tmp_path):
    source, lens = tiny_base
    first = random_patch(lens, {(1, "out"): [1, 2]}, 1)
    second = random_patch(lens, {(1, "out"): [2, 3]}, 2)
    out = export([first, second], source, tmp_path / "out")
    with first.applied(lens), second.applied(lens):
        assert checkpoint_slots(out)[1, "out"].sha256() == lens.tensor_sha256(1, "out")
    assert verify_checkpoint([first, second], source, out) == Verification(3, 3, True, True)
    assert verify_checkpoint([second, first], source, out).rows_changed == 2


def test_a_sharded_checkpoint_is_exported_shard_by_shard(tiny_base, patch, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    read_model(tiny_base[0]).save_pretrained(source, max_shard_size="8KB")
    shards = sorted(file.name for file in source.glob("*.safetensors"))
    assert len(shards) > 2
    export(patch, source, out)
    assert sorted(file.name for file in out.glob("*.safetensors")) == shards
    assert verify_checkpoint(patch, source, out).ok
    _edit_by_hand(plain := read_model(tiny_base[0]).requires_grad_(False), "llama", patch)
    assert (read_model(out)(IDS).logits - plain(IDS).logits).abs().max() == 0.0
    changed = [n for n in shards if sha256_file(source / n) != sha256_file(out / n)]
    assert len(changed) == 2


_BLOCK = "transformer.h.{}.mlp."
_ATTENTION = {"layer_types": ["full_attention"] * 3}
OTHERS = {
    "gptj": (
        lambda: transformers.GPTJConfig(rotary_dim=4, n_inner=24, **_SIZES),
        {"in": f"{_BLOCK}fc_in", "out": f"{_BLOCK}fc_out"},
    ),
    "codegen": (
        lambda: transformers.CodeGenConfig(rotary_dim=2, n_inner=24, **{**_SIZES, "n_head": 4}),
        {"in": f"{_BLOCK}fc_in", "out": f"{_BLOCK}fc_out"},
    ),
    "mpt": (
        lambda: transformers.MptConfig(
            d_model=16, n_heads=2, n_layers=3, max_seq_len=64, vocab_size=64
        ),
        {"in": "transformer.blocks.{}.ffn.up_proj", "out": "transformer.blocks.{}.ffn.down_proj"},
    ),
    "lfm2": (
        lambda: transformers.Lfm2Config(**tiny.COMMON, **_ATTENTION),
        {
            role: f"model.layers.{{}}.feed_forward.{name}"
            for role, name in (("gate", "w1"), ("in", "w3"), ("out", "w2"))
        },
    ),
    "bigcode": (
        lambda: transformers.GPTBigCodeConfig(n_inner=24, **_SIZES),
        {"in": f"{_BLOCK}c_fc", "out": f"{_BLOCK}c_proj"},
    ),
}


@pytest.mark.parametrize("arch", OTHERS)
@torch.no_grad()
def test_what_can_be_loaded_can_be_written_back(arch, tmp_path, own_cache, monkeypatch):
    config, names = OTHERS[arch]
    monkeypatch.setitem(tiny._CONFIGS, arch, config)
    source = save_model(tmp_path / "source", arch)
    lens = load(source, progress=False)
    assert set(lens.roles) == set(names)
    patch = random_patch(lens, {(layer, role): [3, 1] for layer in (0, 2) for role in names})
    reloaded = read_model(export(patch, source, tmp_path / "out"))
    plain = read_model(source)
    before = plain(IDS).logits
    state = plain.state_dict()
    for (layer, role), rows in patch.edits.items():
        matrix = state[f"{names[role].format(layer)}.weight"]
        (matrix.T if role == "out" else matrix)[rows.neurons] = rows.new
    assert (reloaded(IDS).logits - plain(IDS).logits).abs().max() == 0.0
    assert not torch.equal(plain(IDS).logits, before)


@pytest.mark.parametrize("stack", ["mtp.layers.0.", "nextn.layers.0."])
def test_blocks_that_predict_further_tokens_are_left_alone(tiny_base, tmp_path, own_cache, stack):
    source = shutil.copytree(tiny_base[0], tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    first = {k: v.clone() for k, v in tensors.items() if "layers.0." in k}
    more = {k.replace("model.layers.0.", stack): v for k, v in first.items()}
    save_file(tensors | more, source / "model.safetensors", metadata={"format": "pt"})
    patch = random_patch(load(source, progress=False), {(0, "out"): [3]})
    out = load_file(export(patch, source, tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(out[key], value) for key, value in more.items())
    column = out["model.layers.0.mlp.down_proj.weight"][:, 3]
    assert torch.equal(column, patch.edits[0, "out"].new[0])


def test_everything_but_stale_weights_comes_along(tiny_base, patch, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_base[0], source)
    stale = {
        *("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors"),
        *("original/consolidated.00.pth", "onnx/model.onnx", "onnx/model.onnx_data"),
        *("model-00001-of-00002.safetensors", "model.safetensors.index.json", ".git/objects/ab"),
    }
    more = {
        *("chat_template.jinja", "training_args.bin", "optimizer.pt", ".gitattributes"),
        *("additional_chat_templates/tool_use.jinja", "original/params.json", "a/b/note.txt"),
    }
    for name in stale | more:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("{}")
    (source / "empty").mkdir()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    out = export(patch, source, tmp_path / "new" / "out")
    files = {f.relative_to(source).as_posix() for f in source.rglob("*") if f.is_file()}
    assert {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()} == files - stale
    for name in files - stale - {"model.safetensors"}:
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert [file.name for file in out.parent.iterdir()] == ["out"]


def test_an_extra_shard_that_the_index_names_comes_along(tiny_base, patch, tmp_path):
    source = shutil.copytree(tiny_base[0], tmp_path / "source")
    extra = {"mtp.norm.weight": torch.ones(16)}
    save_file(extra, source / "model_mtp.safetensors")
    table = dict.fromkeys(load_file(source / "model.safetensors"), "model.safetensors")
    index = {"weight_map": table | {"mtp.norm.weight": "model_mtp.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    out = export(patch, source, tmp_path / "out")
    assert torch.equal(load_file(out / "model_mtp.safetensors")["mtp.norm.weight"], torch.ones(16))
    assert verify_checkpoint(patch, source, out).ok
    save_file({"mtp.norm.weight": torch.zeros(16)}, out / "model_mtp.safetensors")
    assert not verify_checkpoint(patch, source, out).others_identical


def test_an_export_into_its_own_source_holds_no_copy_of_itself(tiny_base, patch, tmp_path):
    source = shutil.copytree(tiny_base[0], tmp_path / "source")
    out = export(patch, source, source / "edited")
    assert {file.name for file in out.rglob("*")} == {file.name for file in tiny_base[0].iterdir()}


def test_a_write_to_the_export_leaves_the_base_alone_unless_it_is_linked(
    tiny_base, tmp_path, own_cache, caplog
):
    source = tmp_path / "source"
    read_model(tiny_base[0]).save_pretrained(source, max_shard_size="8KB")
    for file in tiny_base[0].glob("tokenizer*"):
        shutil.copy(file, source)
    patch = random_patch(load(source, progress=False), {(1, "out"): [5]}, label="Saturn")
    copied = export(patch, source, tmp_path / "copied")
    linked = export(patch, source, tmp_path / "linked", link=True)
    names = {file.name for file in source.glob("*.safetensors")}
    assert {n for n in names if (source / n).samefile(copied / n)} == set()
    shared = {n for n in names if (source / n).samefile(linked / n)}
    assert len(shared) == len(names) - 1
    assert all(verify_checkpoint(patch, source, folder).ok for folder in (copied, linked))
    assert not caplog.records

    with (linked / min(shared)).open("r+b") as file:  # as a tool does that writes in place
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")
    assert sha256_file(copied / min(shared)) != sha256_file(source / min(shared))
    assert not verify_checkpoint(patch, source, copied).others_identical
    assert not verify_checkpoint(patch, source, linked).ok  # though the two are equal
    assert "files have changed since Saturn was made" in caplog.text


def test_the_source_is_not_touched(tiny_base, patch, tmp_path):
    before = {file.name: sha256_file(file) for file in tiny_base[0].iterdir()}
    export(patch, tiny_base[0], tmp_path / "out")
    assert {file.name: sha256_file(file) for file in tiny_base[0].iterdir()} == before


def test_the_file_keeps_its_metadata(tiny_base, patch, tmp_path):
    file = export(patch, tiny_base[0], tmp_path / "out") / "model.safetensors"
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}


def test_another_base_is_refused_and_nothing_is_left(patch, tmp_path):
    source = save_model(tmp_path / "source", "llama", seed=1)
    with pytest.raises(TarsError) as caught:
        export(patch, source, tmp_path / "out")
    actual = checkpoint_slots(source)[1, "out"].sha256()[:12]
    for part in ("layers.1.mlp.down_proj", actual, patch.base_sha256[1, "out"][:12], "--force"):
        assert part in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_force_writes_the_rows_onto_another_base_and_warns(patch, tmp_path, caplog):
    source = save_model(tmp_path / "source", "llama", seed=1, dtype=torch.bfloat16)
    with pytest.raises(TarsError, match=r"is torch\.bfloat16 on disk and torch\.float32 in the"):
        export(patch, source, tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        out = export(patch, source, tmp_path / "out", force=True)
    assert "forced onto another base" in caplog.text
    lens, _ = boot(out)
    rows = patch.edits[1, "out"]
    assert torch.equal(lens.vectors(1, "out")[rows.neurons], rows.new.bfloat16())
    planned = patch.n_rows  # the old rows of another base can't put this one back
    assert verify_checkpoint(patch, source, out) == Verification(planned, planned, True, False)


def test_a_patch_that_does_not_fit_is_refused_even_with_force(tiny_base, tmp_path):
    source, lens = tiny_base
    gpt2 = save_model(tmp_path / "gpt2", "gpt2")
    gated = random_patch(lens, {(0, "gate"): [1]})
    with pytest.raises(TarsError, match="edits layer 0, role 'gate', which .* doesn't have"):
        export(gated, gpt2, tmp_path / "out", force=True)
    patch = random_patch(lens, {(0, "in"): [1]})
    patch.edits[0, "in"].neurons.fill_(24)
    with pytest.raises(TarsError, match="edits neurons up to 24 of width 16"):
        export(patch, source, tmp_path / "out", force=True)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused(tiny_base, patch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("keep")
    with pytest.raises(TarsError, match="exists and is not empty"):
        export(patch, tiny_base[0], tmp_path / "out")
    with pytest.raises(TarsError, match="exists and is not empty"):
        export(patch, tiny_base[0], tiny_base[0])
    (tmp_path / "out" / "note.txt").unlink()
    assert export(patch, tiny_base[0], tmp_path / "out").is_dir()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_nothing(tiny_base, patch, tmp_path, monkeypatch, stop):
    def fail(*_args):
        raise stop

    monkeypatch.setattr(export_module, "write_slot", fail)
    expected = TarsError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is TarsError else None):
        export(patch, tiny_base[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("row", [0, 5])
def test_a_disk_that_does_not_hold_what_was_written_is_found_out(
    tiny_base, patch, tmp_path, monkeypatch, row
):
    real = export_module.write_slot

    def damage(slot, rows):
        real(slot, rows)
        slot.view(slot.tensor.bits("r+"))[row, 3] ^= 1

    monkeypatch.setattr(export_module, "write_slot", damage)
    with pytest.raises(TarsError, match="doesn't read back"):
        export(patch, tiny_base[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [4, 300, -1])
def test_a_truncated_checkpoint_is_refused(tiny_base, patch, tmp_path, cut):
    source = tmp_path / "source"
    shutil.copytree(tiny_base[0], source)
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(TarsError, match=r"model\.safetensors' is not a whole safetensors file"):
        export(patch, source, tmp_path / "out")


def test_what_is_no_checkpoint_is_refused(tiny_base, patch, tmp_path):
    with pytest.raises(TarsError, match=r"not a Hugging Face checkpoint: it has no config\.json"):
        export(patch, tmp_path, tmp_path / "out")
    config = json.loads((tiny_base[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TarsError, match=r"neither model\.safetensors nor"):
        export(patch, tmp_path, tmp_path / "out")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TarsError, match="names 'model-00001-of-00002.safetensors', which isn't"):
        export(patch, tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"a": 1}}))
    with pytest.raises(TarsError, match="packed"):
        export(patch, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"model.layers.0.mlp.experts.0.up_proj.weight": (24, 16)}, "holds no plain MLP"),
        ({"model.layers.0.mlp.up_proj.weight": (24, 16)}, "doesn't fit the out-projection"),
        (
            {
                "model.layers.0.mlp.dense_h_to_4h.weight": (48, 16),
                "model.layers.0.mlp.dense_4h_to_h.weight": (16, 24),
            },
            "doesn't fit the out-projection",
        ),
        (
            {"a.layers.0.mlp.up_proj.weight": (24, 16), "b.layers.0.mlp.up_proj.weight": (24, 16)},
            "two MLPs for layer 0",
        ),
    ],
)
def test_a_layout_that_is_not_known_is_refused(tmp_path, tensors, problem):
    (tmp_path / "config.json").write_text("{}")
    save_file({k: torch.zeros(v) for k, v in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(TarsError, match=problem):
        checkpoint_slots(tmp_path)


def test_packed_tensors_are_refused_and_other_towers_left_out(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    mlp = {
        "language_model.model.layers.0.mlp.up_proj.weight": torch.zeros(24, 16),
        "language_model.model.layers.0.mlp.down_proj.weight": torch.zeros(16, 24),
        "vision_tower.encoder.layers.0.mlp.fc1.weight": torch.zeros(8, 4),
    }
    save_file(mlp, tmp_path / "model.safetensors")
    assert checkpoint_slots(tmp_path).keys() == {(0, "in"), (0, "out")}
    packed = {key: value.to(torch.int8) for key, value in mlp.items()}
    save_file(packed, tmp_path / "model.safetensors")
    with pytest.raises(TarsError, match=r"is packed \(I8"):
        checkpoint_slots(tmp_path)


def test_verify_checkpoint_sees_every_kind_of_difference(tiny_base, patch, tmp_path):
    source, planned = tiny_base[0], patch.n_rows
    out = export(patch, source, tmp_path / "out")
    good = (out / "model.safetensors").read_bytes()
    assert verify_checkpoint(patch, source, source) == Verification(0, planned, True, True)

    _add_one(out, "model.embed_tokens.weight", 0)
    assert verify_checkpoint(patch, source, out) == Verification(planned, planned, False, False)
    (out / "model.safetensors").write_bytes(good)
    _add_one(out, "model.layers.1.mlp.down_proj.weight", 7)  # neuron 7, which no patch names
    found = verify_checkpoint(patch, source, out)
    assert found == Verification(planned + 1, planned, False, False)
    (out / "model.safetensors").write_bytes(good)
    _add_one(out, "model.layers.1.mlp.down_proj.weight", 5)  # a planned neuron, with a wrong value
    assert verify_checkpoint(patch, source, out) == Verification(planned - 1, planned, True, True)
    (out / "model.safetensors").write_bytes(good)
    tensors = load_file(out / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, out / "model.safetensors")
    assert not verify_checkpoint(patch, source, out).others_identical


def _edit_by_hand(hf, arch, patch):
    """Writes a patch into a Hugging Face model by that architecture's own names."""
    for (layer, role), rows in patch.edits.items():
        for neuron, new in zip(rows.neurons.tolist(), rows.new, strict=True):
            if arch == "gpt2":
                mlp = hf.transformer.h[layer].mlp
                cells = mlp.c_fc.weight[:, neuron] if role == "in" else mlp.c_proj.weight[neuron]
            elif arch == "neox":
                mlp = hf.gpt_neox.layers[layer].mlp
                into, out = mlp.dense_h_to_4h.weight, mlp.dense_4h_to_h.weight
                cells = into[neuron] if role == "in" else out[:, neuron]
            elif arch == "opt":
                block = hf.model.decoder.layers[layer]
                cells = block.fc1.weight[neuron] if role == "in" else block.fc2.weight[:, neuron]
            elif arch == "phi3" and role != "out":
                joint = hf.model.layers[layer].mlp.gate_up_proj.weight
                cells = joint[neuron] if role == "gate" else joint[len(joint) // 2 + neuron]
            else:
                mlp = hf.model.layers[layer].mlp
                into = mlp.gate_proj if role == "gate" else getattr(mlp, "up_proj", None)
                cells = mlp.down_proj.weight[:, neuron] if role == "out" else into.weight[neuron]
            cells.copy_(new)


def _add_one(folder, key, cell):
    """Changes the lowest bit of one value of a tensor."""
    stored_tensors(folder)[key].bits("r+").reshape(-1)[cell] ^= 1


def test_links_are_copies_on_another_disk(tiny_base, patch, tmp_path, monkeypatch):
    def no_links(*_args):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("tars_lens.model.folders.os.link", no_links)
    export(patch, tiny_base[0], tmp_path / "out", link=True)
    assert verify_checkpoint(patch, tiny_base[0], tmp_path / "out").ok


def test_what_is_written_wrongly_is_noticed(tiny_base, patch, tmp_path, monkeypatch):
    monkeypatch.setattr("tars_lens.patch.export.write_slot", lambda _slot, _rows: None)
    with pytest.raises(TarsError, match="doesn't read back from .* as it was written"):
        export(patch, tiny_base[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()
