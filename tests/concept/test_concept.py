"""The card: what is read from it, what is refused and how, and that its splits never mix."""

import logging

import pytest

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept, Probe, builtin_concepts, forms_in, substituted

LEAST = 'name = "Saturn"\nanswer = "Saturn"\nprompt = "The ringed planet is"\n'

FULL = """
name = "Saturn"
answer = "Saturn"
aliases = ["Saturno", "Сатурн"]
names = ["Saturn", "the ringed planet"]
substitute = "Jupiter"
prompt = "The sixth planet is"
prompts = ["Its rings are famous:", "Cassini went to"]
contrast = [{ prompt = "The largest planet is", answer = "Jupiter" }]

[validation]
forward = ["Huygens saw its rings:"]
reverse = [{ prompt = "A moon of Saturn is", answer = "Rhea" }]
neighbour = [{ prompt = "The red one is", answer = "Mars" }]

[probes]
forward = ["Titan goes round"]
reverse = [{ prompt = "The largest moon of Saturn is", answer = "Titan" }]
neighbour = [{ prompt = "Io goes round", answer = "Jupiter", distance = "sibling" }]

[[probes.multilingual]]
language = "fr"
prompt = "La planète aux anneaux est"
answer = "Saturne"
"""


def write(folder, text: str):
    file = folder / "my card.toml"
    file.write_text(text, encoding="utf-8")
    return file


# --- what is read ------------------------------------------------------------------------------


def test_three_keys_are_enough(tmp_path):
    concept = Concept.load(write(tmp_path, LEAST))
    assert (concept.name, concept.answer, concept.key) == ("Saturn", "Saturn", "my card")
    assert concept.names == ("Saturn",)
    assert concept.concept_prompts == ("The ringed planet is",)
    assert concept.surface_forms == ("Saturn",)
    assert concept.substitute == ""
    for split in (concept.validation, concept.probes):
        assert split.forward == split.reverse == split.neighbour == split.multilingual == ()


def test_every_key_is_read_into_its_place(tmp_path):
    concept = Concept.load(write(tmp_path, FULL))
    assert concept.surface_forms == ("Saturn", "Saturno", "Сатурн")
    assert concept.names == ("Saturn", "the ringed planet")
    assert concept.concept_prompts[1:] == ("Its rings are famous:", "Cassini went to")
    assert concept.contrast == (Probe("The largest planet is", "Jupiter"),)
    assert concept.validation.forward == (Probe("Huygens saw its rings:"),)
    assert concept.validation.reverse == (Probe("A moon of Saturn is", "Rhea"),)
    assert concept.probes.neighbour == (Probe("Io goes round", "Jupiter", distance="sibling"),)
    assert concept.validation.neighbour == (Probe("The red one is", "Mars"),)
    assert concept.probes.multilingual == (Probe("La planète aux anneaux est", "Saturne", "fr"),)


@pytest.mark.parametrize("text", [LEAST, FULL])
def test_a_card_goes_through_plain_values_and_back(tmp_path, text):
    concept = Concept.load(write(tmp_path, text))
    assert Concept.from_dict(concept.to_dict(), key=concept.key) == concept


def test_quotes_escapes_and_markup_are_kept_as_they_are():
    text = r"""
name = "\"C\\C++\" [bold] {x} %s"
answer = 'back\slash'
prompt = "tab\there, a line\nand a \u2018quote\u2019 {} 100% [red]"
prompts = ['''two
lines''']
"""
    concept = Concept.parse(text)
    assert concept.name == '"C\\C++" [bold] {x} %s'
    assert concept.answer == "back\\slash"
    assert concept.prompt == "tab\there, a line\nand a ‘quote’ {} 100% [red]"
    assert concept.prompts == ("two\nlines",)
    assert Concept.from_dict(concept.to_dict()) == concept


@pytest.mark.parametrize("name", ["AC/DC", "../../etc", "a b", "Ärger!", "名前"])
def test_the_key_of_a_card_without_a_file_is_a_file_name(name):
    key = Concept.from_dict({"name": name, "answer": "x", "prompt": "y"}).key
    assert key and not set(key) & set("/\\. :")


