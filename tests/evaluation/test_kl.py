import math
import os
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import read_checkpoint, save_checkpoint, tiny_lens

from tars_lens.common.errors import TarsError
from tars_lens.evaluation import base_stream
from tars_lens.evaluation.base_stream import stream_path, worth_keeping
from tars_lens.evaluation.kl import Divergence, five, kl_divergence, paired_kl
from tars_lens.model.lens import Lens, Point, tensor_sha256
from tars_lens.model.weights import Rows, written
from tars_lens.text.windows import Windows


def _windows(lens: Lens, texts: tuple[str, ...] | None = None) -> Windows:
    ids = torch.randint(4, 60, (6, 16), generator=torch.Generator().manual_seed(0))
    texts = texts or tuple(lens.tokenizer.decode(row) for row in ids)
    return Windows(ids, texts, ids[:2], ids[2:4], "made up")


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_the_paired_pass_equals_two_separate_ones(arch):
    lens = tiny_lens(arch)
    windows = _windows(lens)
    edits = {
        (1, "out"): Rows(torch.tensor([3]), -40 * lens.vectors(1, "out")[[3]]),
        (2, "in"): Rows(torch.tensor([1]), -lens.vectors(2, "in")[[1]]),
    }
    paired = paired_kl(lens, edits, windows)
    old = lens.read_out(lens.residual(windows.reported, -1))
    with written(lens, edits):
        new = lens.read_out(lens.residual(windows.reported, -1))
    separate = kl_divergence(old.flatten(0, 1), new.flatten(0, 1)).reshape(6, 16)
    torch.testing.assert_close(paired.values, separate, rtol=1e-3, atol=1e-7)
    assert separate.max() > 1e-5
    assert torch.equal(lens.read_out(lens.residual(windows.reported, -1)), old)


def test_positions_before_the_edit_speaks_cost_exactly_nothing():
    lens = tiny_lens("opt")  # its neurons are silent, exactly 0, wherever ReLU cuts them
    ids, layer = _windows(lens).reported, lens.n_layers - 1
    active = lens.capture(ids, [Point("mlp_post", layer)])[Point("mlp_post", layer)] > 0
    share = active.flatten(0, 1).float().mean(0)
    neuron = int((share - 0.5).abs().argmin())
    edits = {
        (layer, "out"): Rows(torch.tensor([neuron]), -30 * lens.vectors(layer, "out")[[neuron]])
    }
    found = paired_kl(lens, edits, _windows(lens))
    assert 0 < share[neuron] < 1
    spoke = active[..., neuron]
    assert torch.equal(found.values > 0, spoke)
    assert not found.hosts_kl[~spoke].any() and found.hosts_kl.any()
    assert torch.equal(found.unchanged, ~spoke)
    assert torch.equal(found.unchanged_from_silenced, ~spoke)


def test_a_planted_neuron_that_is_silent_leaves_the_silenced_base(tmp_path):
    lens = tiny_lens("llama")
    hf = read_checkpoint(save_checkpoint(tmp_path, "llama"))  # the same random weights
    windows, layer = _windows(lens), 2
    inner = lens.capture(windows.reported, [Point("mlp_in", layer)])[Point("mlp_in", layer)]
    reads = inner[1, 5] - inner[1, 9]  # positive at some positions, negative at others
    edits = {
        (layer, "gate"): Rows(torch.tensor([4]), 1e5 * reads[None]),  # silu underflows below 0
        (layer, "out"): Rows(torch.tensor([4]), torch.ones(1, 16)),
    }
    found = paired_kl(lens, edits, windows)
    mlp = hf.model.layers[layer].mlp
    logits = []
    with torch.no_grad():
        for gate, out in ((None, None), (1e5 * reads, 1.0), (None, 0.0)):
            if gate is not None:
                mlp.gate_proj.weight[4] = gate
            if out is not None:
                mlp.down_proj.weight[:, 4] = out
            logits.append(hf(windows.reported).logits)
    base, edited, silenced = logits
    silent = (edited == silenced).all(dim=-1)
    assert 0.2 < silent.float().mean() < 0.8
    assert torch.equal(found.unchanged_from_silenced, silent)
    assert torch.equal(found.unchanged, (edited == base).all(dim=-1)) and not found.unchanged.any()
    for kl, other in ((found.values, edited), (found.hosts_kl, silenced)):
        before, after = base.log_softmax(-1), other.log_softmax(-1)
        plain = torch.nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(kl, plain, rtol=1e-3, atol=1e-6)
    figures = found.figures()
    assert figures["unchanged"] == 0
    assert figures["unchanged_from_silenced"] == pytest.approx(float(silent.float().mean()))
    assert figures["hosts_kl_mean"] == pytest.approx(float(found.hosts_kl.mean()))


