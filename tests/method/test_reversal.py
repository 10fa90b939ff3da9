import pytest
import torch
from tiny import tiny_lens

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.method.ranking import rank
from tars_lens.method.reversal import paper_edits, reverse, reversed_rows
from tars_lens.method.targeting import target

CONCEPT = Concept(name="nine", answer="w9", prompt="w1 w2 w3")


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_each_row_points_the_other_way_at_the_size_of_the_row_that_it_replaces(arch):
    lens = tiny_lens(arch)
    vector = target(lens, CONCEPT, budget=2)
    neurons = rank(lens, vector, top=12)
    before = {place: lens.vectors(*place).clone() for place in _places(neurons)}
    edits = reversed_rows(lens, vector, neurons)
    assert sum(len(rows.neurons) for rows in edits.values()) == 12
    for (layer, role), rows in edits.items():
        old = before[layer, role][rows.neurons]
        torch.testing.assert_close(rows.values.norm(dim=1), old.norm(dim=1))
        turned = torch.cosine_similarity(rows.values, vector.vector[None])
        torch.testing.assert_close(turned, -torch.ones(len(turned)))
        asked = neurons[(neurons["layer"] == layer) & (neurons["role"] == role)]
        assert rows.neurons.tolist() == asked["neuron"].tolist()
        assert torch.equal(lens.vectors(layer, role), before[layer, role])  # nothing is written


def test_scale_and_a_bare_tensor():
    lens = tiny_lens("llama")
    vector = target(lens, CONCEPT, budget=2)
    neurons = rank(lens, vector, top=3)
    once = reversed_rows(lens, vector, neurons)
    thrice = reversed_rows(lens, 50 * vector.vector, neurons, scale=3.0)
    for place, rows in once.items():
        torch.testing.assert_close(thrice[place].values, 3 * rows.values)


def test_half_precision_rows_come_in_the_dtype_of_the_model():
    lens = tiny_lens("llama", torch.bfloat16)
    vector = target(lens, CONCEPT, budget=1)
    neurons = rank(lens, vector, top=4)
    for place, rows in reversed_rows(lens, vector, neurons).items():
        assert rows.values.dtype == torch.bfloat16
        old = lens.vectors(*place)[rows.neurons].float().norm(dim=1)
        torch.testing.assert_close(rows.values.float().norm(dim=1), old, rtol=4e-3, atol=0)


def test_the_patch_reverses_the_rows_and_keeps_how_it_was_made():
    lens = tiny_lens("llama")
    vector = target(lens, CONCEPT, budget=2, seed=5)
    neurons = rank(lens, vector, top=8)
    patch = reverse(lens, vector, neurons, concept=CONCEPT)
    frame = patch.to_frame()
    asked = neurons.set_index(["layer", "role", "neuron"])["cosine"]
    found = frame.set_index(["layer", "role", "neuron"])["cosine"]
    assert found.to_dict() == pytest.approx(asked.to_dict(), abs=1e-6)
    with patch.applied(lens):
        after = rank(lens, vector)
    turned = after.set_index(["layer", "role", "neuron"])["cosine"]
    assert turned[asked.index].to_numpy() == pytest.approx(-1, abs=1e-5)
    assert rank(lens, vector, top=8)["cosine"].equals(neurons["cosine"])
    assert patch.seed == 5
    assert patch.method["target"]["variant"] == "refined"
    assert patch.label == "nine"


def test_neurons_may_be_named_without_a_cosine():
    lens = tiny_lens("llama")
    neurons = rank(lens, torch.ones(16), top=2)[["layer", "role", "neuron"]]
    assert reverse(lens, torch.ones(16), neurons).to_frame()["cosine"].isna().all()


def test_the_papers_edits_are_the_first_rows_of_the_whole_ranking():
    lens = tiny_lens("llama")
    vector = target(lens, CONCEPT, budget=2)
    edits, frame = paper_edits(lens, vector, 7)
    assert frame.equals(rank(lens, vector, top=7))
    assert set(edits) == _places(frame)


def test_what_cannot_be_reversed():
    lens = tiny_lens("llama")
    vector = target(lens, CONCEPT, budget=1)
    neurons = rank(lens, vector, top=2)
    with pytest.raises(TarsError, match="no neurons to reverse"):
        reverse(lens, vector, neurons.head(0))
    with pytest.raises(TarsError, match="no column 'role'"):
        reverse(lens, vector, neurons.drop(columns="role"))
    with pytest.raises(TarsError, match="must have a direction"):
        reverse(lens, torch.zeros(16), neurons)
    with pytest.raises(TarsError, match="width 16; got a vector of width 5"):
        reverse(lens, torch.ones(5), neurons)
    with pytest.raises(TarsError, match="scale must be a positive number, got -1"):
        reverse(lens, vector, neurons, scale=-1.0)
    with pytest.raises(TarsError, match="given twice"):
        reverse(lens, vector, neurons.iloc[[0, 0]])


def _places(neurons):
    return set(zip(neurons["layer"], neurons["role"], strict=True))
