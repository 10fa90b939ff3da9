"""Which readings a late neuron tries, and which of them is used."""

from dataclasses import replace

import pytest
from tiny_concept import studied_world

from tars_lens.late_neuron import Choice, LateNeuron, Reading
from tars_lens.recipe import _chosen
from tars_lens.settings import Settings
from tars_lens.trials import Trials

LOW, HIGH = Settings().forward_thresholds


@pytest.fixture(scope="module")
def place():
    """The tiny world's model, and all that a late neuron in its last layer is made from."""
    lens, card, windows, neutral, settings, studied = studied_world()
    last = lens.n_layers - 1
    trials = Trials.of(lens, card, studied.known_prompts, studied.tokens, windows, settings, last)
    return lens, studied, neutral, trials, last


@pytest.fixture
def neuron(place):
    lens, studied, neutral, trials, last = place
    return LateNeuron.of(lens, studied, neutral, trials, last, (), capped=False)


def test_the_last_layer_reads_the_leaning_before_the_description_alone(neuron):
    (only,) = neuron.readings()
    assert only == [
        Reading(r, t, both) for both in (True, False) for r in (0, 1) for t in (LOW, HIGH)
    ]


def test_without_a_leaning_every_reader_is_tried_at_every_threshold_in_order(neuron):
    (only,) = replace(neuron, leaning=None).readings()
    assert only == [Reading(r, t) for r in (0, 1) for t in (LOW, HIGH)]


def test_an_earlier_layer_goes_on_to_copies_when_all_else_fails(neuron):
    both, alone, copies = replace(neuron, layer=neuron.layer - 1).readings()
    assert both == [Reading(0, LOW, True)]
    assert alone == [Reading(0, LOW), Reading(0, HIGH)]
    assert copies == [Reading(1, LOW, True), Reading(1, LOW), Reading(1, HIGH)]


@pytest.mark.parametrize(
    ("reached", "excess", "used"),
    [
        ({0, 1, 2}, {0: 0.5, 1: 0.1, 2: 0.1}, (0, 1.0)),  # the first within the budgets
        ({1, 2}, {0: 0.1, 1: 0.5, 2: 0.1}, (1, 1.0)),  # what doesn't reach the goal is passed over
        ({0, 1, 2}, {0: 1.2, 1: 0.1, 2: 0.1}, (0, 0.7)),  # a little less before another is tried
        ({0, 1, 2}, {0: 4.0, 1: 0.9, 2: 0.1}, (1, 1.0)),
        ({0, 1, 2}, {0: 4.0, 1: 9.0, 2: 8.0}, (0, 0.5)),  # none keeps them: the quietest
        ({0, 2}, {0: 9.0, 1: 0.1, 2: 4.0}, (2, 0.5)),
        (set(), {0: 0.8, 1: 0.2, 2: 0.4}, (1, 1.0)),  # none reaches it: the quietest
    ],
)
def test_the_first_that_reaches_the_goal_within_the_budgets_is_used(
    neuron, monkeypatch, reached, excess, used
):
    tried, budget = [], neuron.trials.settings.max_kl

    def effects(_trials, edits, least):
        (number, share), tried[len(tried) :] = edits, [edits]
        found = {"plain_kl": excess[number] * share * budget}
        return None if found["plain_kl"] >= least * budget else found

    groups = [[Reading(0, float(number))] for number in excess]
    monkeypatch.setattr(LateNeuron, "readings", lambda _: groups)
    monkeypatch.setattr(LateNeuron, "edits", lambda _, c: (int(c.reading.threshold), c.share))
    monkeypatch.setattr(LateNeuron, "reached", lambda _, c: int(c.reading.threshold) in reached)
    monkeypatch.setattr(Trials, "_effects_below", effects)
    monkeypatch.setattr(Trials, "excess", lambda _, f: f["plain_kl"] / budget)
    choice, limits = _chosen(neuron, neuron.trials)
    assert (int(choice.reading.threshold), choice.share) == used and used in tried
    assert ("over_budget" in limits) == (excess[used[0]] * used[1] > 1)
    if reached and "over_budget" not in limits:  # and what comes after it isn't tried
        assert max(number for number, _ in tried) == used[0]


def test_before_the_last_layer_it_is_to_be_silent_in_the_end_too(neuron, monkeypatch):
    quiet, whole = (Choice(Reading(0, number)) for number in (0.0, 1.0))
    end = {quiet: 0.4, whole: 0.04}
    monkeypatch.setattr(LateNeuron, "readings", lambda _: [[c.reading] for c in end])
    monkeypatch.setattr(LateNeuron, "edits", lambda _, c: c)
    monkeypatch.setattr(LateNeuron, "reached", lambda *_: True)
    monkeypatch.setattr(Trials, "left", lambda _, c: end[c])
    monkeypatch.setattr(Trials, "_effects_below", lambda *_: {"plain_kl": 0.0})
    monkeypatch.setattr(Trials, "excess", lambda *_: 0.5)
    assert _chosen(neuron, neuron.trials)[0] == quiet  # the last layer's goal is the end itself
    earlier = replace(neuron, layer=neuron.layer - 1)
    assert earlier.silences(whole) and not earlier.silences(quiet)
    assert _chosen(earlier, neuron.trials)[0] == whole
    end[whole] = 0.3  # none does: what the lens reads no more will do
    again = replace(neuron, layer=neuron.layer - 1, _silent={})
    assert _chosen(again, neuron.trials)[0] == quiet
