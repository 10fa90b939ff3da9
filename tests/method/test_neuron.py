"""The rows of a neuron, and which neuron is given up for it."""

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, tiny_lens

from tars_lens.method.neuron import divided_by_gain, host_neuron, neuron_rows, past_post_norm
from tars_lens.model.lens import Point
from tars_lens.model.weights import written
from tars_lens.text.plain_text import Places, PlainText

LAYER, HOST = 1, 5


def _plain(lens):
    ids = torch.randint(4, 60, (4, 16), generator=torch.Generator().manual_seed(0))
    return ids, PlainText.fit(lens, ids, Places((), (), (LAYER,)))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_neuron_speaks_as_loud_as_it_reads_and_is_silent_below_zero(arch):
    lens = tiny_lens(arch)
    ids, _ = _plain(lens)
    y = lens.capture(ids, [Point("mlp_in", LAYER)])[Point("mlp_in", LAYER)].float()
    here, there = y[0, 5], y[1, 7]
    # exactly 50 here and -50 there, with a constant that is exactly 1 at both
    pair = torch.stack([here, there]).double().numpy()
    read, constant = (
        torch.tensor(np.linalg.lstsq(pair, np.array(v), rcond=None)[0]).float()
        for v in ([50.0, -50.0], [1.0, 1.0])
    )
    write = torch.randn(lens.d_model)
    edits = neuron_rows(lens, LAYER, HOST, read=read, constant=constant, write=write)
    assert {role for _, role in edits} == set(lens.roles)
    point = Point("mlp_post", LAYER)
    with written(lens, edits):
        activation = lens.capture(ids, [point])[point][..., HOST].float()
    assert float(activation[0, 5]) == pytest.approx(50, rel=1e-3)
    assert abs(float(activation[1, 7])) < 1e-4
    assert torch.equal(edits[LAYER, "out"].values[0], write)


def test_a_row_ends_up_in_the_stream_as_was_asked_past_a_post_norm():
    lens = tiny_lens("gemma3")
    wanted = torch.randn(lens.d_model)
    row = past_post_norm(lens, LAYER, wanted, 0.05)
    gain = 1 + lens.model.blocks[LAYER].ln2_post.weight.detach()
    assert float(row.norm()) == pytest.approx(1, rel=1e-5)
    assert float(torch.cosine_similarity(row * gain, wanted, dim=0)) > 0.95
    plain = past_post_norm(tiny_lens("llama"), LAYER, wanted, 0.05)
    torch.testing.assert_close(plain, wanted / wanted.norm())


def test_gains_of_exactly_zero_do_not_blow_up_a_row():
    lens = tiny_lens("gemma3")
    with torch.no_grad():
        lens.model.blocks[LAYER].ln2_post.weight[:3] = -1.0  # Gemma stores the gain less one
    row = past_post_norm(lens, LAYER, torch.ones(lens.d_model), 0.05)
    assert torch.isfinite(row).all() and row[:3].abs().max() < 1e-6
    gain = torch.tensor([0.0, 1.0, -3.0])
    held = 0.3 * float(gain.square().mean())
    expected = torch.tensor([0.0, 2 / (1 + held), 2 * -3 / (9 + held)])
    torch.testing.assert_close(divided_by_gain(torch.full([3], 2.0), gain, 0.3), expected)


@pytest.fixture
def hosts(lens):
    """How much plain text would miss each neuron, and what each writes, by definition."""
    ids, plain = _plain(lens)
    point = Point("mlp_post", LAYER)
    activation = lens.capture(ids, [point])[point][:, 1:].flatten(0, 1)
    out = lens.vectors(LAYER, "out")
    missed = (activation[:, :, None] * out[None]).square().sum(-1).mean(0)
    direction = torch.randn(lens.d_model, generator=torch.Generator().manual_seed(1))
    cosines = (out @ direction) / out.norm(dim=1)

    def host(taken, share):
        return host_neuron(lens, plain, LAYER, direction, taken, share)

    return host, missed.argsort().tolist(), cosines


def test_with_a_share_of_0_the_idlest_is_given_up(hosts):
    host, order, _ = hosts
    assert host((), 0.0) == order[0]
    assert host({(LAYER, order[0])}, 0.0) == order[1]
    assert host({(LAYER + 1, order[0])}, 0.0) == order[0]


def test_with_a_share_of_1_the_best_aligned_one_is(hosts):
    host, order, cosines = hosts
    best = cosines.argsort(descending=True).tolist()
    assert host((), 1.0) == best[0]
    assert host({(LAYER, best[0]), (LAYER, best[1])}, 1.0) == best[2]
    half = order[: len(order) // 2]
    assert host((), 0.5) == max(half, key=lambda neuron: float(cosines[neuron]))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_none_is_given_out_twice(hosts, share):
    host, order, _ = hosts
    taken = set()
    for _ in order:
        found = (LAYER, host(taken, share))
        assert found not in taken
        taken.add(found)
    assert len(taken) == len(order)
