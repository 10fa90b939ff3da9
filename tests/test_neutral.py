"""Statistics of plain text: what they are by definition, however many layers are read at a time."""

import pytest
import torch
from tiny import tiny_lens

from tars_lens import neutral
from tars_lens.lens import Lens, Point
from tars_lens.neutral import Neutral

_LAYERS = (0, 2)


def _ids():
    return torch.randint(4, 60, (5, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2", "neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_may_be_read_a_few_at_a_time(arch, dtype, monkeypatch):
    lens = tiny_lens(arch, dtype)
    whole = vars(Neutral.fit(lens, _ids(), _LAYERS))
    for group in (1, 2):
        monkeypatch.setattr(neutral, "_GROUP", group)
        parts = vars(Neutral.fit(lens, _ids(), _LAYERS))
        assert parts.pop("layers") == _LAYERS
        assert all(torch.equal(values, whole[name]) for name, values in parts.items())


def test_no_more_than_a_group_is_held_at_once(lens, monkeypatch):
    monkeypatch.setattr(neutral, "_GROUP", 1)
    seen = []
    capture = Lens.capture

    def watched(*args, **options):
        found = capture(*args, **options)
        seen.append({point.layer for point in found})
        return found

    monkeypatch.setattr(Lens, "capture", watched)
    Neutral.fit(lens, _ids(), _LAYERS)
    assert seen == 3 * [{0}, {1}, {2}]


def test_the_statistics_are_those_of_all_positions_but_the_first(lens):
    found = Neutral.fit(lens, _ids(), _LAYERS)
    points = [Point(site, 2) for site in ("mlp_in", "mlp_post", "resid_post")]
    seen = [value[:, 1:].flatten(0, 1) for value in lens.capture(_ids(), points).values()]
    y, activation, stream = seen
    mean, covariance = found.of(2)
    torch.testing.assert_close(mean, y.mean(0))
    torch.testing.assert_close(covariance, y.T.cov(correction=0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.activation_rms[2], activation.square().mean(0).sqrt())
    torch.testing.assert_close(found.residual_norm[2], stream.norm(dim=1).median())
    output = activation @ lens.vectors(2, "out")
    torch.testing.assert_close(found.mlp_norm[2], output.norm(dim=1).median())