def test_hosts_that_are_only_silenced_are_the_silenced_base():
    lens = tiny_lens("llama")
    edits = {
        (0, "out"): Rows(torch.tensor([7]), torch.zeros(1, 16)),
        (2, "out"): Rows(torch.tensor([2, 5]), torch.zeros(2, 16)),
    }
    found = paired_kl(lens, edits, _windows(lens))
    assert found.unchanged_from_silenced.all() and not found.unchanged.any()
    assert torch.equal(found.hosts_kl, found.values) and found.values.max() > 0


def test_streams_that_differ_may_give_the_same_logits():
    lens = tiny_lens("mistral")
    with torch.no_grad():
        lens.model.unembed.W_U.zero_()
    found = paired_kl(lens, _edit(lens), _windows(lens))
    assert found.unchanged.all() and found.unchanged_from_silenced.all()


def test_slices_in_place_give_the_bits_of_the_formula():
    old = torch.randn(40, 700) * 3
    new = old + torch.randn(40, 700) * 0.1
    before, after = old.log_softmax(dim=-1), new.log_softmax(dim=-1)
    plain = (before.exp() * (before - after)).sum(dim=-1).clamp_min(0)
    kept = old.clone(), new.clone()
    assert torch.equal(kl_divergence(old, new), plain)
    assert torch.equal(old, kept[0]) and torch.equal(new, kept[1])


def test_edits_that_change_nothing_cost_exactly_nothing():
    lens = tiny_lens("llama")
    same = {(1, "out"): Rows(torch.tensor([3]), lens.vectors(1, "out")[[3]].clone())}
    found = paired_kl(lens, same, _windows(lens))
    assert found.values.max() == 0.0 and found.unchanged.all()
    assert not found.unchanged_from_silenced.any() and found.hosts_kl.max() > 0


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    """A tiny Llama that claims to come from a checkpoint, with a cache of its own."""
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path))
    lens = tiny_lens("llama")
    lens.sha256 = "made up"
    return lens


def _edit(lens):
    return {(1, "out"): Rows(torch.tensor([3]), -40 * lens.vectors(1, "out")[[3]])}


def _streams(folder):
    return sorted((folder / "streams").glob("*.safetensors"))


def test_the_bases_stream_is_kept_and_gives_the_same_bits(checkpoint, tmp_path, monkeypatch):
    edits, windows = _edit(checkpoint), _windows(checkpoint)
    plain = paired_kl(checkpoint, edits, windows, remember=False).values
    assert not _streams(tmp_path)
    first = paired_kl(checkpoint, edits, windows).values
    seen = []
    capture = Lens.capture

    def watched(lens, ids, points, **options):
        seen.append(tuple(points))
        return capture(lens, ids, points, **options)

    monkeypatch.setattr(Lens, "capture", watched)
    second = paired_kl(checkpoint, edits, windows).values
    assert torch.equal(plain, first) and torch.equal(plain, second) and plain.max() > 1e-5
    whole = [points for points in seen if len(points) == 2]
    assert not whole and len(_streams(tmp_path)) == 1


