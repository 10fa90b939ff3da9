"""A card from a name: what is cut, what is kept, and that what is written can be read."""

import re

import pytest
from tiny_concept import world

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.concept.card_making import choosing, make_card, making, sentences, siblings
from tars_lens.concept.card_making.writing import toml_text
from tars_lens.model.loading import load
from tars_lens.text.corpus import Corpus, load_corpus

TEXT = (
    "Saturn is the sixth planet from the Sun and has bright rings. Nobody said so. "
    "In 1655 Christiaan Huygens discovered Titan, the largest moon of Saturn.\n"
    "The rings of Saturn were seen by Galileo in 1610."
)


def test_sentences_that_name_the_concept_are_found_once():
    found = list(sentences.sentences_of([TEXT, TEXT, "Nothing here."], ["Saturn"]))
    assert [s.split()[0] for s in found] == ["Saturn", "In", "The"]
    assert "Nobody" not in " ".join(found)


def test_forward_cuts_end_before_the_name_and_never_contain_it():
    first, second, third = sentences.sentences_of([TEXT], ["Saturn"])
    prompts = [c.prompt for c in sentences.forward_cuts(first, "Saturn", ["Saturn"])]
    assert "The sixth planet from the Sun and has bright rings is called" in prompts
    assert [c.prompt for c in sentences.forward_cuts(second, "Saturn", ["Saturn"])] == [
        "In 1655 Christiaan Huygens discovered Titan, the largest moon of"
    ]
    assert sentences.forward_cuts(third, "Saturn", ["Saturn"]) == []  # three words lead nowhere
    assert not any("Saturn" in prompt for prompt in prompts)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("The 1991 film White Fang is based on Jack London.", sentences.INSIDE),
        ("The laws of motion were found by Sir London.", sentences.INSIDE),
        ("The society was led by the late Dr. London.", sentences.INSIDE),
        ("A plaque marks the house in Canonbury Square, London.", "before the name"),
        ("Pound moved to a small flat in London.", "before the name"),
        ("The book came out in Dordrecht/Boston/London.", None),
        ("They gave it the name of (London).", None),
    ],
)
def test_a_prompt_that_ends_in_another_name_says_so(text, kind):
    cuts = sentences.forward_cuts(text, "London", ["London"])
    assert [cut.kind for cut in cuts] == ([] if kind is None else [kind])


def test_reverse_cuts_name_the_concept_and_ask_for_what_says_most():
    *_, third = sentences.sentences_of([TEXT], ["Saturn"])
    cuts = sentences.reverse_cuts(third, ["Saturn"])
    assert [c.answer for c in cuts] == ["Galileo", "1610"]
    assert cuts[0].prompt == "The rings of Saturn were seen by"


def test_a_sentence_is_dealt_to_one_split_alone():
    kept = [
        choosing.Kept(sentences.Cut(f"prompt {i}", "a", f"sentence {i // 3}", "cut"), 1 - i / 100)
        for i in range(30)
    ]
    splits = choosing.dealt(kept, {"prompts": 4, "probes": 2, "validation": 4})
    owners = [{one.cut.sentence for one in split} for split in splits.values()]
    assert [len(split) for split in splits.values()] == [4, 2, 4]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    # another kind of cut goes where its sentence is, or nowhere
    places = choosing.places(splits)
    others = choosing.dealt(kept, {"probes": 8, "validation": 8}, places)
    free = {one.cut.sentence for one in kept} - places.keys()
    for split in ("probes", "validation"):
        found = {one.cut.sentence for one in others[split]}
        assert found - free == {sentence for sentence, own in places.items() if own == split}
    assert not owners[0] & {one.cut.sentence for rows in others.values() for one in rows}


def test_a_card_of_few_sentences_still_reports_something():
    kept = [
        choosing.Kept(sentences.Cut(f"prompt {i}", "a", f"sentence {i}", "cut"), 1 - i / 10)
        for i in range(3)
    ]
    # the first sentence makes the vector, so that no other cut of it is reported
    table = making._table("x", ["x"], "", kept[:2], [kept[0], kept[2]], [], [])
    assert table["prompt"] == "prompt 0"
    assert table["probes"]["forward"] == ["prompt 1"]
    assert [row["prompt"] for row in table["probes"]["reverse"]] == ["prompt 2"]
    assert table["validation"]["forward"] == table["validation"]["reverse"] == []


def test_what_the_base_does_not_know_is_dropped_and_set_phrases_too():
    place = world()
    lens = load(place.model, progress=False)
    card = Concept.load(place.card)
    known = [sentences.Cut(p.prompt, card.answer, p.prompt, "x") for p in card.probes.forward]
    unknown = [
        sentences.Cut(p.prompt, "w57 w57 w57", p.prompt, "x") for p in card.validation.forward
    ]
    found = choosing.choose(lens, known + unknown)
    assert {k.cut.prompt for k in found.kept} == {c.prompt for c in known}
    assert found.unknown == len(unknown)
    # a prompt that doesn't name the concept is answered without it just as well
    floored = choosing.choose(lens, known, names=["w58 w58"], substitute="w1")
    assert (len(floored.kept), floored.set_phrases) == (0, len(known))


