"""What a card is told that it lacks."""

from tars_lens.concept.advice import advice
from tars_lens.concept.card import Concept, Probe, builtin_concepts
from tars_lens.report.summary import hints, notes


def _about(word, found):
    return [text for text in found if word in text]


def test_a_card_of_a_name_and_a_prompt_is_told_all_that_would_help():
    found = advice(Concept("Berlin", "Berlin", "The capital of Germany is"))
    assert "1 prompt leads to it" in found[0]
    assert _about("no `contrast`:", found)
    assert _about("validation.forward", found) and _about("validation.neighbour", found)
    assert _about("forward, reverse, neighbour", found)


def test_a_short_contrast_is_told():
    card = Concept(
        "Berlin", "Berlin", "p", contrast=(Probe("The capital of Austria is", "Vienna"),)
    )
    assert _about("1 `contrast` prompt", advice(card))


def test_the_built_in_cards_lack_no_text():
    assert [key for key in builtin_concepts() if advice(Concept.load(key))] == []


def test_a_hint_is_a_line_of_the_summary_and_no_miss():
    forward = {"n": 1, "known": 1, "after_max": 0.0}
    concept = {"name": "Berlin", "probes": {"forward": forward}, "advice": ["one.", "two."]}
    report = {"concepts": [concept]}
    assert notes(report) == []
    assert [line.rsplit(" ", 1)[1] for line in hints(report)] == ["one.", "two."]
    assert hints({"concepts": [_without_advice(concept)]}) == []  # of an older version


def _without_advice(concept):
    return {key: value for key, value in concept.items() if key != "advice"}
