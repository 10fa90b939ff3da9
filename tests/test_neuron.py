import pytest
import torch
from tiny import ARCHITECTURES, tiny_lens

from tars_lens.discriminant import discriminant
from tars_lens.lens import Lens, Point
from tars_lens.neuron import (
    GAIN,
    activation_at_one,
    capped_rows,
    post_norm_row,
    reading_rows,
    writing_row,
)
from tars_lens.weights import written

LAYER = 1


def _texts(lens: Lens) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(4, min(60, lens.d_vocab), (24, 12), generator=generator)


def _reader(lens: Lens, ids: torch.Tensor):
    """A reader of the position where one token was read, against all other positions."""
    point = Point("mlp_in", LAYER)
    y = lens.capture(ids, [point])[point].float()
    plain = y.flatten(0, 1)
    concept = y[:4, -1]
    mean = plain.mean(0)
    return discriminant([concept], plain[:0], mean, torch.cov(plain.T, correction=0), ridge=0.01), y


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_neuron_is_loud_on_the_concept_and_silent_elsewhere(arch):
    lens = tiny_lens(arch)
    ids = _texts(lens)
    reader, y = _reader(lens, ids)
    edits = reading_rows(lens, LAYER, 5, reader, threshold=0.3, unit="squared")
    point = Point("mlp_post", LAYER)
    with written(lens, edits):
        activation = lens.capture(ids, [point])[point][..., 5].float()
    score = reader.score(y)
    loud = activation[:4, -1].mean()
    assert loud > 0.4 * activation_at_one(lens, "squared")
    silent = score < 0.1
    assert silent.float().mean() > 0.3
    # the bias vector is 1 only on average: in 16 dimensions single positions stray
    assert activation[silent].abs().median() < 0.01 * loud


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_write_goes_against_the_direction(arch):
    lens = tiny_lens(arch)
    ids = _texts(lens)
    reader, _ = _reader(lens, ids)
    direction = torch.randn(lens.d_model, generator=torch.Generator().manual_seed(1))
    read = reading_rows(lens, LAYER, 5, reader, threshold=0.3, unit="squared")
    write = writing_row(lens, LAYER, 5, direction, size=50.0, unit="squared")
    point = Point("mlp_out", LAYER)
    before = lens.capture(ids, [point])[point]
    with written(lens, {**read, **write}):
        after = lens.capture(ids, [point])[point]
    moved = (after - before)[:4, -1].float().mean(0)
    assert torch.cosine_similarity(moved, -direction, dim=0) > 0.6


def test_without_a_post_norm_the_write_has_the_size_that_was_asked_for():
    lens = tiny_lens("llama")
    direction = torch.randn(lens.d_model)
    rows = writing_row(lens, LAYER, 5, direction, size=3.0, unit="linear")[(LAYER, "out")]
    expected = -3.0 / GAIN * direction / direction.norm()
    torch.testing.assert_close(rows.values[0], expected)


def test_gains_of_exactly_zero_do_not_blow_up_a_post_norm_row():
    lens = tiny_lens("gemma3")
    norm = lens.model.blocks[LAYER].ln2_post
    with torch.no_grad():
        norm.weight[:3] = -1.0  # Gemma stores the gain less one
    row = post_norm_row(lens, LAYER, torch.ones(lens.d_model))
    assert torch.isfinite(row).all()
    torch.testing.assert_close(row.norm(), torch.tensor(1.0))
    assert row[:3].abs().max() < 1e-6


def test_a_capped_write_grows_from_the_threshold_to_the_cap_and_no_further():
    lens = tiny_lens("llama")
    ids = _texts(lens)
    reader, y = _reader(lens, ids)
    direction = torch.randn(lens.d_model, generator=torch.Generator().manual_seed(1))
    edits = capped_rows(lens, LAYER, (5, 6), reader, direction, threshold=0.15, cap=0.5, size=10.0)
    idle = {
        place: rows._replace(values=torch.zeros_like(rows.values)) for place, rows in edits.items()
    }
    point = Point("mlp_out", LAYER)
    found = {}
    for name, rows in (("edited", edits), ("idle", idle)):
        with written(lens, rows):
            found[name] = lens.capture(ids, [point])[point]
    written_by = (found["edited"] - found["idle"]).float()
    along = -(written_by @ direction / direction.norm())
    # what stands in for a bias is 1 only on average: the score that the rows see, and the size
    bias, score = (
        y @ reader.bias,
        (y @ reader.weight) - (reader.weight @ reader.mean) * (y @ reader.bias),
    )
    seen = score / bias
    steady = (bias > 0.5) & (bias < 1.5)
    high, low = steady & (seen > 0.8), steady & (seen < 0)
    assert high.sum() >= 3
    torch.testing.assert_close(along[high], 10.0 * bias[high] ** 2, rtol=0.05, atol=0.2)
    assert along[low].abs().max() < 0.5
