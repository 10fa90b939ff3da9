import pytest
import tiny
import torch
from tiny import tiny_lens
from transformers import LlamaConfig

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.method.describing import describe, top_tokens
from tars_lens.method.ranking import cosines, null_distribution, rank
from tars_lens.model.lens import Lens, Point

COLUMNS = ["target", "layer", "role", "neuron", "label", "cosine", "norm"]


def _directions(lens: Lens, count: int) -> torch.Tensor:
    return torch.randn(count, lens.d_model, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("arch", ["llama", "gpt2", "phi3", "gemma3"])
def test_every_vector_is_there_with_its_own_cosine_and_norm(arch):
    lens = tiny_lens(arch)
    direction = _directions(lens, 1)[0]
    frame = rank(lens, direction)
    assert list(frame.columns) == COLUMNS
    assert len(frame) == lens.n_layers * len(lens.roles) * lens.d_mlp
    assert not frame.duplicated(["layer", "role", "neuron"]).any()
    assert frame["cosine"].is_monotonic_decreasing
    for row in frame.iloc[:: len(frame) // 20].itertuples():
        vector = lens.vectors(row.layer, row.role)[row.neuron]
        expected = torch.cosine_similarity(vector, direction, dim=0)
        assert row.cosine == pytest.approx(float(expected), abs=1e-6)
        assert row.norm == pytest.approx(float(vector.norm()), rel=1e-5)
        assert row.label == f"L{row.layer}N{row.neuron}"


def test_half_precision_weights_are_ranked_as_exactly_as_they_are_stored():
    half = tiny_lens("llama", torch.bfloat16)
    direction = _directions(half, 1)[0]
    found = cosines(half, direction).values[0]
    rows = torch.cat([half.vectors(*place) for place in cosines(half, direction).places])
    exact = torch.cosine_similarity(rows.double(), direction.double()[None])
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6)
    rounded = (rows @ (direction / direction.norm()).bfloat16()).double()
    rounded /= rows.double().norm(dim=1)
    assert (rounded - exact).abs().max() > 1e-4  # what a product in bfloat16 would have given
    assert half.dtype == torch.bfloat16


def test_many_targets_at_once_are_each_as_alone():
    lens = tiny_lens("llama")
    directions = _directions(lens, 5)
    together = rank(lens, directions, top=40)
    assert together["target"].value_counts().to_dict() == dict.fromkeys(range(5), 40)
    for index, direction in enumerate(directions):
        alone = rank(lens, direction, top=40)
        part = together[together["target"] == index].reset_index(drop=True)
        assert part["label"].tolist() == alone["label"].tolist()
        assert part["role"].tolist() == alone["role"].tolist()
        assert (part["cosine"] - alone["cosine"]).abs().max() < 1e-6


def test_a_matrix_read_in_blocks_is_the_matrix(monkeypatch):
    lens = tiny_lens("llama")
    whole = rank(lens, _directions(lens, 2))
    monkeypatch.setattr(
        "tars_lens.method.ranking._BLOCK", 7 * lens.d_model
    )  # doesn't divide 24 rows
    blocks = rank(lens, _directions(lens, 2))
    assert blocks[COLUMNS[:5]].equals(whole[COLUMNS[:5]])
    assert (blocks["cosine"] - whole["cosine"]).abs().max() < 1e-6


def test_roles_layers_and_top_choose():
    lens = tiny_lens("llama")
    direction = _directions(lens, 1)[0]
    every = rank(lens, direction)
    found = rank(lens, direction, roles=["out"], layers=[2, 0], top=5)
    expected = every[(every["role"] == "out") & every["layer"].isin([0, 2])].head(5)
    assert found["label"].tolist() == expected["label"].tolist()


def test_a_weight_vector_used_as_target_comes_first():
    lens = tiny_lens("gpt2")
    first = rank(lens, lens.vectors(1, "in")[17].clone()).iloc[0]
    assert (first["layer"], first["role"], first["neuron"]) == (1, "in", 17)
    assert first["cosine"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (torch.ones(5), {}, r"width 16; got vectors of shape \(1, 5\)"),
        (torch.zeros(16), {}, "must have a direction; got zeros"),
        (torch.full((16,), torch.nan), {}, "must have a direction"),
        (torch.ones(16), {"top": 0}, "at least 1 row, got top=0"),
        (torch.ones(16), {"layers": []}, "at least one layer and one role"),
        (torch.ones(16), {"layers": [3]}, "no layer 3: tiny-llama has 0 to 2"),
    ],
)
def test_what_cannot_be_ranked(given, options, message):
    with pytest.raises(TarsError, match=message):
        rank(tiny_lens("llama"), given, **options)


