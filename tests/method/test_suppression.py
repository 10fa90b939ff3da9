"""Suppression neurons: what they read, what they write, and where they are silent."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_recipe import gain_of, ids_of, sharp

from tars_lens.method.direction import concept_direction
from tars_lens.method.recipe import suppression_sites
from tars_lens.method.settings import Settings
from tars_lens.method.suppression import (
    Prompts,
    Reader,
    Site,
    _ridge,
    fit_reader,
    suppression_neuron,
)
from tars_lens.text.plain_text import STRIDE, WINDOWS_AT_ONCE

ARCHITECTURES = ("llama", "gemma2", "gemma3", "gpt2")
LAST = 2
SETTINGS = {"depths": (0.4,), "readable": 1e-9}


def _ridged(y, wanted, weights, penalty):
    """Weighted ridge regression with an intercept as one least-squares problem."""
    y, wanted, weights = (x.double().numpy() for x in (y, wanted, weights / weights.sum()))
    width = y.shape[1]
    rows = np.sqrt(weights)[:, None] * np.hstack([y, np.ones((len(y), 1))])
    held = math.sqrt(penalty) * np.hstack([np.eye(width), np.zeros((width, 1))])
    values = np.concatenate([np.sqrt(weights) * wanted, np.zeros(width)])
    found = np.linalg.lstsq(np.vstack([rows, held]), values, rcond=None)[0]
    return found[:-1], found[-1]


def _mean_variance(y, weights):
    """Of the columns, weighted."""
    return (
        float(np.cov(y.double().numpy().T, aweights=weights.double().numpy(), ddof=0).trace())
        / (y.shape[1])
    )


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 30.0])
def test_the_regression_is_least_squares_with_rows_that_hold_it_back(ridge):
    draws = torch.Generator().manual_seed(0)
    y = torch.randn(40, 6, generator=draws) + 2
    wanted = torch.randn(40, generator=draws) * 3 - 5
    weights = torch.rand(40, generator=draws) * 5
    weight, offset = _ridge(y, wanted, weights, ridge)
    expected = _ridged(y, wanted, weights, ridge * _mean_variance(y, weights))
    np.testing.assert_allclose(weight.numpy(), expected[0], rtol=1e-4, atol=1e-5)
    assert offset == pytest.approx(expected[1], rel=1e-4)


def test_a_read_vector_is_the_slope_times_what_exceeds_the_threshold():
    y, weight = torch.randn(8), torch.randn(8)
    reader = Reader(weight, -3.0, y / (y @ y))  # the constant is exactly 1 here
    assert float(reader.row(-5.0, 7.0) @ y) == pytest.approx(7 * (float(weight @ y) - 3 + 5), 1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_prompts_show_is_what_the_plain_model_says(arch):
    place = sharp(arch)
    texts = [*place.concept.concept_prompts, "w1 w2", "w3"]
    direction = concept_direction(place.lens, place.concept)
    tokens = [place.token, 7]
    sites = (Site(1, (1,)), Site(LAST, (LAST,)))
    both_tokens = replace(direction, tokens=tuple(tokens))
    first, empty, second = texts[:2], [], texts[2:]
    groups = Prompts(place.lens, [first, empty, second], both_tokens, sites).shown()
    assert [len(group.log_p[LAST]) for group in groups] == [len(first), 0, len(second)]
    for index, text in enumerate(texts):
        seen = place.seen(torch.tensor([ids_of(text)]))
        said = seen.logits[0, -1].log_softmax(-1)[tokens].logsumexp(0)
        found, at = (groups[0], index) if index < 2 else (groups[2], index - 2)
        torch.testing.assert_close(found.log_p[LAST][at], said, rtol=1e-4, atol=1e-4)
        lens = place.read_out(seen.streams[1])[0, -1].log_softmax(-1)[tokens].logsumexp(0)
        torch.testing.assert_close(found.log_p[1][at], lens, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.inputs[1][at], seen.inputs[1][0, -1])
    ends = [place.seen(torch.tensor([ids_of(t)])).streams[LAST][0, -1] for t in second]
    scales = [x.std(correction=0) if arch == "gpt2" else x.square().mean().sqrt() for x in ends]
    assert found.scale[LAST] == pytest.approx(float(torch.stack(scales).mean()), rel=1e-4)
    both = found.target(Site(1, (1, LAST)))
    assert torch.equal(both, torch.maximum(found.log_p[1], found.log_p[LAST]))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_reader_is_the_lens_and_a_regression_of_the_rest(arch):
    place = sharp(arch)
    settings = Settings(**SETTINGS, likely_p=0.01, least_p=1e-5, prompt_weight=0.2)
    recipe = place.recipe(**{k: getattr(settings, k) for k in SETTINGS})
    direction = concept_direction(place.lens, place.concept)
    site = Site(1, (1, LAST))
    own = list(place.concept.concept_prompts)
    near = [probe.prompt for probe in place.concept.contrast]
    groups = Prompts(place.lens, [own, [], near], direction, [site]).shown()
    found = fit_reader(place.lens, site, direction, recipe.plain, groups, settings)

    def log_p(seen):
        lens = place.read_out(seen.streams[1]).log_softmax(-1)[..., place.token]
        return torch.maximum(lens, seen.logits.log_softmax(-1)[..., place.token])

    y, said = [], []
    for ids in place.ids.split(WINDOWS_AT_ONCE):
        seen = place.seen(ids)
        y.append(seen.inputs[1][:, 1:].flatten(0, 1)[::STRIDE])
        said.append(log_p(seen)[:, 1:].flatten(0, 1)[::STRIDE])
    weights = [1 + (settings.likely_weight - 1) * (torch.cat(said) > math.log(0.01)).float()]
    assert 0 < (weights[0] > 1).sum() < len(weights[0])
    for texts in (own, near):
        ends = [place.seen(torch.tensor([ids_of(text)])) for text in texts]
        y.append(torch.stack([seen.inputs[1][0, -1] for seen in ends]))
        said.append(torch.stack([log_p(seen)[0, -1] for seen in ends]))
        weights.append(torch.full([len(texts)], 0.2 * float(weights[0].sum()) / len(texts)))
    y, weights = torch.cat(y), torch.cat(weights)
    layer = place.layers[1]
    norm = getattr(layer, "ln_2", None) or getattr(layer, "pre_feedforward_layernorm", None)
    gain = gain_of(norm or layer.post_attention_layernorm).double()
    column = place.hf.lm_head.weight.detach()[place.token] - place.hf.lm_head.weight.mean(0)
    through = (column * place.gain).double()
    if arch == "gpt2":
        through = through - through.mean()  # a LayerNorm takes the mean out
    lens = (through * gain / (gain**2 + settings.lens_ridge * (gain**2).mean())).detach()
    wanted = torch.cat(said).clamp_min(math.log(1e-5)).double() - y.double() @ lens
    penalty = settings.reader_ridge * _mean_variance(y, weights)
    weight, offset = _ridged(y, wanted, weights, penalty)
    np.testing.assert_allclose(found.weight, lens.numpy() + weight, rtol=1e-3, atol=2e-3)
    assert found.offset == pytest.approx(offset, rel=1e-3, abs=1e-2)


def _alone(place, settings, **changes):
    """The last layer's neuron of a card of one prompt, where the constant is exactly 1."""
    concept = replace(place.concept, prompts=())
    recipe = place.recipe(**settings)
    direction = concept_direction(place.lens, concept)
    site = suppression_sites(place.lens.n_layers, recipe.settings)[-1]
    (own,) = Prompts(place.lens, [[concept.prompt]], direction, [site]).shown()
    y = own.inputs[LAST][0]
    plain = replace(
        recipe.plain,
        means={**recipe.plain.means, LAST: y},
        covariances={**recipe.plain.covariances, LAST: torch.eye(len(y))},
    )
    settings = replace(recipe.settings, **changes)
    target = recipe._target(direction)
    neuron = suppression_neuron(place.lens, site, direction, target, plain, [own], settings)
    ids = torch.tensor([ids_of(concept.prompt)])
    with place.holding(place.silenced(LAST, neuron.neuron)):
        silenced = place.seen(ids).streams[LAST][0, -1]
    with place.holding(neuron.edits):
        moved = place.seen(ids).streams[LAST][0, -1] - silenced
    return neuron, moved, place.seen(ids)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("reversal", [1.2, 3.0])
