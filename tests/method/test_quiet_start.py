"""A planted neuron is silent at the BOS that begins every text, and elsewhere as it was."""

import pytest
import torch
from tiny import tiny_lens

from tars_lens.method.neuron import quiet_at_start
from tars_lens.method.settings import Settings
from tars_lens.model.lens import Point
from tars_lens.text.plain_text import Places, PlainText

LAYER = 1


@pytest.fixture(scope="module")
def lens():
    return tiny_lens("gemma3")


@pytest.fixture(scope="module")
def plain(lens):
    ids = torch.randint(4, 60, (40, 24), generator=torch.Generator().manual_seed(0))
    return PlainText.fit(lens, ids, Places(inputs=(LAYER,), streams=(), moments=()))


def _begun(lens, begin):
    """The MLP's input at the first position."""
    point = Point("mlp_in", LAYER)
    return lens.capture(torch.tensor([begin]), [point])[point][0, 0]


def test_without_a_bos_nothing_changes(lens, plain):
    assert not lens.tokens("")
    read = torch.randn(lens.d_model, generator=torch.Generator().manual_seed(1))
    assert quiet_at_start(lens, plain, LAYER, read, Settings()) is read


def test_at_bos_the_argument_is_as_far_below_as_the_setting_says(lens, plain, monkeypatch):
    monkeypatch.setattr(type(lens), "tokens", lambda self, text: [1])
    y = _begun(lens, [1])
    settings = Settings(start_quiet=0.5, gain=10.0)
    loud, quiet = 9 * y / y.square().sum(), -9 * y / y.square().sum()
    found = quiet_at_start(lens, plain, LAYER, loud, settings)
    assert float(found @ y) == pytest.approx(-5.0, rel=1e-4)
    assert quiet_at_start(lens, plain, LAYER, quiet, settings) is quiet


def test_what_is_taken_off_is_what_plain_text_says_least(lens, plain, monkeypatch):
    monkeypatch.setattr(type(lens), "tokens", lambda self, text: [1])
    y, texts = _begun(lens, [1]), plain.inputs[LAYER]
    read = torch.randn(lens.d_model, generator=torch.Generator().manual_seed(1))
    read = read + (9 - float(read @ y)) * y / y.square().sum()
    taken = read - quiet_at_start(lens, plain, LAYER, read, Settings(gain=10.0))
    ours = (texts @ taken).square().mean()
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):  # no other vector that says as much of BOS says less of text
        other = taken + 0.3 * taken.norm() * torch.randn(lens.d_model, generator=generator)
        other = other * float(taken @ y) / float(other @ y)
        assert (texts @ other).square().mean() > ours