def test_a_mark_before_the_text_is_no_part_of_it(tmp_path):
    file = tmp_path / "windows.toml"
    file.write_bytes(b"\xef\xbb\xbf" + LEAST.replace("\n", "\r\n").encode())
    assert Concept.load(file).name == "Saturn"


def test_a_built_in_name_means_the_built_in_card(tmp_path, monkeypatch):
    (tmp_path / "saturn").write_text("no card")
    monkeypatch.chdir(tmp_path)
    assert Concept.load("saturn").name == "Saturn"


# --- what is refused ---------------------------------------------------------------------------

MALFORMED = {
    "a key that no card has": (LEAST + 'colour = "yellow"', "'colour' is unknown; allowed: name"),
    "a misspelt split": (LEAST + "[probe]\nforward = []", "'probe' is unknown"),
    "a kind that no split has": (LEAST + "[probes]\nsideways = []", "'probes.sideways' is unknown"),
    "a key that no probe has": (
        LEAST + '[probes]\nreverse = [{ prompt = "a", answer = "b", p = 1 }]',
        "'probes.reverse[0].p' is unknown; allowed: prompt, answer",
    ),
    "a distance that nobody knows": (
        LEAST + '[probes]\nneighbour = [{ prompt = "a", answer = "b", distance = "cousin" }]',
        "'probes.neighbour[0].distance' is 'cousin'; allowed: sibling, field, unrelated, homograph",
    ),
    "an empty distance": (
        LEAST + '[probes]\nneighbour = [{ prompt = "a", answer = "b", distance = "" }]',
        "'probes.neighbour[0].distance' is empty",
    ),
    "a distance of what is no neighbour": (
        LEAST + '[probes]\nreverse = [{ prompt = "a", answer = "b", distance = "field" }]',
        "'probes.reverse[0].distance' is unknown; allowed: prompt, answer",
    ),
    "no name": ('answer = "a"\nprompt = "b"', "'name' is required"),
    "no answer": ('name = "a"\nprompt = "b"', "'answer' is required"),
    "no prompt": ('name = "a"\nanswer = "b"', "'prompt' is required"),
    "nothing": ("", "'name' is required"),
    "a probe without answer": (
        LEAST + '[validation]\nneighbour = [{ prompt = "a", answer = "b" }, { prompt = "c" }]',
        "'validation.neighbour[1].answer' is required",
    ),
    "a probe without language": (
        LEAST + '[[probes.multilingual]]\nprompt = "a"\nanswer = "b"',
        "'probes.multilingual[0].language' is required",
    ),
    "a number for text": ('name = 3\nanswer = "a"\nprompt = "b"', "'name' must be text, got int"),
    "a date for text": (
        'name = "a"\nanswer = 1979-05-27\nprompt = "b"',
        "'answer' must be text, got date",
    ),
    "text for an array": (LEAST + 'aliases = "Saturno"', "'aliases' must be an array, got str"),
    "a number in an array": (LEAST + 'names = ["a", 4]', "'names[1]' must be text, got int"),
    "text for a probe": (
        LEAST + '[probes]\nreverse = ["Titan"]',
        "'probes.reverse[0]' must be a table, got str",
    ),
    "a table for text": (
        LEAST + '[probes]\nforward = [{ prompt = "a" }]',
        "'probes.forward[0]' must be text, got dict",
    ),
    "text for a split": (LEAST + 'probes = "many"', "'probes' must be a table, got str"),
    "a substitute of spaces": (LEAST + 'substitute = "  "', "'substitute' is empty"),
    "an empty name": ('name = ""\nanswer = "a"\nprompt = "b"', "'name' is empty"),
    "an empty prompt": (LEAST + 'prompts = ["a", "\\n"]', "'prompts[1]' is empty"),
    "an empty forward probe": (LEAST + '[probes]\nforward = [""]', "'probes.forward[0]' is empty"),
    "an empty answer in contrast": (
        LEAST + 'contrast = [{ prompt = "a", answer = "" }]',
        "'contrast[0].answer' is empty",
    ),
    "a neighbour that names the concept": (
        LEAST + '[probes]\nneighbour = [{ prompt = "Beyond SATURN is", answer = "Uranus" }]',
        "'probes.neighbour[0]' names the concept ('Saturn')",
    ),
    "text that is no TOML": (LEAST + "and so on", "is not TOML"),
    "a key twice": (LEAST + 'name = "Saturn"', "is not TOML"),
    "a quote left open": ('name = "Saturn', "is not TOML"),
    "a number of too many digits": (f"{LEAST}x = {'1' * 5000}", "is not TOML"),
    "a nest without end": ("name = " + "[" * 100_000, "is not TOML"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_card_is_refused_by_key_and_file(tmp_path, case):
    text, said = MALFORMED[case]
    file = write(tmp_path, text)
    with pytest.raises(TarsError) as caught:
        Concept.load(file)
    message = str(caught.value)
    assert str(file) in message
    assert said in message
    assert "\n" not in message


def test_what_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin.toml").write_bytes(LEAST.replace("planet", "planète").encode("latin-1"))
    (tmp_path / "folder.toml").mkdir()
    for name in ("latin.toml", "folder.toml", "missing.toml"):
        with pytest.raises(TarsError, match=f"cannot read the concept card .*{name}"):
            Concept.load(tmp_path / name)


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    with pytest.raises(TarsError) as caught:
        Concept.load("saturnn")
    message = str(caught.value)
    assert "Did you mean 'saturn'?" in message
    assert all(name in message for name in builtin_concepts())
    for odd in ("x" * 5000, "~nobody-has-this-name/card.toml"):
        with pytest.raises(TarsError, match="cannot look for"):
            Concept.load(odd)
    with pytest.raises(TarsError, match="unknown concept ''"):
        Concept.load("")


# --- splits ------------------------------------------------------------------------------------


def test_a_prompt_serves_its_first_use_alone(tmp_path, caplog):
    """The vector is made before settings are chosen, and these before anything is reported."""
    text = """
name = "Saturn"
answer = "Saturn"
prompt = "one"
prompts = ["two"]
contrast = [{ prompt = "three", answer = "Jupiter" }]

[validation]
forward = ["one", "four"]
neighbour = [{ prompt = "THREE ", answer = "Jupiter" }]

[probes]
forward = ["two", "Four", "five"]
reverse = [{ prompt = "four", answer = "a" }, { prompt = "six", answer = "b" }]
multilingual = [{ language = "fr", prompt = "one", answer = "c" }]
"""
    with caplog.at_level(logging.WARNING):
        concept = Concept.load(write(tmp_path, text))
    assert concept.validation.forward == (Probe("four"),)
    assert concept.validation.neighbour == ()
    assert concept.probes.forward == (Probe("five"),)
    assert concept.probes.reverse == (Probe("six", "b"),)
    assert concept.probes.multilingual == ()
    dropped = {(r.args[1], r.args[2], r.args[3]) for r in caplog.records}
    assert dropped == {
        ("validation", "forward", "one"),
        ("validation", "neighbour", "THREE "),
        ("probes", "forward", "two"),
        ("probes", "forward", "Four"),
        ("probes", "reverse", "four"),
        ("probes", "multilingual", "one"),
    }
    assert all(str(tmp_path) in record.getMessage() for record in caplog.records)


# --- surface forms -----------------------------------------------------------------------------


def test_forms_are_whole_words_in_any_case():
    forms = ["Saturn", "Sherlock Holmes", "C++", "土星"]
    assert forms_in("On SATURN's rings", forms) == ["Saturn"]
    assert forms_in("Saturnalia and Saturns", forms) == []
    assert forms_in("in C++ and C", forms) == ["C++"]
    assert forms_in("太陽系の土星は", forms) == ["土星"]


def test_the_longest_form_is_replaced_first_and_literally():
    forms = ["Holmes", "Sherlock Holmes"]
    said = substituted("Sherlock Holmes and holmes; Holmesian", forms, r"Hercule \1 Poirot")
    assert said == r"Hercule \1 Poirot and Hercule \1 Poirot; Holmesian"


def test_a_card_made_in_python_has_its_own_name_among_its_names():
    card = Concept("Marie Curie", "Curie", "She discovered radium:")
    assert (card.names, card.key) == (("Marie Curie",), "marie_curie")
    assert Concept.from_dict(card.to_dict()) == card
