"""Hidden or removed: the split of a fall, against plain logits and against a count by hand."""

import pytest
import torch
from test_evaluation import SMALL
from tiny_concept import world

from tars_lens.concept.card import Concept
from tars_lens.evaluation import patched, untouched
from tars_lens.evaluation.base import Base
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.control_edits import blocked
from tars_lens.evaluation.measures.hidden import hidden, standing
from tars_lens.evaluation.subject import Subject
from tars_lens.model.lens import Lens, Point
from tars_lens.model.loading import load
from tars_lens.model.weights import Rows
from tars_lens.patch.patch import Patch
from tars_lens.text.corpus import load_corpus


@pytest.fixture(scope="module")
def tiny() -> Lens:
    return load(world().model, progress=False)


@pytest.fixture(scope="module")
def card() -> Concept:
    return Concept.load(world().card)


@pytest.fixture(scope="module")
def base(tiny, card) -> Base:
    return Base(tiny, [card], load_corpus(world().corpus), SMALL, seed=0)


def _of(base: Base, subject: Subject):
    return hidden(Context(base, subject))


def _written(lens: Lens, base: Base, card: Concept):
    """Of every neuron of the last layer what it writes towards the concept, by prompt, by hand."""
    found = standing(Context(base, untouched()), card)
    last = lens.n_layers - 1
    points = [Point("mlp_post", last), Point("resid_post", last)]
    active, stream = (
        lens.capture(found.batch.ids, points, positions=found.batch.last)[point] for point in points
    )
    towards = lens.unembedding[:, list(found.tokens)].T - lens.unembedding.mean(dim=1)
    scale = lens.model.ln_final(stream[None])[0] / (stream * lens.model.ln_final.weight)
    direction = towards * lens.model.ln_final.weight * scale.mean(dim=1, keepdim=True)
    return active * (direction @ lens.vectors(last, "out").T), active, direction


def _patch(lens: Lens, neuron: int, row: torch.Tensor, layer: int | None = None) -> Patch:
    layer = lens.n_layers - 1 if layer is None else layer
    return Patch.build(lens, {(layer, "out"): Rows(torch.tensor([neuron]), row[None])}, label="t")


def test_an_untouched_model_lost_nothing(base):
    found = _of(base, untouched())
    assert found.value is None and found.interval is None
    assert found.figures["fall"] == found.figures["lost"] == found.figures["added"] == 0.0


def test_a_silenced_supporter_is_lost_and_nothing_is_added(tiny, base, card):
    by_neuron, _, _ = _written(tiny, base, card)
    neuron = int(by_neuron.amin(dim=0).argmax())
    assert (by_neuron[:, neuron] > 0).all()
    patch = _patch(tiny, neuron, torch.zeros(tiny.d_model))
    found = _of(base, patched(tiny, [patch]))
    expected = by_neuron[:, neuron].tolist()
    assert found.items["lost"].tolist() == pytest.approx(expected, rel=1e-4)
    assert found.items["added"].abs().max() < 1e-5
    assert found.items["returned"].abs().max() < 1e-5


def test_a_planted_opponent_is_added_and_nothing_but_its_host_is_lost(tiny, base, card):
    by_neuron, active, direction = _written(tiny, base, card)
    neuron = int(active.abs().amin(dim=0).argmax())
    assert (active[:, neuron].sign() == active[0, neuron].sign()).all()
    row = -torch.sign(active[0, neuron]) * 5 * direction[0] / direction[0].norm()
    found = _of(base, patched(tiny, [_patch(tiny, neuron, row)]))
    before, after = by_neuron[:, neuron], active[:, neuron] * (direction @ row)
    assert (after < 0).all()
    added = (-after).relu() - (-before).relu()
    assert found.items["added"].tolist() == pytest.approx(added.tolist(), rel=1e-4)
    assert found.items["lost"].tolist() == pytest.approx(before.relu().tolist(), abs=1e-4)
    assert found.figures["fall"] > 1 and found.value < 0.5


def test_the_kinds_add_up_to_what_plain_logits_lose(tiny, base, card):
    row = torch.randn(tiny.d_model, generator=torch.Generator().manual_seed(2))
    edits = {(0, "out"): Rows(torch.tensor([2]), 3 * row[None])}
    edits[1, "gate"] = Rows(torch.tensor([1, 4]), torch.stack([row, -row]))
    patch = Patch.build(tiny, edits, label="two layers")
    asked = standing(Context(base, untouched()), card)
    with torch.no_grad():
        logits = [tiny.next_logits(asked.batch)]
        with patch.applied(tiny):
            logits.append(tiny.next_logits(asked.batch))
    rows = torch.arange(len(asked.tokens))
    centred = [each[rows, list(asked.tokens)] - each.mean(dim=1) for each in logits]
    items = _of(base, patched(tiny, [patch])).items
    assert items["fall"].tolist() == pytest.approx((centred[0] - centred[1]).tolist(), abs=1e-5)
    total = items["lost"] + items["added"] - items["returned"] + items["scale"] + items["read_out"]
    assert total.tolist() == pytest.approx(items["fall"].tolist(), abs=1e-5)
    assert items["read_out"].abs().max() < 1e-5 and items["scale"].abs().min() > 0


def test_a_blocked_token_falls_in_the_read_out_alone(tiny, base, card):
    found = _of(base, blocked(tiny, [card]))
    assert found.value is None
    assert found.figures["fall"] > 1
    assert found.figures["read_out"] == pytest.approx(found.figures["fall"], rel=1e-5)
    assert found.figures["lost"] == found.figures["added"] == 0.0


def test_relearning_tells_it_before_and_after(tiny, base, card):
    from tars_lens.evaluation.measures.relearning import relearning

    by_neuron, _, _ = _written(tiny, base, card)
    neuron = int(by_neuron.amin(dim=0).argmax())
    subject = patched(tiny, [_patch(tiny, neuron, torch.zeros(tiny.d_model))])
    context = Context(base, subject)
    told = relearning(context).figures["hidden"]
    assert told["before"] == hidden(context).figures
    assert told["after"]["fall"] != told["before"]["fall"]
