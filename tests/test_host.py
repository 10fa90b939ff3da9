"""Which neuron is given up: the idlest, or the one that carries the concept."""

import pytest
import torch
from tiny import tiny_lens

from tars_lens.host import carrying_neuron, idle_neuron
from tars_lens.lens import Point
from tars_lens.neutral import Neutral
from tars_lens.weights import Rows, written

LAYER = 1
TEXTS = ("w1 w2 w3", "w4 w5")


def test_the_idle_one_writes_least_on_plain_text_and_none_is_given_out_twice(lens):
    ids = torch.randint(4, 60, (4, 16), generator=torch.Generator().manual_seed(0))
    neutral = Neutral.fit(lens, ids, (LAYER,))
    point = Point("mlp_post", LAYER)
    activation = lens.capture(ids, [point])[point][:, 1:].flatten(0, 1)
    writes = activation[:, :, None] * lens.vectors(LAYER, "out")[None]
    order = writes.square().sum(-1).mean(0).argsort().tolist()
    assert idle_neuron(lens, neutral, LAYER, ()) == order[0]
    assert idle_neuron(lens, neutral, LAYER, {(LAYER, order[0])}) == order[1]
    assert idle_neuron(lens, neutral, LAYER, {(LAYER + 1, order[0])}) == order[0]


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_carrier_writes_most_along_the_concept_at_its_prompts(arch):
    lens = tiny_lens(arch)
    direction = torch.randn(lens.d_model, generator=torch.Generator().manual_seed(1))
    found = carrying_neuron(lens, LAYER, (), TEXTS, direction)
    batch, point = lens.prompts(TEXTS), Point("mlp_post", LAYER)
    activation = lens.capture(batch.ids, [point], positions=batch.last)[point].mean(0)
    out = torch.nn.functional.normalize(lens.vectors(LAYER, "out").float(), dim=1)
    carried = activation * (out @ direction)
    assert carried[found] == carried.max() > 0
    second = carrying_neuron(lens, LAYER, {(LAYER, found)}, TEXTS, direction)
    assert carried[second] == carried.topk(2).values[1]
    # a neuron whose row is turned the other way carries the concept no more
    turned = Rows(torch.tensor([found]), -lens.vectors(LAYER, "out")[[found]].clone())
    with written(lens, {(LAYER, "out"): turned}):
        assert carrying_neuron(lens, LAYER, (), TEXTS, direction) == second
