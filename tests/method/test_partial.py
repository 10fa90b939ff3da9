"""Fewer vectors than a whole neuron takes still lower the concept by what the excess asks."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_recipe import ids_of, sharp

from tars_lens.method.direction import concept_direction
from tars_lens.method.partial import partial_neuron
from tars_lens.method.recipe import suppression_sites
from tars_lens.method.suppression import Prompts

LAST = 2


def _made(arch, count, taken=(), **settings):
    """A neuron of a card of one prompt, where the constant is exactly 1."""
    place = sharp(arch)
    recipe = place.recipe(said_threshold=0.01, largest_write=1e6, **settings)
    concept = replace(place.concept, prompts=())
    direction = concept_direction(place.lens, concept)
    site = suppression_sites(place.lens.n_layers, recipe.settings)[-1]
    (own,) = Prompts(place.lens, [[concept.prompt]], direction, [site]).shown()
    y = own.inputs[LAST][0]
    means, covariances = (
        {**of, LAST: v}
        for of, v in ((recipe.plain.means, y), (recipe.plain.covariances, torch.eye(len(y))))
    )
    plain = replace(recipe.plain, means=means, covariances=covariances)
    target = recipe._target(direction)
    return place, partial_neuron(
        *(place.lens, site, direction, target, plain, [own], recipe.settings, count), taken=taken
    )


@pytest.mark.parametrize(
    ("arch", "count", "roles"),
    [
        ("llama", 1, {"gate"}),
        ("llama", 2, {"gate", "out"}),
        ("gpt2", 1, {"in"}),
        ("gemma3", 1, {"gate"}),
        ("gemma3", 2, {"gate", "out"}),
    ],
)
def test_so_many_vectors_of_one_neuron_of_the_last_layer_are_replaced(arch, count, roles):
    _, neuron = _made(arch, count)
    assert set(neuron.edits) == {(LAST, role) for role in roles}
    assert neuron.about["vectors"] == [r for r in ("gate", "in", "out") if r in roles]
    assert all(rows.neurons.tolist() == [neuron.neuron] for rows in neuron.edits.values())


@pytest.mark.parametrize(("arch", "count"), [("llama", 1), ("llama", 2), ("gpt2", 1)])
def test_the_logit_falls_by_so_many_times_the_excess(arch, count):
    place, neuron = _made(arch, count, said_reversal=1.5)
    ids = torch.tensor([ids_of(place.concept.prompt)])
    end = place.seen(ids).streams[LAST][0, -1]
    with place.holding(place.silenced(LAST, neuron.neuron)):
        silenced = place.seen(ids).streams[LAST][0, -1]
    with place.holding(neuron.edits):
        moved = place.seen(ids).streams[LAST][0, -1] - silenced
    if arch == "gpt2":
        end, moved = end - end.mean(), moved - moved.mean()
    normed = moved / end.square().mean().sqrt() * place.gain
    logits = place.hf.lm_head.weight.detach() @ normed
    lowered = float(logits.mean() - logits[place.token])
    read = float(neuron.reader.log_p(place.seen(ids).inputs[LAST][0, -1]))
    assert read - math.log(0.01) > 1
    assert lowered == pytest.approx(1.5 * (read - math.log(0.01)), rel=2e-3)


def test_with_one_vector_the_host_writes_the_reversal_already():
    place, neuron = _made("gpt2", 1)
    head = place.hf.lm_head.weight.detach()
    through = (head[place.token] - head.mean(0)) * place.gain
    lowers = -(place.rows(LAST, "out").detach() @ (through - through.mean()))
    assert float(lowers[neuron.neuron]) > 0


@pytest.mark.parametrize("count", [1, 2])
def test_hosts_are_given_out_once_and_only_the_idler_half(count):
    place, first = _made("llama", count)
    _, second = _made("llama", count, taken={(LAST, first.neuron)})
    assert first.neuron != second.neuron
    missed = 0
    for ids in place.ids.split(4):
        y = place.seen(ids).inputs[LAST][:, 1:].flatten(0, 1)
        mlp = place.layers[LAST].mlp
        activation = torch.nn.functional.silu(mlp.gate_proj(y)) * mlp.up_proj(y)
        missed = missed + activation.detach().square().sum(0)
    missed = missed.sqrt() * place.rows(LAST, "out").detach().norm(dim=1)
    assert {first.neuron, second.neuron} <= set(missed.argsort()[: len(missed) // 2].tolist())
