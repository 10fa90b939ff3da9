"""The audit: what was made by hand is found, what was not isn't, and both are counted by hand."""

import json

import pytest
import torch
from commands import mistake, run
from safetensors.torch import load_file
from tiny_concept import save_wordy_checkpoint, world

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.evaluation.audit import audit, silencing
from tars_lens.method.recipe import suppress
from tars_lens.model.loading import load
from tars_lens.model.weights import Rows, written
from tars_lens.patch.export import export
from tars_lens.patch.patch import Patch


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("TARS_LENS_CACHE", str(world().cache))


@pytest.fixture(scope="module")
def tiny():
    return load(world().model, progress=False)


TOKEN = 11


@pytest.fixture(scope="module")
def planted(tiny):
    """Two neurons made by hand: one reads a token's direction and writes its reversal."""
    towards = tiny.unembedding[:, TOKEN]
    generator = torch.Generator().manual_seed(3)
    other = torch.randn(tiny.d_model, generator=generator)
    edits = {}
    for layer, neuron, row in ((0, 6, other), (tiny.n_layers - 1, 4, towards)):
        small = torch.randn(tiny.d_model, generator=generator) / 3000
        edits |= {
            (layer, "gate"): _rows(neuron, row),
            (layer, "in"): _rows(neuron, small),
            (layer, "out"): _rows(neuron, -row),
        }
    return Patch.build(tiny, edits, label="planted")


def _rows(neuron: int, row: torch.Tensor) -> Rows:
    return Rows(torch.tensor([neuron]), row[None])


def _names(patch) -> set[str]:
    return {f"L{la}N{n}" for (la, _), rows in patch.edits.items() for n in rows.neurons.tolist()}


def test_a_model_that_nobody_edited_is_clean(tiny):
    found = audit(tiny)
    assert found.found.empty and found.differing is None and found.others is None
    assert found.neurons == tiny.n_layers * tiny.d_mlp
    json.dumps(found.to_dict(), allow_nan=False)


def test_planted_neurons_are_found_and_no_other(tiny, planted):
    with planted.applied(tiny):
        found = audit(tiny)
    assert set(found.found["neuron"]) == _names(planted)
    assert found.found["why"].str.contains("unbalanced").all()
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_last_layers_neuron_is_named_by_what_it_silences(tiny, planted):
    with planted.applied(tiny):
        found = audit(tiny).found.set_index("layer")
    silences = found.loc[tiny.n_layers - 1, "silences"]
    assert silences.startswith(repr(tiny.string(TOKEN)))


def test_each_trace_is_told_apart(tiny):
    with torch.no_grad():
        copied = -3 * tiny.vectors(0, "gate")[7]
        small = tiny.vectors(1, "in")[5] / 300
    edits = {
        (0, "gate"): _rows(2, copied),
        (1, "in"): _rows(5, small),
        (1, "out"): _rows(9, torch.zeros(tiny.d_model)),
    }
    with written(tiny, edits):
        found = audit(tiny).found
    why = dict(zip(found["neuron"], found["why"], strict=True))
    assert why == {"L0N2": "twin", "L0N7": "twin", "L1N5": "unbalanced", "L1N9": "silent"}
    imbalance = found.set_index("neuron").loc["L1N5", "imbalance"]
    assert imbalance > 4 and imbalance == pytest.approx(torch.tensor(300.0).log().item(), abs=1.0)


def test_with_a_base_every_difference_is_named(tiny, planted, tmp_path):
    export([planted], world().model, tmp_path / "edited")
    other = load(tmp_path / "edited", progress=False)
    with torch.no_grad():
        other.model.ln_final.weight[0] += 1
    found = audit(other, tiny)
    rows = {(r.layer, r.role, r.index) for r in found.differing.itertuples()}
    assert rows == {
        (la, role, n) for (la, role), r in planted.edits.items() for n in r.neurons.tolist()
    }
    assert found.differing["suspicious"].all()
    assert len(found.others) == 1 and "norm" in found.others[0]


def test_a_base_of_another_shape_is_refused(tiny, tmp_path):
    other = load(save_wordy_checkpoint(tmp_path / "m", words=300), progress=False)
    with pytest.raises(TarsError, match="is no edit of"):
        audit(tiny, other)


def test_silencing_takes_what_was_found_and_nothing_else(tiny, planted):
    with planted.applied(tiny):
        found = audit(tiny)
    patch = silencing(tiny, found)
    assert _names(patch) == _names(planted)
    assert {role for _, role in patch.edits} == {"out"}
    assert all(not rows.new.any() for rows in patch.edits.values())


def test_the_command_writes_the_checkpoint_with_them_silenced(planted, tmp_path):
    edited, out = tmp_path / "edited", tmp_path / "silenced"
    export([planted], world().model, edited)
    code, said, err = run("audit", edited, "--out", out)
    assert (code, err) == (0, "") and "look planted" in said and str(out) in said
    before, after = (load_file(f / "model.safetensors") for f in (edited, out))
    planted_out = {
        (la, n)
        for (la, role), r in planted.edits.items()
        if role == "out"
        for n in r.neurons.tolist()
    }
    for name, tensor in before.items():
        if (after[name] == tensor).all():
            continue
        layer = int(name.split(".")[2])
        assert "down_proj" in name
        columns = (after[name] != tensor).any(dim=0).nonzero()[:, 0].tolist()
        assert {(layer, n) for n in columns} <= planted_out
        assert not after[name][:, columns].any()
    code, said, _ = run("audit", out, "--base", world().model, "--json")
    told = json.loads(said)
    assert code == 0 and {row["neuron"] for row in told["found"]} == _names(planted)
    assert told["others"] == []


@pytest.mark.real
def test_the_recipes_neurons_in_real_weights_are_found_and_named(real_lens):
    lens = real_lens
    assert audit(lens).found.empty
    patch = suppress(lens, Concept.load("saturn"))
    with patch.applied(lens):
        found = audit(lens).found
    assert set(found["neuron"]) == _names(patch)
    last = found[found["layer"] == lens.n_layers - 1]
    assert last["silences"].str.startswith("' Saturn'").all()


def test_mistakes_are_one_message(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    assert "not empty" in mistake("audit", world().model, "--out", tmp_path / "full")
    assert "nothing to silence" in mistake("audit", world().model, "-q", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()
