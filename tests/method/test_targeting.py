import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_lens

from tars_lens.common.errors import TarsError
from tars_lens.concept import leading
from tars_lens.concept.card import Concept
from tars_lens.method.targeting import (
    PLAIN,
    TargetingVector,
    approximate,
    check_variant,
    refine,
    target,
)
from tars_lens.model.lens import Lens
from tars_lens.model.unembedding import Unembedding

CONCEPT = Concept(name="nine", answer="w9", prompt="w1 w2 w3", prompts=("w4 w5",))
TOKEN = 13  # of w9, after four special tokens


def _probability(lens: Lens, vector: torch.Tensor) -> float:
    return float(lens.read_out(vector).softmax(-1)[TOKEN])


def test_the_approximate_vector_is_the_last_residual_at_the_last_token(lens):
    found = approximate(lens, ["w1 w2 w3"])
    logits = lens.model(lens.prompts(["w1 w2 w3"]).ids)[0, -1]
    torch.testing.assert_close(lens.read_out(found), logits.detach(), rtol=0, atol=1e-5)
    both = approximate(lens, ["w1 w2 w3", "w4 w5"])
    torch.testing.assert_close(both, (found + approximate(lens, ["w4 w5"])) / 2)


def test_the_refinement_raises_the_probability_and_keeps_its_path(lens):
    found = target(lens, CONCEPT, sigma=0.3, budget=12)
    path = found.to_frame()
    assert list(path.columns) == ["step", "probability", "cosine", "angle_degrees"]
    assert path["step"].tolist() == list(range(13))
    assert path["probability"].is_monotonic_increasing
    assert path["probability"].iloc[0] == pytest.approx(_probability(lens, found.start))
    assert path["probability"].iloc[-1] == pytest.approx(_probability(lens, found.vector), rel=1e-5)
    assert found.probability > 2 * path["probability"].iloc[0]
    cosine = float(torch.cosine_similarity(found.vector, found.start, dim=0))
    assert path["cosine"].iloc[-1] == pytest.approx(cosine, abs=1e-6)
    degrees = torch.rad2deg(torch.tensor(path["cosine"].iloc[-1]).arccos())
    assert path["angle_degrees"].iloc[-1] == pytest.approx(float(degrees), abs=1e-3)


def test_the_same_seed_gives_the_same_vector_and_another_seed_another(lens):
    torch.manual_seed(5)  # global state plays no part
    first = target(lens, CONCEPT, budget=3, seed=7)
    again = target(lens, CONCEPT, budget=3, seed=7)
    other = target(lens, CONCEPT, budget=3, seed=8)
    assert torch.equal(first.vector, again.vector)
    assert first.trajectory.equals(again.trajectory)
    assert not torch.equal(first.vector, other.vector)


def test_the_refinement_stops_at_the_goal_and_without_a_budget_does_nothing(lens):
    start = approximate(lens, [CONCEPT.prompt])
    goal = 1.5 * _probability(lens, start)
    found = refine(lens, start, [TOKEN], sigma=0.3, goal=goal)
    path = found.trajectory["probability"]
    assert path.iloc[-1] >= goal > path.iloc[-2]
    still = refine(lens, start, [TOKEN], budget=0)
    assert torch.equal(still.vector, start)
    assert still.trajectory["angle_degrees"].tolist() == [pytest.approx(0, abs=1e-4)]


def test_each_variant_is_what_its_name_says(lens):
    made = {
        name: target(lens, CONCEPT, variant=name, budget=2)
        for name in ("raw", "centred", "unembedding", "whitened", "refined")
    }
    raw = made["raw"].vector
    assert torch.equal(raw, approximate(lens, [CONCEPT.prompt]))
    torch.testing.assert_close(made["centred"].vector, raw - approximate(lens, PLAIN))
    unembedding = Unembedding.fit(lens)
    plain = unembedding.vectors([TOKEN])[0]
    for name, direction in {
        "unembedding": plain,
        "whitened": unembedding.write_target([TOKEN], []),  # a tiny vocabulary has no words
    }.items():
        vector = made[name].vector
        torch.testing.assert_close(vector.norm(), raw.norm())
        torch.testing.assert_close(vector / vector.norm(), direction / direction.norm())
    for name, found in made.items():
        assert found.settings["variant"] == name
        assert found.settings["prompts"] == [CONCEPT.prompt]
        assert found.tokens == (TOKEN,)
        assert found.probability == pytest.approx(_probability(lens, found.vector), rel=1e-5)
        assert torch.equal(found.start, raw)


