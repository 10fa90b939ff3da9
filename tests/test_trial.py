import torch
from tiny import tiny_lens

from tars_lens.lens import Lens
from tars_lens.trial import Bench, kl_divergence
from tars_lens.weights import Rows, written


def _bench(lens: Lens, layer: int = 1) -> Bench:
    ids = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    batch = lens.batch(ids.tolist())
    return Bench.of(lens, batch, layer)


def _edits(lens: Lens, layer: int = 1, scale: float = 3.0):
    return {(layer, "out"): Rows(torch.tensor([2, 7]), -scale * lens.vectors(layer, "out")[[2, 7]])}


def test_a_trial_equals_a_whole_run_of_the_edited_model():
    lens = tiny_lens("gemma3")
    bench, edits = _bench(lens), _edits(lens)
    with written(lens, edits):
        whole = lens.residual(bench.batch.ids, -1)
    torch.testing.assert_close(bench.after(edits), whole, rtol=0, atol=1e-6)
    assert not torch.equal(bench.before, whole)


def test_onward_is_the_same_bench_whether_the_stream_was_kept_or_not():
    lens = tiny_lens("llama")
    run_on = _bench(lens).onward(2)
    batch = run_on.batch
    kept = Bench.of(lens, batch, 1, later=[2, 3]).onward(2)
    edits = _edits(lens, 2)
    assert torch.equal(kept.prefix, run_on.prefix)
    assert torch.equal(kept.before, run_on.before)
    with written(lens, edits):
        whole = lens.residual(batch.ids, -1)
    torch.testing.assert_close(kept.after(edits), whole, rtol=0, atol=1e-6)
    assert kept.mean_kl(edits) == run_on.mean_kl(edits) > 0


def test_mass_is_the_probability_of_the_tokens_at_the_end():
    lens = tiny_lens("llama")
    bench, edits = _bench(lens), _edits(lens)
    with written(lens, edits):
        probabilities = lens.next_logits(bench.batch).softmax(-1)
    expected = probabilities[:, [5, 9]].sum(1)
    torch.testing.assert_close(bench.mass(edits, [5, 9]), expected, rtol=1e-5, atol=1e-7)


def test_mean_kl_is_that_of_every_position():
    lens = tiny_lens("llama")
    bench, edits = _bench(lens), _edits(lens, scale=30.0)
    old = lens.read_out(bench.before[:, 1:].flatten(0, 1))
    new = lens.read_out(bench.after(edits)[:, 1:].flatten(0, 1))
    every = float(kl_divergence(old, new).mean())
    assert every > 1e-6
    assert abs(bench.mean_kl(edits) - every) < 0.02 * every
    assert abs(bench.mean_kl(edits, small=2 * every) - every) < 0.2 * every


def test_an_edit_that_changes_nothing_has_no_kl():
    lens = tiny_lens("llama")
    bench = _bench(lens)
    same = {(1, "out"): Rows(torch.tensor([2]), lens.vectors(1, "out")[[2]].clone())}
    assert bench.mean_kl(same) == 0.0
    divergence, kept = bench.end_effects(same, [])
    assert divergence.max() == 0.0
    assert kept.min() == 1.0


def test_end_effects_are_those_of_whole_runs_without_the_tokens():
    lens = tiny_lens("llama")
    bench, edits = _bench(lens), _edits(lens)
    old = lens.next_logits(bench.batch)
    with written(lens, edits):
        new = lens.next_logits(bench.batch)
    for logits in (old, new):
        logits[:, [3, 5]] = -torch.inf
    before, after = old.softmax(-1), new.softmax(-1)
    top = before.argmax(-1)[:, None]
    divergence, kept = bench.end_effects(edits, [3, 5])
    torch.testing.assert_close(divergence, kl_divergence(old, new), rtol=1e-4, atol=1e-6)
    share = (after.gather(1, top) / before.gather(1, top))[:, 0].clamp_max(1)
    torch.testing.assert_close(kept, share, rtol=1e-4, atol=1e-6)


def test_the_lens_mass_ends_with_the_final_one_and_sees_the_layers_before():
    lens = tiny_lens("gemma3")
    bench, edits = _bench(lens), _edits(lens)
    found = bench.lens_mass(edits, [5, 9])
    assert found.shape == (lens.n_layers - 1, 3)
    torch.testing.assert_close(found[-1], bench.mass(edits, [5, 9]), rtol=1e-4, atol=1e-7)
    with written(lens, edits):
        after_first = lens.residual(bench.batch.ids, 1, positions=bench.batch.last)
    expected = lens.read_out(after_first).softmax(-1)[:, [5, 9]].sum(1)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-7)


def test_mean_kl_leaves_out_only_what_is_not_disturbed():
    lens = tiny_lens("llama")
    bench, edits = _bench(lens), _edits(lens, scale=20.0)
    with written(lens, edits):
        new = lens.read_out(lens.residual(bench.batch.ids, -1))[:, 1:].flatten(0, 1)
    old = lens.read_out(bench.before)[:, 1:].flatten(0, 1)
    expected = float(kl_divergence(old, new).mean())
    assert expected > 0
    assert abs(bench.mean_kl(edits) - expected) < 0.02 * expected


def test_kl_agrees_with_torch_and_leaves_tokens_out():
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 4, 30, generator=generator)
    expected = torch.nn.functional.kl_div(
        new.log_softmax(-1), old.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(kl_divergence(old, new), expected)
    without = old.clone(), new.clone()
    for logits in without:
        logits[:, 3] = -torch.inf
    kept = [c for c in range(30) if c != 3]
    torch.testing.assert_close(kl_divergence(*without), kl_divergence(old[:, kept], new[:, kept]))