def test_a_role_that_the_model_lacks():
    with pytest.raises(TarsError, match="no role 'gate': tiny-gpt2 has in, out"):
        rank(tiny_lens("gpt2"), torch.ones(16), roles=["gate"])


def test_the_null_is_what_independent_random_vectors_give_and_shrinks_with_the_width(
    monkeypatch, tmp_path
):
    thresholds = {}
    for width in (16, 128):
        sizes = {**tiny.COMMON, "hidden_size": width}
        monkeypatch.setitem(tiny._CONFIGS, "llama", lambda sizes=sizes: LlamaConfig(**sizes))
        lens = Lens(*tiny.boot(tiny.save_checkpoint(tmp_path / str(width), "llama")))
        null = null_distribution(lens, directions=200)
        assert null.vectors == 3 * 3 * 24
        rows = torch.nn.functional.normalize(torch.randn(500, null.vectors, width), dim=2)
        assert null.threshold == pytest.approx(float(rows[..., 0].amax(1).mean()), rel=0.02)
        assert null.largest > null.threshold
        thresholds[width] = null.threshold
    assert thresholds[128] < 0.5 * thresholds[16]


def test_the_null_is_seeded_and_its_last_quantile_is_the_threshold():
    lens = tiny_lens("llama")
    null, again = null_distribution(lens, seed=3), null_distribution(lens, seed=3)
    assert null.threshold == again.threshold != null_distribution(lens, seed=4).threshold
    frame = null.to_frame()
    assert frame["cosine"].is_monotonic_increasing
    assert frame.iloc[-1].tolist() == [1.0, pytest.approx(null.threshold, rel=1e-6)]
    with pytest.raises(TarsError, match="at least 1 direction, got 0"):
        null_distribution(lens, directions=0)


def test_a_description_tells_what_a_neuron_says_and_when_it_fires():
    lens = tiny_lens("gpt2")
    concept = Concept(name="c", answer="w9", prompt="w1 w2 w3", prompts=("w4 w5",))
    neurons = rank(lens, _directions(lens, 1)[0], top=6)
    frame = describe(lens, neurons, concept=concept, plain=["w7 w8 w9", "w10 w11"])
    assert list(frame.columns) == [*COLUMNS, "top_tokens", "activation_concept", "activation_plain"]
    row = frame.iloc[2]
    point = Point("mlp_post", int(row["layer"]))

    def fires(text: str) -> torch.Tensor:
        return lens.capture(lens.prompts([text]).ids, [point])[point][0, :, int(row["neuron"])]

    mean = (fires("w1 w2 w3")[-1] + fires("w4 w5")[-1]) / 2
    plain = torch.cat([fires("w7 w8 w9")[1:], fires("w10 w11")[1:]]).square().mean().sqrt()
    assert row["activation_concept"] == pytest.approx(float(mean), abs=1e-6)
    assert row["activation_plain"] == pytest.approx(float(plain), abs=1e-6)


def test_top_tokens_are_those_that_the_direction_itself_raises_in_the_read_out():
    lens = tiny_lens("gpt2")
    directions = _directions(lens, 3)
    # the norm's bias, which isn't the direction's, is the same on the way there and back
    moved = lens.read_out(directions) - lens.read_out(-directions)
    expected = moved.topk(5).indices.tolist()
    assert top_tokens(lens, directions, 5) == expected
