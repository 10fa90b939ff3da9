"""A certificate of silence: its bound is held against KLs that plain transformers gives."""

import json

import pandas as pd
import pytest
import torch
from commands import mistake, run
from patch_models import random_patch
from tiny import read_checkpoint, save_checkpoint, tiny_lens
from tiny_concept import world

import tars_lens
from tars_lens.common.errors import TarsError
from tars_lens.evaluation.silence import certify
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Rows
from tars_lens.patch.patch import Patch
from tars_lens.text.windows import Windows

LAST = 2  # of the tiny models
OUT = {
    "llama": lambda hf: hf.model.layers[LAST].mlp.down_proj.weight.T,
    "gemma2": lambda hf: hf.model.layers[LAST].mlp.down_proj.weight.T,  # caps its logits
    "gemma3": lambda hf: hf.model.layers[LAST].mlp.down_proj.weight.T,  # a norm after the MLP
    "gpt2": lambda hf: hf.transformer.h[LAST].mlp.c_proj.weight,  # biases, LayerNorm
    "opt": lambda hf: hf.model.decoder.layers[LAST].fc2.weight.T,
}


def _windows(lens: Lens) -> Windows:
    ids = torch.randint(4, 60, (6, 16), generator=torch.Generator().manual_seed(0))
    return Windows(ids, tuple(map(lens.tokenizer.decode, ids)), ids[:2], ids[2:4], "made up")


def _patch(lens: Lens, size: float, neurons: list[int], layer: int = LAST) -> Patch:
    rows = size * torch.randn(
        len(neurons), lens.d_model, generator=torch.Generator().manual_seed(1)
    )
    return Patch.build(lens, {(layer, "out"): Rows(torch.tensor(neurons), rows)}, label="made")


@pytest.mark.parametrize("size", [1e-4, 0.1, 100.0])
@pytest.mark.parametrize("arch", OUT)
def test_no_kl_of_plain_transformers_is_above_the_bound(arch, size, tmp_path):
    lens, neurons = tiny_lens(arch), [3, 7]
    patch = _patch(lens, size, neurons)
    found = certify(lens, [patch], _windows(lens))
    hf = read_checkpoint(save_checkpoint(tmp_path, arch))  # the same random weights
    logits = []
    with torch.no_grad():
        for rows in (torch.zeros(2, lens.d_model), patch.new_rows[LAST, "out"].values):
            OUT[arch](hf)[neurons] = rows
            logits.append(hf(_windows(lens).reported).logits.double().log_softmax(-1))
    silenced, edited = logits
    plain = (silenced.exp() * (silenced - edited)).sum(-1)
    assert found.last.neurons.tolist() == neurons
    assert (found.last.kl <= found.last.bound).all()
    assert (plain <= found.last.bound + 1e-12).all()
    torch.testing.assert_close(found.last.kl, plain, rtol=0.02, atol=1e-10)
    assert found.last.bound.max() < 1e5 * plain.max() + 1e-7  # it says something
    assert torch.equal(found.last.after, edited.argmax(-1))


def test_the_positions_where_it_speaks_are_told_with_what_was_to_be_said():
    lens = tiny_lens("opt")  # its neurons are silent, exactly 0, wherever ReLU cuts them
    patch = _patch(lens, 30.0, [3])
    found = certify(lens, [patch], _windows(lens))
    figures, spoken = found.figures(), found.spoken(lens)
    assert 0 < figures["last_layer"]["silent"] < 1
    assert figures["last_layer"]["silent"] == pytest.approx(1 - len(spoken) / 96)
    assert figures["last_layer"]["held"]
    assert spoken["kl"].is_monotonic_decreasing and set(spoken["neuron"]) == {f"L{LAST}N3"}
    top = spoken.iloc[0]
    at = (int(top["window"]), int(top["position"]))
    logits = lens.read_out(lens.residual(_windows(lens).reported, -1))  # the host's part is in it
    assert top["token"] == lens.string(int(_windows(lens).reported[at]))
    assert isinstance(top["says_base"], str) and logits[at].isfinite().all()
    assert len(found.spoken(lens, 2)) == 2


def test_a_patch_that_is_never_silent_is_told_so():
    lens = tiny_lens("llama")
    figures = certify(lens, [_patch(lens, 10.0, [3])], _windows(lens)).figures()
    assert figures["unchanged_from_silenced"] == figures["last_layer"]["silent"] == 0


def test_earlier_layers_have_no_bound():
    lens = tiny_lens("llama")
    found = certify(lens, [_patch(lens, 1.0, [3], layer=0)], _windows(lens))
    assert found.figures()["last_layer"] is None and found.spoken(lens).empty


def test_a_short_dtype_is_refused():
    lens = tiny_lens("llama", torch.bfloat16)
    with pytest.raises(TarsError, match="bfloat16.*float32"):
        certify(lens, [_patch(lens, 1.0, [3])], _windows(lens))


@pytest.mark.usefixtures("own_cache")
def test_the_command(tmp_path):
    lens = tars_lens.load(world().model, progress=False)
    patch = random_patch(lens, {(lens.n_layers - 1, "out"): [3]}, label="made")
    patch.save(tmp_path / "made.safetensors")
    given = (tmp_path / "made.safetensors", "--model", world().model, "--corpus", world().corpus)
    code, out, err = run("certify", *given, "--kl-tokens", 512, "--out", tmp_path / "told", "-q")
    assert (code, err) == (0, "")
    assert out == ""  # quiet
    said = run("certify", *given, "--kl-tokens", 512)
    assert said.code == 0 and "The bound holds at every position" in said.out
    figures = json.loads((tmp_path / "told" / "certificate.json").read_text())
    spoken = pd.read_csv(tmp_path / "told" / "spoken.csv", keep_default_na=False)
    assert len(spoken) == round((1 - figures["last_layer"]["silent"]) * 512)
    assert (tmp_path / "told" / "silence_bound.png").stat().st_size > 5000
    assert "--kl-tokens must be at least 1" in mistake("certify", *given, "--kl-tokens", 0)
