"""How far a model leans to a concept: read beside its description."""

import pytest
import torch
from tiny import ARCHITECTURES, tiny_lens

from tars_lens.discriminant import Discriminant, discriminant
from tars_lens.leaning import (
    joined_by,
    leaning,
    lens_direction,
    near_zero,
    reaching,
    reads_leaning,
)
from tars_lens.lens import Lens, Point
from tars_lens.neuron import GAIN, reading_rows
from tars_lens.unembedding import Unembedding
from tars_lens.weights import written

LAYER = 1
IN, BEFORE = Point("mlp_in", LAYER), Point("resid_mid", LAYER)


def _ids(lens: Lens) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(4, min(60, lens.d_vocab), (24, 12), generator=generator)


def _bias(y: torch.Tensor) -> torch.Tensor:
    flat = y.flatten(0, 1)
    return discriminant([flat[:1]], flat[:0], flat.mean(0), torch.cov(flat.T), ridge=0.05).bias


def test_a_gate_is_needed_and_no_norm_after_the_mlp():
    found = {arch for arch in ARCHITECTURES if reads_leaning(tiny_lens(arch))}
    assert "llama" in found
    for arch in ARCHITECTURES:
        lens = tiny_lens(arch)
        assert (arch in found) == (lens.gated and lens.post_norm_gain(0) is None)


def test_it_is_the_logit_lens_of_the_concept_against_others():
    lens = tiny_lens("llama")
    seen = lens.capture(_ids(lens), [IN, BEFORE])
    y = seen[IN].float()
    unembedding, tokens, others = Unembedding.fit(lens), [7], [9, 11]
    direction = unembedding.vectors(tokens)[0] - unembedding.vectors(others).mean(dim=0)
    groups, plain = (y[:4, -1], y[4:9, -1]), y.mean((0, 1))
    both = {
        leaning(lens, LAYER, direction, own, near_zero(near, plain), _bias(y)): (own, near)
        for own, near in (groups, groups[::-1])
    }
    assert None in both  # the group that leans less has no leaning against the other
    leans, (own, near) = next((found, pair) for found, pair in both.items() if found is not None)
    assert float(leans.score(own).mean()) == pytest.approx(1, abs=1e-4)
    assert float(leans.score(near).mean()) == pytest.approx(0, abs=1e-4)
    logits = lens.read_out(seen[BEFORE])
    gap = logits[..., tokens].mean(-1) - logits[..., others].mean(-1)
    together = torch.stack([leans.score(y).flatten(), gap.flatten()])
    assert float(torch.corrcoef(together)[0, 1]) > 0.9999


def test_tokens_count_by_what_the_base_says_of_them():
    lens = tiny_lens("llama")
    unembedding = Unembedding.fit(lens)
    both = lens_direction(unembedding, [7, 9], torch.tensor([0.3, 0.1]))
    others = unembedding.nearest_words([7, 9], 200)
    mean = unembedding.vectors(others).mean(dim=0) if others else 0
    expected = 0.75 * unembedding.vectors([7])[0] + 0.25 * unembedding.vectors([9])[0]
    torch.testing.assert_close(both, expected - mean, rtol=1e-4, atol=1e-5)


def test_a_neuron_that_reads_two_things_speaks_where_both_are_there():
    lens = tiny_lens("llama")
    ids = _ids(lens)
    y = lens.capture(ids, [IN])[IN].float()
    flat = y.flatten(0, 1)
    plain = flat.mean(0), torch.cov(flat.T, correction=0)
    first = discriminant([y[:4, -1]], flat[:0], *plain, ridge=0.01)
    second = discriminant([y[2:6, -1]], flat[:0], *plain, ridge=0.01)
    rows = reading_rows(lens, LAYER, 5, first, threshold=0.3, unit="linear", beside=second)
    point = Point("mlp_post", LAYER)
    with written(lens, rows):
        activation = lens.capture(ids, [point])[point][..., 5].float()
    gate = flat @ first.row(threshold=0.3, gain=GAIN)
    beside = flat @ second.score_row
    silu = torch.nn.functional.silu(gate)
    torch.testing.assert_close(activation.flatten(), silu * beside, rtol=1e-3, atol=1e-2)
    loud = activation[2:4, -1].mean()
    for missing in (gate < -8, beside.abs() < 0.02):
        assert missing.any()
        assert activation.flatten()[missing].abs().max() < 0.1 * loud


def test_every_prompt_of_the_concept_is_reached():
    generator = torch.Generator().manual_seed(0)
    weight, zero = (torch.randn(16, generator=generator) for _ in range(2))
    own = torch.randn(5, 16, generator=generator)
    leans = Discriminant(weight, zero, torch.ones(16))
    reached = reaching(leans, own, 0.5)
    lifted = 0.5 - leans.score(own).min()
    assert lifted > 0
    torch.testing.assert_close(reached.score(own), leans.score(own) + lifted, rtol=1e-4, atol=1e-4)
    assert reaching(reached, own, 0.25) is reached


def test_what_the_leaning_passes_over_is_read_with_it():
    generator = torch.Generator().manual_seed(0)
    weight, other, where = (torch.randn(16, generator=generator) for _ in range(3))
    zero = torch.randn(16, generator=generator)
    leans = Discriminant(weight / 16, zero, torch.ones(16))
    begins = Discriminant(other / (other @ (where - zero)), zero, torch.ones(16))
    low = where - weight * (leans.score(where) / (weight @ weight / 16))  # scores 0 by the lens
    begins = Discriminant(begins.weight / begins.score(low), zero, torch.ones(16))
    joined = joined_by(leans, begins, low[None])
    assert float(joined.score(low)) == pytest.approx(1, abs=1e-4)
    assert float(joined.score(zero)) == pytest.approx(0, abs=1e-4)
    high = zero + 2 * weight / (weight @ weight / 16)
    same = joined_by(leans, begins, high[None])
    torch.testing.assert_close(same.score(where), leans.score(where), rtol=1e-4, atol=1e-4)