def test_the_write_lowers_the_logit_by_so_many_times_the_excess(arch, reversal):
    place = sharp(arch)
    settings = {**SETTINGS, "said_threshold": 0.01}
    neuron, moved, base = _alone(place, settings, said_reversal=reversal, largest_write=1e6)
    end = base.streams[LAST][0, -1]
    centred = end - end.mean() if arch == "gpt2" else end
    scale = centred.square().mean().sqrt()
    normed = (moved - moved.mean() if arch == "gpt2" else moved) / scale * place.gain
    logits = place.hf.lm_head.weight.detach() @ normed
    lowered = float(logits.mean() - logits[place.token])
    read = float(neuron.reader.log_p(base.inputs[LAST][0, -1]))
    assert read > math.log(0.01) + 1
    assert lowered == pytest.approx(reversal * (read - math.log(0.01)), rel=1e-3)


def test_the_write_is_bounded_by_the_streams_norm():
    place = sharp("llama")
    neuron, moved, _ = _alone(place, SETTINGS, largest_write=0.01)
    norms = torch.cat(
        [
            place.seen(ids).streams[LAST][:, 1:].flatten(0, 1)[::STRIDE].norm(dim=-1)
            for ids in place.ids.split(WINDOWS_AT_ONCE)
        ]
    )
    assert float(moved.norm()) == pytest.approx(0.01 * float(norms.median()), rel=1e-3)
    assert neuron.about["strength"] == pytest.approx(float(moved.norm()), rel=1e-3)
    torch.testing.assert_close(moved / moved.norm(), -neuron.target, rtol=1e-3, atol=1e-4)