def test_a_half_precision_model_is_targeted_in_float32():
    lens = tiny_lens("llama", torch.bfloat16)
    found = target(lens, CONCEPT, sigma=0.3, budget=4)
    assert found.vector.dtype == torch.float32
    assert found.trajectory["probability"].is_monotonic_increasing


def test_save_and_load(lens, tmp_path):
    found = target(lens, CONCEPT, budget=3, seed=2)
    found.save(tmp_path / "v.safetensors")
    loaded = TargetingVector.load(tmp_path / "v.safetensors")
    assert torch.equal(loaded.vector, found.vector)
    assert torch.equal(loaded.start, found.start)
    assert loaded.trajectory.equals(found.trajectory)
    assert (loaded.tokens, loaded.probability) == (found.tokens, found.probability)
    assert loaded.settings == found.settings
    assert loaded.settings["seed"] == 2


@pytest.mark.parametrize("content", ["none", "text", "tensors"])
def test_another_file_is_no_targeting_vector(tmp_path, content):
    path = tmp_path / "v.safetensors"
    if content == "text":
        path.write_text("not tensors")
    elif content == "tensors":
        save_file({"vector": torch.zeros(3)}, path)
    with pytest.raises(TarsError, match=r"v\.safetensors' is not a targeting vector"):
        TargetingVector.load(path)


def test_a_prompt_that_does_not_lead_says_the_rank_that_it_got(lens, monkeypatch):
    probabilities = lens.next_logits(lens.prompts(["w1 w2 w3"])).softmax(-1)[0]
    rank = int((probabilities > probabilities[TOKEN]).sum()) + 1
    assert rank > 1
    monkeypatch.setattr(leading, "_RANK", rank - 1)  # 64 tokens can't give a rank over 100
    monkeypatch.setattr(leading, "_LEAST", 1.0)
    says = lens.string(int(probabilities.argmax()))
    message = f"'nine' leads .* after 'w1 w2 w3', its token ranks {rank} .* says '{says}' instead"
    with pytest.raises(TarsError, match=message):
        target(lens, CONCEPT)
    monkeypatch.setattr(leading, "_RANK", rank)
    assert target(lens, CONCEPT, variant="raw").tokens == (TOKEN,)


def test_where_each_prompt_leads(lens):
    prompts = ["w1 w2 w3", "w4 w5"]
    frame = leading.leads(lens, prompts, [TOKEN, 20])
    probabilities = lens.next_logits(lens.prompts(prompts)).softmax(-1)
    for row, p in zip(frame.itertuples(), probabilities, strict=True):
        assert row.probability == pytest.approx(float(p[TOKEN] + p[20]), rel=1e-5)
        order = p.argsort(descending=True).tolist()
        assert row.rank == min(order.index(TOKEN), order.index(20)) + 1
        assert row.says == lens.string(order[0])
        assert row.says_p == pytest.approx(float(p.max()), rel=1e-5)
    assert frame["text"].tolist() == prompts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "sigma=0.0"),
        ({"samples": 0}, "samples=0"),
        ({"budget": -1}, "budget=-1"),
        ({"goal": 1.5}, "goal=1.5"),
        ({"prompts": []}, "empty prompt"),
    ],
)
def test_bad_settings(lens, settings, message):
    with pytest.raises(TarsError, match=message):
        target(lens, CONCEPT, **settings)


def test_an_unknown_variant_is_told_the_nearest():
    with pytest.raises(TarsError, match="Did you mean 'whitened'.*centred, raw, refined"):
        check_variant("whitend")


@pytest.mark.real
def test_saturn_is_refined_on_the_real_model_and_france_does_not_lead_to_it(real_lens):
    saturn = Concept.load("saturn")
    found = target(real_lens, saturn)
    assert found.trajectory["probability"].iloc[0] > 0.3
    assert found.probability >= 0.999
    assert found.trajectory["cosine"].iloc[-1] > 0.8  # refined at once, and hardly turned
    with pytest.raises(TarsError, match=r"its token ranks \d+ .* says ' Paris' instead"):
        target(real_lens, saturn, prompts=["The capital of France is"])