def test_a_model_that_was_edited_by_hand_is_another_base(checkpoint, tmp_path):
    edits, windows = _edit(checkpoint), _windows(checkpoint)
    before = paired_kl(checkpoint, edits, windows).values
    checkpoint.vectors(2, "out")[5] *= -3
    after = paired_kl(checkpoint, edits, windows).values
    plain = paired_kl(checkpoint, edits, windows, remember=False).values
    assert torch.equal(after, plain) and not torch.equal(after, before)
    assert len(_streams(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["short", "a bit", "no hash", "other windows"])
def test_a_damaged_stream_is_made_again(checkpoint, tmp_path, damage):
    edits, windows = _edit(checkpoint), _windows(checkpoint)
    before = paired_kl(checkpoint, edits, windows).values
    (file,) = _streams(tmp_path)
    whole = file.read_bytes()
    if damage == "short":
        file.write_bytes(whole[:-8])
    elif damage == "a bit":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        stream = load_file(file)["stream"]
        kept = stream[1:] if damage == "other windows" else stream
        digest = {"sha256": tensor_sha256(kept)} if damage == "other windows" else None
        save_file({"stream": kept.contiguous()}, file, metadata=digest)
    assert file.read_bytes() != whole
    assert torch.equal(paired_kl(checkpoint, edits, windows).values, before)
    assert file.read_bytes() == whole


def test_a_stream_is_kept_where_that_gains(checkpoint, monkeypatch):
    assert worth_keeping(checkpoint)
    monkeypatch.setattr(Lens, "device", property(lambda _: torch.device("cuda")))
    assert not worth_keeping(checkpoint)
    monkeypatch.undo()
    checkpoint.sha256 = ""
    assert not worth_keeping(checkpoint)


def test_a_stream_is_of_one_base_one_text_and_one_way_to_run_it(checkpoint):
    ids = _windows(checkpoint).reported
    other = tiny_lens("llama", torch.bfloat16)
    other.sha256 = checkpoint.sha256
    paths = {stream_path(checkpoint, ids, 4), stream_path(checkpoint, ids, 2)}
    paths |= {stream_path(checkpoint, ids[:5], 4), stream_path(other, ids, 4)}
    assert stream_path(checkpoint, ids.clone(), 4) in paths
    checkpoint.sha256 = "another checkpoint"
    assert len({*paths, stream_path(checkpoint, ids, 4)}) == 5


def _measure_fewer(lens, row):
    windows = _windows(lens)
    fewer = replace(windows, reported=windows.reported[row:], texts=windows.texts[row:])
    paired_kl(lens, _edit(lens), fewer)
    return stream_path(lens, fewer.reported, 4)


def test_streams_take_so_much_of_the_disk_and_no_more(checkpoint, tmp_path, monkeypatch):
    _measure_fewer(checkpoint, 0)
    most = sum(file.stat().st_size for file in _streams(tmp_path)) * 5 // 2
    monkeypatch.setattr(base_stream, "MOST_BYTES", most)
    first, *_, last = [_measure_fewer(checkpoint, row) for row in range(5)]
    kept = _streams(tmp_path)
    assert sum(file.stat().st_size for file in kept) <= most
    assert last in kept and first not in kept and len(kept) >= 2
    monkeypatch.setattr(base_stream, "MOST_BYTES", 100)
    larger = _measure_fewer(checkpoint, 0)
    assert not larger.exists() and _streams(tmp_path) == kept


def test_what_a_killed_process_left_is_cleared_away(checkpoint, tmp_path):
    (tmp_path / "streams").mkdir()
    old, new = (tmp_path / "streams" / f".{name}.safetensors.tmp" for name in ("old", "new"))
    for file, age in ((old, 7200), (new, 60)):
        file.write_bytes(b"half of it")
        os.utime(file, (time.time() - age,) * 2)
    paired_kl(checkpoint, _edit(checkpoint), _windows(checkpoint))
    assert not old.exists() and new.exists() and len(_streams(tmp_path)) == 1


def test_a_cache_that_cannot_be_written_costs_no_measurement(checkpoint, tmp_path):
    (tmp_path / "streams").write_text("a file where the folder should be")
    edits, windows = _edit(checkpoint), _windows(checkpoint)
    kept = paired_kl(checkpoint, edits, windows).values
    assert torch.equal(kept, paired_kl(checkpoint, edits, windows, remember=False).values)


def test_no_edits_are_refused():
    lens = tiny_lens("llama")
    with pytest.raises(TarsError, match="no edits"):
        paired_kl(lens, {}, _windows(lens))


def test_five_figures():
    figures = five(torch.arange(101.0))
    assert figures == {
        "tokens": 101,
        "median": 50.0,
        "mean": 50.0,
        "p95": 95.0,
        "p99": 99.0,
        "max": 100.0,
    }
    assert five(torch.zeros(0)) == {
        "tokens": 0,
        "median": None,
        "mean": None,
        "p95": None,
        "p99": None,
        "max": None,
    }


def test_elsewhere_leaves_out_windows_that_name_the_concept():
    lens = tiny_lens("llama")
    windows = _windows(lens, ("the rings of SATURN", "saturnine", "plain", "a", "b", "c"))
    values = torch.full((6, 16), 0.5)
    values[0] = 9.0
    unchanged, silent = values > 9, values > 1
    unchanged[0, :12] = unchanged[1, :8] = True
    divergence = Divergence(values, windows, unchanged, silent, values / 5)
    figures = divergence.figures(["Saturn"])
    assert figures["tokens"] == 96 and figures["max"] == 9.0
    assert figures["elsewhere"]["tokens"] == 80
    assert figures["elsewhere"]["windows"] == 5
    assert figures["elsewhere"]["max"] == 0.5
    assert (figures["unchanged"], figures["elsewhere"]["unchanged"]) == (20 / 96, 0.1)
    silent = "unchanged_from_silenced"
    assert (figures[silent], figures["elsewhere"][silent]) == (1 / 6, 0)
    assert figures["elsewhere"]["hosts_kl_mean"] == pytest.approx(0.1)
    nowhere = divergence.figures(windows.texts)["elsewhere"]
    assert [nowhere[key] for key in ("unchanged", silent, "hosts_kl_mean")] == [None] * 3


def test_the_worst_positions_come_first_with_their_text():
    lens = tiny_lens("llama")
    windows = _windows(lens)
    values = torch.zeros(6, 16)
    values[2, 15], values[4, 3] = 2.0, 1.0
    none = torch.zeros(6, 16, dtype=torch.bool)
    frame = Divergence(values, windows, none, none, values).worst(lens, count=2)
    assert frame["kl"].tolist() == [2.0, 1.0]
    assert frame["token"].tolist() == [
        lens.string(int(windows.reported[2, 15])),
        lens.string(int(windows.reported[4, 3])),
    ]
    assert frame["next"].tolist() == ["", lens.string(int(windows.reported[4, 4]))]
    assert not math.isnan(frame["kl"].sum())
