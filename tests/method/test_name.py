"""The name's neuron: the texts that it is made from, what it reads, writes, and where it sits."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_recipe import sharp

from tars_lens.concept.card import Concept
from tars_lens.method.name import (
    BARE_FRAMES,
    FRAMES,
    OTHER_BEARERS,
    NameTexts,
    fit_name_reader,
    main_names,
    name_neuron,
    name_shown,
)
from tars_lens.method.settings import Settings
from tars_lens.model.lens import Lens

NEAR = ("w11", "w12", "w13")


# --- texts -------------------------------------------------------------------------------------


def test_main_names_are_the_cards_own_whatever_else_it_is_called():
    card = Concept("Saturn", "Saturn", "p", names=("Сатурн", "saturn", "Saturne"))
    assert main_names(card) == ("saturn",)
    assert main_names(replace(card, names=("Sat", "Urn"))) == ("Sat",)


class _Speller(Lens):
    """A lens that only spells: each name in two where it has an "h"."""

    def __init__(self, begins, adds_space=False):
        self.spelling = SimpleNamespace(begins=begins, adds_space=adds_space)
        self.tokenizer = SimpleNamespace(unk_token_id="unknown")

    def pieces(self, text):
        spelt = text.lower()
        return [spelt[:2], spelt[2:]] if "h" in spelt else [spelt]

    def string(self, token):
        return token


@pytest.mark.parametrize("begins", [True, False])
def test_a_name_is_read_as_it_begins_a_sentence_or_a_text_and_in_its_plural(begins):
    lens = _Speller(begins)
    card = Concept("elephant", "elephant", "p", names=("elephants", "elephant", "olifant"))
    texts = NameTexts.of(lens, card, ("rhino", "lion", "unknown"))
    assert texts.main == (tuple(frame.format("elephant") for frame in FRAMES),)
    spaced = ("elephants", "olifant", "Elephants", "Elephant")
    assert [form[0] for form in texts.others] == [FRAMES[0].format(name) for name in spaced]
    bare = ("Elephants", "Elephant", "elephant", "elephants", *(["olifant"] if begins else []))
    assert texts.bare[: len(bare)] == tuple((name,) for name in bare)
    assert [form[2] for form in texts.bare[len(bare) :]][:3] == [f"({name}" for name in bare[:3]]
    assert texts.near_bare[:2] == (
        ("Rhino", "Lion") if begins else ("Rhino", BARE_FRAMES[0].format("Rhino"))
    )
    assert not any("nknown" in text for text in texts.near_bare)
    assert "The unknown" in texts.near


def test_a_tokenizer_that_adds_spaces_reads_no_bare_name_by_a_last_letter():
    lens, card = _Speller(True, adds_space=True), Concept("lion", "lion", "p", names=("lion", "he"))
    lens.pieces = lambda text: [text] if text[0] == " " or len(text) < 3 else list(text)
    texts = NameTexts.of(lens, card, ("rhino",))
    assert [form[0] for form in texts.bare] == ["Lion", "lion", "he", BARE_FRAMES[0].format("he")]
    assert texts.near_bare == ("Rhino",)


def test_other_bearers_of_a_last_word_are_near_and_one_word_has_none():
    lens = _Speller(True)
    near = NameTexts.of(lens, Concept("New York", "New York", "p"), ("Boston",)).near
    assert near[: len(FRAMES)] == tuple(frame.format("Boston") for frame in FRAMES)
    assert {FRAMES[0].format(each.format("York")) for each in OTHER_BEARERS} < set(near)
    york = Concept("New York", "New York", "p", names=("New York", "York"))
    for card in (york, Concept("Boston", "Boston", "p")):
        assert len(NameTexts.of(lens, card, ("Rome",)).near) == len(FRAMES)


# --- the neuron --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2"])
def made(request):
    """A place, what its name shows, its plain text, and the neuron."""
    place = sharp(request.param)
    recipe = place.recipe()
    shown = name_shown(place.lens, place.concept, NEAR, recipe.settings)
    return place, shown, recipe, name_neuron(place.lens, shown, recipe.plain, recipe.settings)


def test_it_reads_every_form_of_the_name_and_no_other(made):
    place, shown, recipe, neuron = made

    def score(texts):
        ends = [_seen(place, text).inputs[neuron.layer][0, -1] for text in texts]
        return float(neuron.reader.score(torch.stack(ends)).mean())

    forms = [score(form) for form in shown.texts.own]
    assert sum(forms) / len(forms) == pytest.approx(1, abs=1e-3)
    assert abs(score([*shown.texts.near, *shown.texts.near_bare])) < 0.5 < min(forms)
    y = torch.cat([place.seen(ids).inputs[neuron.layer][:, 1:] for ids in place.ids.split(4)])
    assert abs(float(neuron.reader.score(y).mean())) < 1e-3


def _seen(place, text):
    """What the plain model shows of a text, of which it knows the words alone."""
    return place.seen(torch.tensor([place.lens.tokenizer(text).input_ids]))


def test_the_trace_is_what_the_main_name_leaves_and_near_ones_do_not(made):
    place, shown, _, neuron = made

    def left(names):
        texts = [frame.format(name) for name in names for frame in FRAMES]
        return torch.stack([_seen(place, text).streams[neuron.layer][0, -1] for text in texts])

    own = left([place.concept.answer])
    torch.testing.assert_close(
        neuron.reader.trace, own.mean(0) - left(NEAR).mean(0), rtol=1e-3, atol=1e-4
    )
    assert neuron.reader.norm == pytest.approx(float(own.norm(dim=1).median()), rel=1e-4)
    # another name in another script leaves a trace of its own, and is no part of this one
    renamed = replace(place.concept, names=(*place.concept.names, "w40", "w41"))
    settings = Settings()
    again = fit_name_reader(
        name_shown(place.lens, renamed, NEAR, settings), neuron.layer, made[2].plain, settings
    )
    torch.testing.assert_close(again.trace, neuron.reader.trace, rtol=1e-3, atol=1e-4)


def test_the_write_goes_against_the_trace(made):
    place, shown, recipe, neuron = made
    ids = torch.tensor([place.lens.tokenizer(shown.texts.main[0][0]).input_ids])
    with place.holding(place.silenced(neuron.layer, neuron.neuron)):
        without = place.seen(ids).streams[neuron.layer][0, -1]
    with place.holding(neuron.edits):
        moved = place.seen(ids).streams[neuron.layer][0, -1] - without
    against = float(torch.cosine_similarity(moved, -neuron.reader.trace, dim=0))
    # a norm after the MLP shares its bound between this write and the other neurons'
    assert against > (0.5 if place.lens.bounds_writes else 0.999)


def test_it_sits_at_the_first_layer_after_which_the_name_is_read_no_more():
    place = sharp("llama", 6)
    settings = {"name_depths": (0.17, 0.34, 0.5), "named_depth": 0.8}
    found = {}
    for unread in (0.0, 1e6):
        recipe = place.recipe(**settings, unread=unread)
        shown = name_shown(place.lens, place.concept, NEAR, recipe.settings)
        found[unread] = name_neuron(place.lens, shown, recipe.plain, recipe.settings)
        one = replace(recipe.settings, unread=0.0)
    alone = []
    for depth in settings["name_depths"]:
        only = replace(one, name_depths=(depth,))
        alone.append(name_neuron(place.lens, shown, recipe.plain, only))
    assert [neuron.layer for neuron in alone] == [1, 2, 3]
    assert found[1e6].layer == 1
    reached = [neuron for neuron in alone if neuron.about["name_still_read"] <= 0.0]
    best = min(alone, key=lambda neuron: neuron.about["name_still_read"])
    assert found[0.0].layer == (reached or [best])[0].layer


def test_what_is_still_read_is_measured_with_the_neuron_in_place(made):
    place, shown, recipe, neuron = made
    further = recipe.settings.named_layer(place.lens.n_layers)
    reader = fit_name_reader(shown, further, recipe.plain, recipe.settings)

    def read():
        return max(
            float(
                torch.stack([_seen(place, t).inputs[further][0, -1] for t in form])
                .matmul(reader.weight)
                .mean()
                - reader.weight @ reader.mean
            )
            for form in (*shown.texts.main, *shown.texts.bare)
        )

    before = read()
    with place.holding(neuron.edits):
        after = read()
    assert neuron.about["name_still_read"] == pytest.approx(after, abs=1e-3)
    assert after < before


def test_a_taken_host_is_left_alone_and_the_model_is_as_it_was(made):
    place, shown, recipe, neuron = made
    before = {r: place.lens.tensor_sha256(neuron.layer, r) for r in place.lens.roles}
    host = (neuron.layer, neuron.neuron)
    second = name_neuron(place.lens, shown, recipe.plain, recipe.settings, {host})
    assert (second.layer, second.neuron) != host
    assert {r: place.lens.tensor_sha256(neuron.layer, r) for r in place.lens.roles} == before


def test_a_concept_without_near_names_still_has_a_trace():
    place = sharp("llama")
    recipe = place.recipe()
    shown = name_shown(place.lens, place.concept, (), recipe.settings)
    neuron = name_neuron(place.lens, shown, recipe.plain, recipe.settings)
    assert all(torch.isfinite(rows.values).all() for rows in neuron.edits.values())
    own = [_seen(place, text).streams[neuron.layer][0, -1] for text in shown.texts.main[0]]
    torch.testing.assert_close(neuron.reader.trace, torch.stack(own).mean(0), rtol=1e-3, atol=1e-4)
