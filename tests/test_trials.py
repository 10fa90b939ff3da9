"""The choice among settings: the first within the budgets, and no more runs than it needs."""

import sys
from dataclasses import replace

import pytest
import torch
from tiny_concept import world

from tars_lens.concept import Concept
from tars_lens.corpus import load_corpus
from tars_lens.forms import first_tokens
from tars_lens.loading import load
from tars_lens.settings import Settings
from tars_lens.trial import Bench
from tars_lens.trials import Trials
from tars_lens.weights import Rows
from tars_lens.windows import cut

_LAYER = 1


@pytest.fixture(scope="module")
def lens():
    return load(world().model, progress=False)


@pytest.fixture(scope="module")
def trials(lens):
    concept = Concept.load(world().card)
    windows = cut(lens, load_corpus(str(world().corpus)), reported_tokens=512)
    tokens = tuple(first_tokens(lens, concept))
    where = (concept, concept.concept_prompts, tokens, windows, Settings(), _LAYER)
    return Trials.of(lens, *where, later=[_LAYER, 2])


@pytest.fixture
def plain_runs(monkeypatch):
    """How often plain text was run."""
    runs = []
    mean_kl = Bench.mean_kl

    def counted(self, edits, **options):
        runs.append(edits)
        return mean_kl(self, edits, **options)

    monkeypatch.setattr(Bench, "mean_kl", counted)
    return runs


def _build(lens):
    rows = lens.vectors(_LAYER, "out")[[2, 7]].clone()
    return lambda scale: {(_LAYER, "out"): Rows(torch.tensor([2, 7]), scale * rows)}


def _tight(trials, excess, edits):
    """Budgets that these edits exceed by a factor."""
    figures = trials.effects(edits)
    settings = replace(
        trials.settings,
        max_kl=figures["plain_kl"] / excess,
        max_neighbour_kl=figures["neighbour_kl"] / excess,
        keep_neighbours=1e-9,
    )
    return replace(trials, settings=settings)


def test_the_first_within_the_budgets_is_taken(lens, trials, plain_runs):
    build = _build(lens)
    loose = _tight(trials, 0.5, build(-40.0))
    plain_runs.clear()
    setting, figures = loose.first_quiet(build, [-40.0, 1.0])
    assert setting == -40.0
    assert "over_budget" not in figures
    assert len(plain_runs) == 1


def test_where_none_is_the_quietest_is_and_louder_ones_are_not_run_on_plain_text(
    lens, trials, plain_runs
):
    build = _build(lens)
    tight = _tight(trials, 10, build(-5.0))
    plain_runs.clear()
    setting, figures = tight.first_quiet(build, [-5.0, -40.0, -20.0])
    assert setting == -5.0
    assert figures["over_budget"] == pytest.approx(10, rel=0.2)
    assert len(plain_runs) == 1
    assert tight.first_quiet(build, [-40.0, -5.0])[0] == -5.0


def test_known_side_effects_are_not_measured_again(lens, trials, plain_runs):
    build = _build(lens)
    tight = _tight(trials, 10, build(-5.0))
    known = {-5.0: tight.effects(build(-5.0))}
    plain_runs.clear()
    assert tight.first_quiet(build, [-5.0, -40.0], known=known)[0] == -5.0
    assert not plain_runs


def test_one_that_does_not_do_what_it_is_for_is_the_last_resort(lens, trials):
    build = _build(lens)
    tight = _tight(trials, 10, build(-5.0))
    assert tight.first_quiet(build, [-5.0, -40.0], lambda s: s < -10)[0] == -40.0
    assert tight.first_quiet(build, [-5.0, -40.0], lambda _: False)[0] == -5.0


def test_a_choice_needs_a_setting(trials):
    with pytest.raises(ValueError, match="no setting"):
        trials.first_quiet(lambda _: {}, [])


def test_onward_trials_are_those_of_a_later_layer(lens, trials):
    later = trials.onward(2)
    assert later.plain.layer == 2
    assert torch.equal(later.plain.prefix, trials.plain.kept[2])
    rows = Rows(torch.tensor([2, 7]), -30 * lens.vectors(2, "out")[[2, 7]])
    edits = {(2, "out"): rows}
    assert later.left(edits) == pytest.approx(trials.left(edits), abs=1e-6)
    assert later.effects(edits)["plain_kl"] == pytest.approx(trials.effects(edits)["plain_kl"])


def test_a_budget_that_is_exceeded_infinitely_still_has_a_quietest_setting(lens, trials):
    edits = {0: _build(lens)(1.5)}
    tiny = replace(trials, settings=replace(trials.settings, max_kl=sys.float_info.min))
    loud = {"plain_kl": 100.0, "neighbour_kl": 0.0, "neighbour_kept": 1.0}
    setting, figures = tiny.first_quiet(edits.__getitem__, [0], known={0: loud})
    assert setting == 0 and figures["over_budget"] == sys.float_info.max
