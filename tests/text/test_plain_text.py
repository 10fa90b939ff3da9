"""Statistics of plain text: what they are by definition, however they are gathered or kept."""

import pytest
import torch
from tiny import tiny_lens
from tiny_recipe import sharp

from tars_lens.model.lens import Lens, Point
from tars_lens.text import plain_text
from tars_lens.text.plain_text import STRIDE, WINDOWS_AT_ONCE, Places, PlainText

PLACES = Places(inputs=(0, 2), streams=(1, 2), moments=(1,))


def _ids(windows=5):
    return torch.randint(4, 60, (windows, 16), generator=torch.Generator().manual_seed(0))


def _flat(found):
    return dict(found._tensors())


def _same(one, other):
    first, second = _flat(one), _flat(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2", "neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_may_be_read_a_few_at_a_time(arch, dtype, monkeypatch):
    lens = tiny_lens(arch, dtype)
    whole = PlainText.fit(lens, _ids(), PLACES)
    for group in (1, 2):
        monkeypatch.setattr(plain_text, "LAYERS_AT_ONCE", group)
        assert _same(PlainText.fit(lens, _ids(), PLACES), whole)


def test_no_more_than_a_group_is_held_at_once(lens, monkeypatch):
    monkeypatch.setattr(plain_text, "LAYERS_AT_ONCE", 1)
    seen = []
    capture = Lens.capture

    def watched(*args, **options):
        found = capture(*args, **options)
        seen.append({point.layer for point in found})
        return found

    monkeypatch.setattr(Lens, "capture", watched)
    PlainText.fit(lens, _ids(), PLACES)
    assert seen == 3 * [{0}, {1}, {2}]


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2"])
def test_the_statistics_are_those_of_the_plain_model(arch):
    place = sharp(arch)
    found = PlainText.fit(place.lens, place.ids, PLACES)
    assert set(found.inputs) == {0, 2} and set(found.means) == {0, 1, 2}
    assert set(found.streams) == set(found.log_partitions) == {1, 2}
    batches = [place.seen(ids) for ids in place.ids.split(WINDOWS_AT_ONCE)]

    def every(pick):  # position 0 of each window is left out
        return [pick(seen)[:, 1:].flatten(0, 1) for seen in batches]

    def some(pick):
        return torch.cat([rows[::STRIDE] for rows in every(pick)])

    for layer in (0, 2):
        torch.testing.assert_close(found.inputs[layer], some(lambda s, la=layer: s.inputs[la]))
    for layer in (0, 1, 2):
        y = torch.cat(every(lambda s, la=layer: s.inputs[la]))
        torch.testing.assert_close(found.means[layer], y.mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            found.covariances[layer], y.T.cov(correction=0), rtol=1e-3, atol=1e-5
        )
        norm = some(lambda s, la=layer: s.streams[la]).norm(dim=1).median()
        torch.testing.assert_close(found.residual_norm[layer], norm)
    for layer in (1, 2):
        stream = some(lambda s, la=layer: s.streams[la])
        torch.testing.assert_close(found.streams[layer], stream)
        partition = place.read_out(stream).logsumexp(-1)
        torch.testing.assert_close(found.log_partitions[layer], partition, rtol=1e-4, atol=1e-4)
    own = some(lambda s: s.logits).logsumexp(-1)
    torch.testing.assert_close(found.log_partitions[2], own, rtol=1e-4, atol=1e-4)


def test_how_loud_neurons_are_and_what_a_layer_writes(lens):
    found = PlainText.fit(lens, _ids(), PLACES)
    point = Point("mlp_post", 2)
    activation = lens.capture(_ids(), [point])[point][:, 1:]
    expected = activation.flatten(0, 1).square().mean(0).sqrt()
    torch.testing.assert_close(found.activation_rms[2], expected)
    batches = activation.split(WINDOWS_AT_ONCE)
    kept = torch.cat([few.flatten(0, 1)[::STRIDE] for few in batches])
    norms = (kept @ lens.vectors(2, "out")).norm(dim=1)
    torch.testing.assert_close(found.mlp_norm[2], norms.median())


def test_the_constant_is_one_on_all_text_on_average_and_varies_little():
    place = sharp("gpt2")  # a LayerNorm's bias makes the mean large
    found = PlainText.fit(place.lens, place.ids, PLACES)
    y = torch.cat([s.inputs[2][:, 1:].flatten(0, 1) for s in map(place.seen, place.ids.split(4))])
    along = y @ found.constant(2, 0.05)
    assert float(along.mean()) == pytest.approx(1, rel=1e-4)
    plain = y @ (y.mean(0) / y.mean(0).square().sum())
    assert float(along.std()) < float(plain.std())


@pytest.fixture
def kept(monkeypatch, own_cache):
    """A lens of a known checkpoint, its cache's folder, and a count of the gatherings."""
    lens = tiny_lens("llama")
    lens.sha256 = "made up"
    fit, counted = PlainText.fit.__func__, []
    monkeypatch.setattr(
        PlainText, "fit", classmethod(lambda *args: counted.append(1) or fit(*args))
    )
    return lens, own_cache / "plain_text", counted


def test_a_second_run_reads_what_the_first_has_gathered(kept):
    lens, folder, counted = kept
    first = PlainText.cached(lens, _ids(), PLACES)
    second = PlainText.cached(lens, _ids(), PLACES)
    assert counted == [1] and _same(first, second)
    assert len(list(folder.iterdir())) == 1
    assert set(second.inputs) == {0, 2}  # layers are numbers again


def test_other_text_other_layers_and_another_model_are_gathered_anew(kept):
    lens, folder, counted = kept
    PlainText.cached(lens, _ids(), PLACES)
    PlainText.cached(lens, _ids(4), PLACES)
    PlainText.cached(lens, _ids(), Places((0,), (2,), ()))
    lens.sha256 = "another"
    PlainText.cached(lens, _ids(), PLACES)
    assert len(counted) == len(list(folder.iterdir())) == 4
    lens.sha256 = ""  # a model of no checkpoint is known by nothing
    PlainText.cached(lens, _ids(), PLACES)
    assert len(counted) == 5 and len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("damage", ["short", "nothing", "no safetensors", "another file"])
def test_a_damaged_file_is_gathered_again(kept, damage):
    lens, folder, counted = kept
    whole = PlainText.cached(lens, _ids(), PLACES)
    (file,) = folder.iterdir()
    before = file.read_bytes()
    if damage == "another file":
        from safetensors.torch import save_file

        save_file({"weights.0": torch.ones(2)}, file)
    else:
        file.write_bytes({"short": before[:-8], "nothing": b""}.get(damage, b"x" * len(before)))
    again = PlainText.cached(lens, _ids(), PLACES)
    assert counted == [1, 1] and _same(whole, again)
    assert file.read_bytes() == before


def test_a_full_disk_loses_nothing(kept, monkeypatch):
    lens, folder, counted = kept

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tars_lens.common.files.os.replace", full)
    found = PlainText.cached(lens, _ids(), PLACES)
    assert counted == [1] and len(found.inputs) == 2
    assert not list(folder.glob("*.safetensors"))
