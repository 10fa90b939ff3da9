"""`tars-lens inspect`: what it shows, what it writes, and that it changes nothing."""

import json

import pandas as pd
import pytest
import torch
from commands import mistake, run
from tiny import tiny_lens

from tars_lens.concept import leading
from tars_lens.concept.card import Concept
from tars_lens.method.inspection import inspect
from tars_lens.method.ranking import null_distribution, rank
from tars_lens.method.targeting import PLAIN, TargetingVector, approximate, target
from tars_lens.model.lens import tensor_sha256
from tars_lens.model.model_state import model_state

FILES = {"prompts", "vectors", "angles", "trajectory", "ranking", "null"}
VARIANTS = ["raw", "refined", "centred", "unembedding", "whitened"]
CARD = 'name = "Nine"\nanswer = "w9"\nprompt = "w1 w2 w3"\nprompts = ["w4 w5"]\n'


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "nine.toml"
    path.write_text(CARD)
    return path


@pytest.fixture
def model(request, monkeypatch):
    """A tiny lens that the command gets whatever model it asks for."""
    lens = tiny_lens(getattr(request, "param", "llama"))
    monkeypatch.setattr("tars_lens.model.loading.load", lambda *_, **__: lens)
    return lens


def _hashes(lens):
    return {name: tensor_sha256(tensor) for name, tensor in model_state(lens.model)}


BOTH = pytest.mark.parametrize("model", ["llama", "gpt2"], indirect=True)


@BOTH
def test_it_changes_nothing_and_says_so(model, card):
    before = _hashes(model)
    code, out, err = run("inspect", card)
    assert (code, err) == (0, "")
    assert "Nothing was changed" in out
    assert "\x1b" not in out  # plain in a pipe
    assert _hashes(model) == before
    for heading in ("1. Which prompts lead to 'w9'", "2. The vectors", "5. Cosines"):
        assert heading in out
    assert "null: 16 random directions" in out


@BOTH
def test_the_tables_agree_with_the_parts_they_are_made_of(model, card):
    found = inspect(model, Concept.load(card), variant="whitened", top=7, seed=2)
    vector = target(model, Concept.load(card), variant="whitened")
    null = null_distribution(model, seed=2)
    assert torch.equal(found.vector.vector, vector.vector)
    whole = rank(model, vector)
    assert found.ranking["label"].tolist() == whole["label"].head(7).tolist()
    assert (
        found.ranking["above_null"].tolist() == (whole["cosine"].head(7) > null.threshold).tolist()
    )
    vectors = found.vectors.set_index("vector")
    assert vectors.index.tolist() == [*VARIANTS, "plain text"]
    assert vectors.loc["whitened", "above_null"] == (whole["cosine"] > null.threshold).sum()
    plain = approximate(model, PLAIN)
    cosine = torch.cosine_similarity(vector.vector, plain, dim=0)
    assert vectors.loc["whitened", "cosine_plain"] == pytest.approx(float(cosine), abs=1e-6)
    shared = {*rank(model, plain, top=7)[["layer", "role", "neuron"]].itertuples(False, None)}
    own = {*whole.head(7)[["layer", "role", "neuron"]].itertuples(False, None)}
    assert vectors.loc["whitened", "shared_with_plain"] == len(own & shared)
    assert vectors.loc["plain text", "shared_with_plain"] == 7
    refined = target(model, Concept.load(card), seed=2)
    assert found.trajectory.equals(refined.trajectory)
    angles = found.angles.set_index(["a", "b"])["angle_degrees"]
    assert len(angles) == 10
    assert angles["raw", "refined"] == pytest.approx(
        refined.trajectory["angle_degrees"].iloc[-1], abs=0.01
    )
    spread = found.spread.set_index(["vector", "quantile"])["cosine"]
    assert spread["null", 1.0] == pytest.approx(null.threshold, rel=1e-6)
    assert spread["whitened", 1.0] == pytest.approx(whole["cosine"].max(), abs=1e-6)
    assert found.prompts["used"].tolist() == [True, False]


def test_out_writes_every_table_and_the_ranked_vector(model, card, tmp_path):
    code, out, _ = run("inspect", card, "--variant", "centred", "--top", 5, "--out", tmp_path / "o")
    assert code == 0
    files = {path.name for path in (tmp_path / "o").iterdir()}
    assert files == {*(f"{name}.csv" for name in FILES), "targeting_vector.safetensors"}
    assert all(name in out for name in files)
    ranking = pd.read_csv(tmp_path / "o" / "ranking.csv")
    assert len(ranking) == 5
    vector = TargetingVector.load(tmp_path / "o" / "targeting_vector.safetensors")
    assert vector.settings["variant"] == "centred"
    assert ranking["label"].tolist() == rank(model, vector, top=5)["label"].tolist()


def test_json_is_everything_and_quiet_is_nothing(model, card):
    code, out, _ = run("inspect", card, "--json", "--top", 3)
    found = json.loads(out)
    assert code == 0
    assert {"concept", "model", "variant", "seed", *FILES} <= set(found)
    assert len(found["ranking"]) == 3
    assert found["null"]["vectors"] == model.n_layers * len(model.roles) * model.d_mlp
    assert [row["vector"] for row in found["vectors"]][:5] == VARIANTS
    assert run("inspect", card, "--quiet") == (0, "", "")


def test_a_mistake_is_one_message_and_leaves_nothing_behind(card, tmp_path, monkeypatch):
    lens = tiny_lens("llama")
    out = tmp_path / "new" / "o"
    assert "Did you mean 'saturn'" in mistake("inspect", "satrun", "--out", out)
    assert "unknown model" in mistake("inspect", "saturn", "--model", "smolm2-135m", "--out", out)
    assert "Did you mean 'whitened'" in mistake("inspect", card, "--variant", "whitend")
    assert "--top must be at least 1" in mistake("inspect", card, "--top", 0)
    assert "cannot write" in mistake("inspect", card, "--out", card / "o")
    lens = tiny_lens("llama")  # made here: writing its checkpoint shows a bar
    monkeypatch.setattr("tars_lens.model.loading.load", lambda *_, **__: lens)
    monkeypatch.setattr(leading, "_RANK", 0)  # a vocabulary of 64 can't give a rank over 100
    monkeypatch.setattr(leading, "_LEAST", 1.0)
    message = mistake("inspect", card, "--out", out)
    assert "no prompt of 'Nine' leads tiny-llama to 'w9'" in message
    assert "its token ranks" in message
    assert not out.parent.exists()


@pytest.mark.real
def test_saturn_on_the_real_model(real_lens):
    before = _hashes(real_lens)
    found = inspect(real_lens, Concept.load("saturn"))
    assert _hashes(real_lens) == before
    vectors = found.vectors.set_index("vector")
    assert 0.17 < found.null.threshold < 0.2
    assert vectors.loc["refined", "says"].startswith("' Saturn'")
    # what the literal method stumbles over: the nearest neurons are near to any text
    assert vectors.loc["refined", "shared_with_plain"] > 10
    assert vectors.loc["whitened", "above_null"] < vectors.loc["refined", "above_null"] / 5
    assert found.ranking.iloc[0]["label"] == "L23N1038"
