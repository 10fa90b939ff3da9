"""Texts are run no further than they are asked about, and with others of much the same length."""

import itertools

import pytest
import torch
from tiny import ARCHITECTURES, tiny_lens

from tars_lens.model.grouping import groups, padded
from tars_lens.model.lens import Point

TEXTS = ["w3 w5 w9 w20 w33", "w7 w8", "w40 w2 w2 w15", "w9", "w11 w12 w13 w14 w15 w16 w17 w18"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("run_cost", [0, 3, 1000])
def test_no_other_way_of_parting_them_reads_less(seed, run_cost):
    draws = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (7,), generator=draws).tolist()
    found = groups(lengths, run_cost)
    assert sorted(itertools.chain(*found)) == list(range(len(lengths)))
    mine = padded(lengths, run_cost) + run_cost * len(found)
    ordered = sorted(lengths)
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        at = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(lengths)]
        parts = [ordered[start:end] for start, end in itertools.pairwise(at)]
        assert mine <= sum(len(part) * part[-1] + run_cost for part in parts)


def test_of_nothing_there_are_no_groups():
    assert groups([], 40) == []
    assert padded([], 40) == 0


def test_a_run_that_costs_nothing_pads_nothing_and_a_dear_one_runs_all_together():
    lengths = [5, 2, 9, 2, 7]
    assert padded(lengths, 0) == sum(lengths)
    assert groups(lengths, 1000) == [[1, 3, 0, 4, 2]]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("run_cost", [0, 6, 1000])
def test_what_is_seen_does_not_depend_on_the_groups(arch, run_cost, monkeypatch):
    monkeypatch.setattr("tars_lens.model.capturing.run_cost", lambda _device: run_cost)
    lens = tiny_lens(arch)
    batch = lens.prompts(TEXTS)
    points = [Point("resid_pre", 1), Point("mlp_post", 1), Point("resid_post", 2)]
    every = lens.capture(batch.ids, points)
    begun = every[points[0]]
    rows = torch.arange(len(TEXTS))
    for options in ({}, {"resume": (1, begun)}):
        there = points if not options else points[1:]
        ends = lens.capture(batch.ids, there, positions=batch.last, **options)
        whole = lens.capture(batch.ids, there, last=batch.last, **options)
        for point in there:
            expected = every[point][rows, batch.last]
            torch.testing.assert_close(ends[point], expected, rtol=1e-4, atol=2e-5)
            for i, end in enumerate(batch.last.tolist()):
                mine, all_of_it = whole[point][i, : end + 1], every[point][i, : end + 1]
                torch.testing.assert_close(mine, all_of_it, rtol=1e-4, atol=2e-5)
            assert whole[point].shape == every[point].shape


def test_what_stands_behind_the_position_asked_for_is_not_run(monkeypatch):
    monkeypatch.setattr("tars_lens.model.capturing.run_cost", lambda _device: 0)
    lens, ran = tiny_lens("llama"), []
    lens.model.blocks[0].attn.register_forward_pre_hook(
        lambda _module, inputs, kwargs: ran.append(
            tuple((inputs[0] if inputs else kwargs["hidden_states"]).shape[:2])
        ),
        with_kwargs=True,
    )
    batch = lens.prompts(TEXTS)
    lens.next_logits(batch)
    assert ran == [(1, 1), (1, 2), (1, 4), (1, 5), (1, 8)]
    ran.clear()
    lens.capture(batch.ids, [Point("resid_post", 0)], positions=torch.zeros_like(batch.last))
    assert ran == [(len(TEXTS), 1)]
