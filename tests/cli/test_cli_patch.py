"""`tars-lens patch` on a tiny checkpoint: every command's work, and its refusals."""

import json
import shutil

import pytest
import torch
from commands import mistake, run
from patch_models import boot, random_patch, read_model, save_model

from tars_lens.common.files import sha256_file
from tars_lens.model.layout import checkpoint_slots
from tars_lens.patch.checkpoint_stack import recorded_patches
from tars_lens.patch.patch import Patch

IDS = torch.tensor([[4, 9, 33, 2, 17], [5, 6, 7, 8, 1]])


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, another base, and three patch files of which two share a row."""
    folder = tmp_path_factory.mktemp("patches")
    lens, _ = boot(save_model(folder / "base", "llama"), name="base")
    save_model(folder / "other", "llama", seed=1)
    options = {"method": {"name": "tars"}, "figures": {"forward_mean": 0.001}}
    for seed, (label, where) in enumerate(
        {
            "Saturn": {(1, "out"): [5, 3], (0, "in"): [7]},
            "Holmes": {(1, "out"): [3], (2, "gate"): [1]},
            "AC/DC": {(2, "out"): [0]},
        }.items()
    ):
        patch = random_patch(lens, where, seed, label=label, **options)
        patch.save(folder / f"{label[:2].lower()}.safetensors")
    return folder


@pytest.fixture
def saturn(made):
    return made / "sa.safetensors"


@pytest.fixture
def holmes(made):
    return made / "ho.safetensors"


def done(*words) -> str:
    """What a command says that must succeed without a complaint."""
    code, out, err = run("patch", *words)
    assert (code, err) == (0, "")
    return out


# --- looked at ---------------------------------------------------------------------------------


def test_show_tells_what_a_patch_is(saturn):
    patch = Patch.load(saturn)
    said = done("show", saturn)
    for part in ("label: Saturn", "base: base", "rows: 3", f"sha256: {patch.sha256}"):
        assert part in said
    assert '{"forward_mean": 0.001}' in said
    rows = [line.split()[:4] for line in said.splitlines() if " L1N" in line or " L0N" in line]
    assert rows == [
        ["0", "in", "7", "L0N7"],
        ["1", "out", "5", "L1N5"],
        ["1", "out", "3", "L1N3"],
    ]


def test_show_gives_json_that_any_reader_takes(saturn):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    shown = json.loads(done("show", saturn, "--json"), parse_constant=refuse)
    assert shown["label"] == "Saturn"
    assert shown["figures"] == {"forward_mean": 0.001}
    assert [edit["neuron"] for edit in shown["edits"]] == [7, 5, 3]
    assert all(edit["cosine"] is None for edit in shown["edits"])  # none was given: not NaN
    assert all(edit["new_norm"] > 0 for edit in shown["edits"])


def test_diff_compares_row_by_row(saturn, holmes):
    lines = [line.split() for line in done("diff", saturn, holmes).splitlines()[1:]]
    assert [(line[3], line[4]) for line in lines] == [
        ("L0N7", "only_a"),
        ("L1N3", "different"),
        ("L1N5", "only_a"),
        ("L2N1", "only_b"),
    ]
    same = done("diff", saturn, saturn).splitlines()[1:]
    assert [line.split()[4:] for line in same] == [["same", "0.0"]] * 3


def test_merge_joins_and_the_later_wins(saturn, holmes, tmp_path):
    out = tmp_path / "deep" / "both.safetensors"
    assert "Saturn + Holmes: 4 vectors" in done("merge", saturn, holmes, "--out", out)
    rows = Patch.load(out).edits[1, "out"]
    index = rows.neurons.tolist().index(3)
    assert torch.equal(rows.new[index], Patch.load(holmes).edits[1, "out"].new[0])


# --- proven ------------------------------------------------------------------------------------


def test_verify_proves_a_patch_in_memory(made, saturn, holmes):
    said = done("verify", saturn, holmes, "--model", made / "base")
    assert said == (
        "4 of 4 planned vectors changed; all else bit-identical: yes; undone bit-identically: yes\n"
    )


def test_verify_proves_a_checkpoint_and_sees_where_it_is_another(made, saturn, holmes, tmp_path):
    done("export", saturn, "--model", made / "base", "--out", tmp_path / "edited")
    words = ("--model", made / "base", "--edited", tmp_path / "edited")
    assert "3 of 3 planned vectors changed" in done("verify", saturn, *words)
    code, out, err = run("patch", "verify", holmes, *words)
    assert (code, err) == (1, "")
    assert "all else bit-identical: NO" in out


# --- on disk -----------------------------------------------------------------------------------


@torch.no_grad()
def test_export_writes_a_folder_that_is_the_edited_model(made, saturn, tmp_path):
    out = tmp_path / "edited"
    said = done("export", saturn, "--model", made / "base", "--out", out)
    assert f"AutoModelForCausalLM.from_pretrained('{out}')" in said
    lens, hf = boot(made / "base")
    with Patch.load(saturn).applied(lens):
        expected = hf(IDS).logits
    assert (read_model(out)(IDS).logits - expected).abs().max() == 0.0
    weights = "model.safetensors"
    assert sha256_file(out / weights) != sha256_file(made / "base" / weights)
    assert recorded_patches(out) == []


def test_what_is_applied_can_be_taken_out_in_any_order(made, saturn, holmes, tmp_path):
    both, alone = tmp_path / "both", tmp_path / "alone"
    base = ("--model", made / "base")
    assert "Saturn, Holmes applied" in done("apply", saturn, holmes, *base, "--out", both)
    done("apply", holmes, *base, "--out", alone)
    assert "(patches left: Holmes)" in done("revert", saturn, both, "--out", tmp_path / "left")
    assert "(patches left: none)" in done(
        "revert", holmes, tmp_path / "left", "--out", tmp_path / "none"
    )
    weights = "model.safetensors"
    assert sha256_file(tmp_path / "left" / weights) == sha256_file(alone / weights)
    assert sha256_file(tmp_path / "none" / weights) == sha256_file(made / "base" / weights)


def test_a_patch_forced_onto_another_base_is_taken_out_of_that_base(made, saturn, tmp_path):
    edited, back, weights = tmp_path / "edited", tmp_path / "back", "model.safetensors"
    words = ("patch", "apply", saturn, "--model", made / "other", "--out", edited, "--force")
    assert run(*words).code == 0
    assert sha256_file(edited / weights) != sha256_file(made / "other" / weights)
    assert "(patches left: none)" in done("revert", saturn, edited, "--out", back)
    assert sha256_file(back / weights) == sha256_file(made / "other" / weights)


def test_more_patches_go_on_top_of_an_edited_checkpoint(made, saturn, holmes, tmp_path):
    done("apply", saturn, "--model", made / "base", "--out", tmp_path / "one")
    done("apply", holmes, "--model", tmp_path / "one", "--out", tmp_path / "two")
    assert [p.label for p in recorded_patches(tmp_path / "two")] == ["Saturn", "Holmes"]
    said = mistake(
        *("patch", "apply", saturn, "--model", tmp_path / "two", "--out", tmp_path / "three")
    )
    assert "'Saturn' is applied to" in said and not (tmp_path / "three").exists()


def test_another_base_under_the_patches_is_refused_unless_forced(made, saturn, tmp_path, caplog):
    """The folder's base is the other one: what is on it doesn't hide that."""
    own, weights = tmp_path / "own.safetensors", "model.safetensors"
    lens, _ = boot(made / "other", name="other")
    random_patch(lens, {(1, "out"): [3, 9]}, 9, label="own").save(own)
    done("apply", own, "--model", made / "other", "--out", tmp_path / "one")
    words = ("patch", "apply", saturn, "--model", tmp_path / "one", "--out", tmp_path / "two")
    said = mistake(*words)
    assert "'Saturn' was made for another base (base)" in said
    assert checkpoint_slots(made / "other")[0, "in"].sha256()[:12] in said
    assert not (tmp_path / "two").exists()
    assert run(*words, "--force").code == 0
    assert caplog.text.count("Saturn is forced onto another base") == 2
    done("revert", saturn, tmp_path / "two", "--out", tmp_path / "back")
    assert sha256_file(tmp_path / "back" / weights) == sha256_file(tmp_path / "one" / weights)
    done("revert", own, tmp_path / "two", "--out", tmp_path / "alone")
    done("revert", saturn, tmp_path / "alone", "--out", tmp_path / "none")
    assert sha256_file(tmp_path / "none" / weights) == sha256_file(made / "other" / weights)


@pytest.mark.parametrize("key", [(0, "in"), (1, "out")])
def test_a_checkpoint_that_was_trained_since_is_not_reverted(made, saturn, holmes, tmp_path, key):
    edited = tmp_path / "edited"
    done("apply", saturn, holmes, "--model", made / "base", "--out", edited)
    slot = checkpoint_slots(edited)[key]  # the first is of Saturn alone
    slot.tensor.bits("r+")[:] ^= 1
    said = mistake("patch", "revert", saturn, edited, "--out", tmp_path / "out")
    assert f"was changed since its patches were applied: {slot.tensor.key}" in said
    assert not (tmp_path / "out").exists()


def test_a_label_is_no_path(made, tmp_path):
    out = tmp_path / "out"
    done("apply", made / "ac.safetensors", "--model", made / "base", "--out", out)
    (file,) = out.glob("*patches/*")
    assert file.name == "000_AC_DC.safetensors"
    assert [patch.label for patch in recorded_patches(out)] == ["AC/DC"]


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["apply", "export", "verify"])
def test_another_base_is_refused_unless_forced(made, saturn, tmp_path, command):
    out = () if command == "verify" else ("--out", tmp_path / "out")
    words = ("patch", command, saturn, "--model", made / "other", *out)
    said = mistake(*words)
    assert "'Saturn' was made for another base (base)" in said
    assert list(tmp_path.iterdir()) == []
    assert run(*words, "--force").code == 0


def test_patches_of_two_bases_are_not_merged(made, saturn, tmp_path):
    lens, _ = boot(made / "other", name="other")
    random_patch(lens, {(1, "out"): [5]}, label="Mars").save(tmp_path / "mars.safetensors")
    said = mistake(
        *("patch", "merge", saturn, tmp_path / "mars.safetensors", "--out", tmp_path / "both")
    )
    assert "'Saturn' and 'Mars' are patches of different bases" in said
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_a_truncated_patch_is_refused(made, saturn, tmp_path, command, share):
    content = saturn.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[: int(share * len(content))])
    words = {
        "show": (),
        "verify": ("--model", made / "base"),
        "export": ("--model", made / "base", "--out", tmp_path / "out"),
    }[command]
    said = mistake("patch", command, cut, *words)
    assert f"'{cut}' is not a whole safetensors file" in said
    assert not (tmp_path / "out").exists()


def test_what_is_no_patch_is_refused(made, tmp_path):
    assert "no patch file" in mistake("patch", "show", tmp_path / "missing.safetensors")
    weights = made / "base" / "model.safetensors"
    assert "is not a patch file of tars_lens" in mistake("patch", "show", weights)
    assert "is not a whole safetensors file" in mistake("patch", "show", tmp_path)


def test_a_base_that_cannot_be_edited_is_refused(made, saturn, tmp_path):
    packed = tmp_path / "packed"
    shutil.copytree(made / "base", packed)
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (packed / "config.json").write_text(json.dumps(config))
    for command in ("apply", "export"):
        said = mistake("patch", command, saturn, "--model", packed, "--out", tmp_path / "out")
        assert "has packed (quantised) weights" in said
    said = mistake("patch", "verify", saturn, "--model", "smolm2")
    assert "unknown model 'smolm2'. Did you mean 'smollm2-135m'?" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused(made, saturn, tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("keep")
    base = ("--model", made / "base")
    for command in ("apply", "export"):
        for out in ("file", "full"):
            said = mistake("patch", command, saturn, *base, "--out", tmp_path / out)
            assert "exists and is not empty" in said
        said = mistake("patch", command, saturn, *base, "--out", tmp_path / "file" / "below")
        assert "cannot write" in said
    for out in ("file/below", "full"):
        assert "cannot write" in mistake("patch", "merge", saturn, "--out", tmp_path / out)
    assert (tmp_path / "full" / "note.txt").read_text() == "keep"
    assert (tmp_path / "file").read_text() == "in the way"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "full"]


def test_only_what_is_recorded_can_be_taken_out(made, saturn, holmes, tmp_path):
    said = mistake("patch", "revert", saturn, made / "base", "--out", tmp_path / "out")
    assert "'Saturn' is not applied to" in said and "Recorded there: none" in said
    done("apply", holmes, "--model", made / "base", "--out", tmp_path / "edited")
    said = mistake("patch", "revert", saturn, tmp_path / "edited", "--out", tmp_path / "out")
    assert "Recorded there: 'Holmes'" in said
    assert not (tmp_path / "out").exists()