def test_siblings_are_near_by_geometry_and_named_beside_the_concept(monkeypatch):
    lens = load(world().model, progress=False)
    beside, alike = ["w5", "w6", "w7"], ["w8", "w9", "w10"]
    monkeypatch.setattr(siblings, "_candidates", lambda *_: (beside, alike))
    found = siblings.neighbours(lens, "w1", ["w1"], [], 6)
    assert {one.name for one in found} == {*beside, *alike}
    nearer = [one.name for one in found[:3]]  # which are these the lens alone says
    near_and_beside = [one.name for one in found if one.distance == "sibling"]
    assert near_and_beside == [name for name in nearer if name in beside]
    assert {one.distance for one in found} <= {"sibling", "field"}
    # named beside it but far by geometry, or near but never named: the same field
    monkeypatch.setattr(siblings, "_candidates", lambda *_: (nearer, [*beside, *alike]))
    assert [one.distance for one in siblings.neighbours(lens, "w1", ["w1"], [], 6)] == (
        ["sibling"] * 3 + ["field"] * 3
    )
    monkeypatch.setattr(siblings, "_candidates", lambda *_: ([], beside))
    assert {one.distance for one in siblings.neighbours(lens, "w1", ["w1"], [], 6)} == {"field"}


def test_unrelated_facts_name_neither_the_concept_nor_its_kin():
    every = siblings.unrelated_cuts(["Saturn", "Jupiter"])
    assert len(every) >= 5 and {cut.distance for cut in every} == {"unrelated"}
    fewer = siblings.unrelated_cuts(["Neil Armstrong", "Armstrong", "gold"])
    gone = {cut.answer for cut in every} - {cut.answer for cut in fewer}
    assert gone == {"Armstrong", "Au"}


def test_unrelated_facts_that_are_known_stand_in_both_splits_and_not_in_the_contrast(monkeypatch):
    place = world()
    lens = load(place.model, progress=False)
    card = Concept.load(place.card)
    near = (*card.probes.neighbour, *card.validation.neighbour)
    general = tuple((probe.prompt, probe.answer) for probe in near[:5])
    monkeypatch.setattr(siblings, "_GENERAL", general)
    texts = [f"The {p.prompt} {card.answer} w3 w4 w5 w6 w7." for p in card.probes.forward]
    texts += [f"{p} {card.answer} w3 w4 w5 w6 w7." for p in card.concept_prompts]
    lines = tuple(f"Text. {text[0].upper()}{text[1:]}" for text in texts)
    made = Concept.parse(make_card(lens, card.answer, Corpus("texts", "", lines)).to_toml())
    far = [[p for p in s.neighbour if p.distance == "unrelated"] for s in _splits(made)]
    assert [len(found) for found in far] == [1, 2]
    assert {(p.prompt, p.answer) for found in far for p in found} <= set(general)
    assert all(p.distance for split in _splits(made) for p in split.neighbour)
    assert not {p.prompt for p in made.contrast} & {p.prompt for p in near}


def _splits(card):
    return card.validation, card.probes


def test_a_made_card_is_read_back_as_it_was_written():
    table = Concept.load("saturn").to_dict()
    awkward = {**table, "prompt": 'A "quoted" line\nand a \\ backslash, é, \x7f, and the planet'}
    assert Concept.parse(toml_text(awkward, ["a note"])).to_dict() == awkward


def test_a_card_is_made_of_a_corpus_and_says_where_it_comes_from():
    place = world()
    lens = load(place.model, progress=False)
    word = Concept.load(place.card).answer
    said = [p.prompt for p in Concept.load(place.card).probes.forward]
    texts = [f"{prompt} {word} w3 w4 w5 w6 w7." for prompt in (*said, *_more(place))]
    corpus = Corpus(
        "texts", "", tuple(f"Text {i}. {t.upper()[0]}{t[1:]}" for i, t in enumerate(texts))
    )
    draft = make_card(lens, word, corpus)
    again = Concept.parse(draft.to_toml())
    assert again.answer == word and again.names == (word,)
    prompts = [*again.concept_prompts, *(p.prompt for p in again.probes.forward)]
    assert all(not re.search(rf"\b{word}\b", prompt) for prompt in prompts)
    assert "Forward:" in draft.to_toml().split("name =")[0]
    assert make_card(lens, word, corpus).to_toml() == draft.to_toml()


def test_what_may_be_another_name_serves_only_where_nothing_else_is_known():
    place = world()
    lens = load(place.model, progress=False)
    card = Concept.load(place.card)
    plain, inside = card.prompt, f"w4 {card.prompts[0]} W5"
    cuts = {
        plain: sentences.Cut(plain, card.answer, "one", "before the name"),
        inside: sentences.Cut(inside, card.answer, "two", sentences.INSIDE),
    }
    lines = tuple(f"{prompt} {card.answer} w3 w4 w5." for prompt in cuts)

    def made(known):
        kept = tuple(choosing.Kept(cuts[prompt], 0.5) for prompt in known)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                making,
                "choose",
                lambda _lens, given, *_, **__: choosing.Chosen(
                    tuple(one for one in kept if one.cut.prompt in {cut.prompt for cut in given}), 0
                ),
            )
            table = make_card(lens, card.answer, Corpus("texts", "", lines)).table
        return {table["prompt"], *table["prompts"], *table["probes"]["forward"]}

    assert made([plain, inside]) == {plain}
    assert made([inside]) == {inside}


def _more(place) -> list[str]:
    card = Concept.load(place.card)
    return [*card.concept_prompts, *(p.prompt for p in card.validation.forward)]


def test_a_name_that_nothing_leads_to_is_refused():
    lens = load(world().model, progress=False)
    with pytest.raises(TarsError, match="nothing leads .* to 'Xyzzy'"):
        make_card(lens, "Xyzzy", load_corpus(world().corpus))
    with pytest.raises(TarsError, match="needs a name"):
        make_card(lens, "  ", load_corpus(world().corpus))
