"""The passes that a plan tells, against the layers that a real run of a tiny model goes through."""

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tiny_concept import world

from tars_lens import erasure
from tars_lens.concept import Concept
from tars_lens.corpus import load_corpus
from tars_lens.loading import load
from tars_lens.neutral import Neutral
from tars_lens.pass_counts import bisection_steps, kl_passes, passes
from tars_lens.pass_material import Material
from tars_lens.settings import Settings
from tars_lens.strengths import LARGEST_BY_BOTH, STRENGTHS, smallest_strength
from tars_lens.windows import WIDTH, cut

_NEAR = ("w0", "w8")
"""The names on the card: the tiny vocabulary has no words of its own."""

_LEAST = 1 / 5
"""The share of a choice's most that one needs where the first reading keeps the budgets."""


@pytest.fixture
def lens(tmp_path, monkeypatch):
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path))
    return load(world().model, progress=False)


@pytest.fixture
def counted(lens, monkeypatch):
    """The passes that functions take, by name: tokens that attention reads, over a window's.

    Attention is the first part of a layer, and what ends a run early ends it outside of that.
    """
    found: dict[str, float] = defaultdict(float)
    stages: list[str] = []

    def count(_module, inputs, kwargs):
        if stages:
            stream = inputs[0] if inputs else kwargs["hidden_states"]
            found[stages[-1]] += stream.shape[0] * stream.shape[1] / WIDTH / lens.n_layers

    for block in lens.model.blocks:
        block.attn.register_forward_pre_hook(count, with_kwargs=True)

    @contextmanager
    def stage(name):
        stages.append(name)
        yield
        stages.pop()  # an error ends the test

    def wrap(owner, attribute, name):
        run = getattr(owner, attribute)

        def inside(*args, **options):
            with stage(name):
                return run(*args, **options)

        monkeypatch.setattr(owner, attribute, inside)

    for attribute, name in (
        ("study", "study"),
        ("remove", "choice"),
        ("_checked_again", "choice"),
        ("base_frame", "probes"),
        ("with_after", "probes"),
        ("paired_kl", "KL"),
    ):
        wrap(erasure, attribute, name)
    wrap(Neutral, "fit", "statistics")
    return found


def _planned(settings, lens, concept):
    planned = passes(settings, lens.n_layers, Material.of(lens, concept, _NEAR))
    return {name.split()[0].rstrip(","): count for name, count in planned.items()}


def test_a_plan_counts_what_an_erasure_runs(lens, counted):
    concept, settings = Concept.load(world().card), Settings()
    corpus = load_corpus(world().corpus, progress=False)
    erasure.erase(lens, [concept], settings=settings, corpus=corpus, kl_tokens=2048)
    planned, ran = _planned(settings, lens, concept), dict(counted)
    windows = cut(lens, corpus, reported_tokens=2048)
    assert ran["statistics"] == pytest.approx(len(windows.statistics))
    assert ran["KL"] == pytest.approx(kl_passes(settings, lens.n_layers, windows.reported.numel()))
    assert ran["probes"] == pytest.approx(planned["probes"], rel=0.05)
    assert ran["study"] == pytest.approx(planned["study"], rel=0.05)
    assert planned["choice"] / 2 <= ran["choice"] <= planned["choice"]  # this model keeps none
    counted.clear()
    erasure.erase(lens, [concept], settings=settings, corpus=corpus, kl_tokens=2048)
    again = kl_passes(settings, lens.n_layers, windows.reported.numel(), cached=True)
    assert counted["KL"] == pytest.approx(again) and again < ran["KL"]


def test_a_choice_whose_first_reading_will_do_needs_a_part_of_its_most(lens, counted):
    concept = Concept.load(world().card)
    settings = Settings(max_kl=1e9, max_neighbour_kl=1e9, keep_neighbours=1e-9, goal=0.9)
    corpus = load_corpus(world().corpus, progress=False)
    erasure.erase(lens, [concept], settings=settings, corpus=corpus, kl_tokens=0)
    planned = _planned(settings, lens, concept)["choice"]
    assert _LEAST * planned <= counted["choice"] <= planned / 2


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("enough", [-100.0, 0.01, 0.1, 0.3, 3.0, 100.0])
def test_a_reading_is_measured_so_often_at_most(post_norm, enough):
    tried = []

    def left(strength):
        tried.append(strength)
        return 0.0 if strength >= enough > 0 else 1.0

    smallest_strength(left, 0.5, largest=STRENGTHS[-1] if post_norm else LARGEST_BY_BOTH)
    assert len(tried) <= bisection_steps(post_norm=post_norm) <= len(tried) + 2
    for like in STRENGTHS if post_norm else [s for s in STRENGTHS if s <= LARGEST_BY_BOTH]:
        tried.clear()
        smallest_strength(
            left, 0.5, largest=STRENGTHS[-1] if post_norm else LARGEST_BY_BOTH, like=like
        )
        assert len(set(tried)) <= bisection_steps(post_norm=post_norm, again=True)


def test_more_settings_and_more_text_are_more_passes():
    settings, material = Settings(), Material()
    choice = "choice of edits at most, a concept"
    one = passes(settings, 30)
    more = replace(settings, forward_thresholds=(0.1, 0.2, 0.3, 0.4))
    assert passes(more, 30)[choice] > one[choice]
    assert bisection_steps(post_norm=True) > bisection_steps()
    longer = passes(settings, 30, replace(material, probes=2 * material.probes, floors=0.0))
    probes = "probes before and after, a concept"
    assert longer[probes] == pytest.approx(4 * material.probes / WIDTH)
    assert longer[choice] == one[choice]
    assert kl_passes(settings, 30, 2560) == pytest.approx(10 * (1 + 2 * 28 / 30))
    assert kl_passes(settings, 30, 2560, cached=True) == pytest.approx(10 * (1 + 28 / 30))