def test_where_a_norm_follows_the_write_is_in_units_of_the_mlps_output():
    place = sharp("gemma3")
    neuron, _, base = _alone(place, SETTINGS, bounded_strength=2.0)
    inputs = base.inputs[LAST][0, -1]
    (out,) = neuron.edits[LAST, "out"].values
    read = {role: neuron.edits[LAST, role].values[0] for role in ("gate", "in")}
    speaks = torch.nn.functional.gelu(read["gate"] @ inputs, approximate="tanh")
    written = speaks * (read["in"] @ inputs) * out
    outputs = []
    for ids in place.ids.split(WINDOWS_AT_ONCE):
        y = place.seen(ids).inputs[LAST][:, 1:].flatten(0, 1)[::STRIDE]
        outputs.append(place.layers[LAST].mlp(y).norm(dim=-1).detach())
    assert float(written.norm()) == pytest.approx(2 * float(torch.cat(outputs).median()), rel=1e-2)
    gain = gain_of(place.layers[LAST].post_feedforward_layernorm)
    lowered = torch.cosine_similarity(written * gain, -neuron.target, dim=0)
    assert float(lowered) > 0.9  # what ends up in the stream is the target, reversed


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_where_a_neuron_is_silent_the_logits_are_those_without_its_host(arch):
    place = sharp(arch)
    recipe = place.recipe(**SETTINGS, gain=1e4, edits=6, said_threshold=0.02)
    neuron = recipe.neurons(place.concept)[-1]
    assert neuron.layer == LAST
    reads = "gate" if place.lens.gated else "in"
    bias = 0.0 if place.lens.gated else place.layers[LAST].mlp.c_fc.bias[neuron.neuron].detach()
    pre = place.seen(place.ids).inputs[LAST] @ neuron.edits[LAST, reads].values[0] + bias
    silent = pre < -150  # exp(-150) is 0 in float32, and so are SiLU and GELU
    with place.holding(neuron.edits):
        edited = place.seen(place.ids).logits
    with place.holding(place.silenced(LAST, neuron.neuron)):
        silenced = place.seen(place.ids).logits
    same = (edited == silenced).all(dim=-1)
    assert 0.02 < float(silent.float().mean()) < 0.98
    assert same[silent].all() and not same[pre > 150].any()


@pytest.mark.parametrize(
    ("n_layers", "depths", "expected"),
    [
        (1, (0.7, 0.8), [Site(0, (0,))]),
        (2, (0.7, 0.8), [Site(1, (1,))]),
        (2, (), [Site(1, (1,))]),
        (30, (), [Site(29, (29,))]),
        (
            30,
            (0.72, 0.83, 0.93),
            [Site(22, (22, 24)), Site(25, (25, 27)), Site(28, (28,)), Site(29, (29,))],
        ),
        (18, (0.5, 0.94), [Site(9, (9, 16)), Site(17, (17,))]),
        (18, (1.0,), [Site(17, (17,))]),
    ],
)
def test_where_neurons_sit_and_what_each_is_there_to_stop(n_layers, depths, expected):
    assert list(suppression_sites(n_layers, Settings(depths=depths))) == expected


def test_no_neuron_sits_where_the_lens_reads_nothing():
    place = sharp("llama")
    ids = [torch.tensor([ids_of(text)]) for text in place.concept.concept_prompts]
    streams = [place.seen(row).streams[1][0, -1] for row in ids]
    read = float(place.read_out(torch.stack(streams)).softmax(-1)[:, place.token].max())
    assert 1e-6 < read < 0.9
    for readable, layers in ((0.9 * read, [1, LAST]), (min(1.1 * read, 0.99), [LAST])):
        recipe = place.recipe(depths=(0.4,), readable=readable)
        direction = concept_direction(place.lens, place.concept)
        found = recipe.suppression(direction, place.concept, 5)
        assert [neuron.layer for neuron in found] == layers


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_prompts_show_with_rows_in_place_is_the_edited_models(arch):
    place = sharp(arch)
    direction = concept_direction(place.lens, place.concept)
    texts = list(place.concept.concept_prompts)
    sites = suppression_sites(3, Settings(depths=(0.4,)))
    edits = place.silenced(1, 5)
    base = Prompts(place.lens, [texts], direction, sites)
    before, edited, after = (base.shown(rows)[0].log_p[LAST] for rows in (None, edits, None))
    with place.holding(edits):
        rows = [place.seen(torch.tensor([ids_of(text)])).logits[0, -1] for text in texts]
    said = torch.stack(rows).log_softmax(-1)[:, place.token]
    torch.testing.assert_close(edited, said, rtol=1e-4, atol=1e-4)
    assert torch.equal(before, after) and not torch.equal(before, edited)


def test_each_neuron_is_fitted_with_the_earlier_ones_in_place():
    place = sharp("llama")
    recipe = place.recipe(**SETTINGS)
    direction = concept_direction(place.lens, place.concept)
    both = recipe.suppression(direction, place.concept, 2)
    alone = recipe.suppression(direction, place.concept, 1)
    assert [n.layer for n in both] == [1, LAST] and [n.layer for n in alone] == [LAST]
    assert not torch.equal(both[-1].reader.weight, alone[0].reader.weight)
