"""The cards that come with the package: complete, disjoint in their splits, true to their names."""

import logging
import unicodedata
from difflib import SequenceMatcher
from itertools import combinations

import pytest

from tars_lens.concept.card import DISTANCES, Concept, builtin_concepts, forms_in, substituted

CARDS = builtin_concepts()
KINDS = ("forward", "reverse", "neighbour", "multilingual")
ENGLISH = KINDS[:3]  # a multilingual probe may well be a translation: only English is targeted
LEAST = {
    "validation": {"forward": 4, "reverse": 3, "neighbour": 9, "multilingual": 6},
    "probes": {"forward": 6, "reverse": 5, "neighbour": 6, "multilingual": 5},
}

cards = pytest.mark.parametrize("key", CARDS)


def test_the_cards_that_the_documents_name_are_there():
    assert {"sherlock_holmes", "saturn"} <= set(CARDS)
    assert len(CARDS) >= 12


@cards
def test_a_card_loads_without_a_warning(key, caplog):
    with caplog.at_level(logging.WARNING):
        concept = Concept.load(key)
    assert concept.key == key
    assert not caplog.records  # a reported probe that is used elsewhere would be dropped, with one


@cards
def test_a_card_has_enough_of_everything(key):
    concept = Concept.load(key)
    counts = {
        split: {kind: len(getattr(getattr(concept, split), kind)) for kind in kinds}
        for split, kinds in LEAST.items()
    }
    short = {
        (split, kind): counts[split][kind]
        for split, kinds in LEAST.items()
        for kind, least in kinds.items()
        if counts[split][kind] < least
    }
    assert not short
    assert len(concept.prompts) >= 4
    assert 4 <= len(concept.contrast) <= 6
    assert concept.aliases


@cards
def test_no_prompt_stands_twice_on_a_card(key):
    texts = [text for _, text in _texts(Concept.load(key))]
    assert len(texts) == len(set(texts))


@cards
def test_no_two_splits_hold_nearly_the_same_words(key):
    close = [
        (one, other)
        for (split, one), (elsewhere, other) in combinations(_texts(Concept.load(key), ENGLISH), 2)
        if split != elsewhere and SequenceMatcher(None, one, other).ratio() > 0.9
    ]
    assert not close


@cards
def test_the_substitute_takes_the_name_out_of_every_reverse_probe(key):
    concept = Concept.load(key)
    assert concept.substitute
    for split in (concept.validation, concept.probes):
        for probe in split.reverse:
            floor = substituted(probe.prompt, concept.names, concept.substitute)
            assert floor != probe.prompt, "the prompt doesn't name the concept"
            assert not forms_in(floor, concept.surface_forms)


@cards
def test_a_forward_prompt_does_not_give_its_answer_away(key):
    concept = Concept.load(key)
    forward = [p.prompt for split in (concept.validation, concept.probes) for p in split.forward]
    given = [text for text in (*concept.concept_prompts, *forward) if _names(text, concept)]
    assert not given


@cards
def test_neighbours_are_no_other_cards_concept(key):
    concept = Concept.load(key)
    others = [Concept.load(other) for other in CARDS if other != key]
    forms = [form for other in others for form in (*other.names, *other.surface_forms)]
    near = [*concept.contrast, *concept.validation.neighbour, *concept.probes.neighbour]
    assert not [p for p in near if forms_in(f"{p.prompt} {p.answer}", forms)]


@cards
def test_reported_neighbours_are_marked_at_three_distances(key):
    marked = [probe.distance for probe in Concept.load(key).probes.neighbour]
    assert {"sibling", "field", "unrelated"} <= set(marked) <= {"", *DISTANCES}
    assert marked.count("") <= 2  # what could be either stays unmarked


@cards
def test_settings_are_chosen_on_siblings_of_the_concept_too(key):
    marked = [probe.distance for probe in Concept.load(key).validation.neighbour]
    assert marked.count("sibling") >= 5


@cards
def test_multilingual_probes_are_in_several_languages(key):
    probes = Concept.load(key).probes.multilingual
    assert all(len(p.language) == 2 and p.language.islower() for p in probes)
    assert "en" not in {p.language for p in probes}
    assert len({p.language for p in probes}) >= 4


def test_all_cards_together_span_languages_and_scripts():
    probes = [p for key in CARDS for p in Concept.load(key).probes.multilingual]
    assert len({p.language for p in probes}) >= 8
    assert len({_script(p.prompt) for p in probes}) >= 4
    assert len({_script(p.answer) for p in probes}) >= 4


@pytest.mark.parametrize(
    ("key", "attribute"),
    [
        ("sherlock_holmes", "Moriarty"),
        ("saturn", "Titan"),
        ("paris", "Eiffel Tower"),
        ("tokyo", "Japan"),
        ("einstein", "relativity"),
        ("shakespeare", "Hamlet"),
        ("harry_potter", "Hogwarts"),
        ("oxygen", "water"),
    ],
)
def test_the_best_known_fact_is_asked(key, attribute):
    concept = Concept.load(key)
    reverse = (*concept.probes.reverse, *concept.validation.reverse)
    assert attribute in {probe.answer for probe in reverse}


def _texts(concept, kinds=KINDS):
    """Every prompt of a card, with the split that it stands in."""
    texts = [("made from", text) for text in concept.concept_prompts]
    texts += [("made from", probe.prompt) for probe in concept.contrast]
    for split in ("validation", "probes"):
        for kind in kinds:
            texts += [(split, p.prompt) for p in getattr(getattr(concept, split), kind)]
    return texts


def _names(text, concept):
    """The forms of the answer in a text; a first name that leads to the last is none."""
    return forms_in(text, [concept.answer, *concept.aliases])


def _script(text):
    letters = [char for char in text if char.isalpha()]
    names = [unicodedata.name(char).split()[0] for char in letters]
    return max(set(names), key=names.count)
