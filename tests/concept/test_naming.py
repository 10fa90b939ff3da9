"""How a word that a user gives is read: a built-in card, a path, a slip, or a plain name."""

import json

import pytest
from commands import mistake, run
from tiny_concept import world

import tars_lens
from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept, builtin_concepts
from tars_lens.concept.naming import card_or_name, with_cards
from tars_lens.model.loading import load
from tars_lens.patch.patch import Patch
from tars_lens.text.corpus import Corpus, load_corpus

FAST = ("--kl-tokens", 0, "--edits", 2, "--no-explain")


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("TARS_LENS_CACHE", str(world().cache))


@pytest.fixture(scope="module")
def word():
    """What the tiny model says most, as a name without a card."""
    return Concept.load(world().card).answer


@pytest.fixture(scope="module")
def texts(word, tmp_path_factory):
    """Texts that name the word after prompts which lead to it, and much plain text."""
    folder = tmp_path_factory.mktemp("texts")
    card = Concept.load(world().card)
    own = [*card.concept_prompts, *(p.prompt for p in (*_forward(card),))]
    lines = [f"The {prompt} {word} w3 w4 w5 w6 w7." for prompt in own]
    (folder / "00.txt").write_text("\n".join(lines))
    for file in sorted(world().corpus.iterdir()):
        (folder / f"1{file.name}").write_text(file.read_text())
    return folder


def _forward(card):
    return *card.validation.forward, *card.probes.forward


# --- the rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Marie Curie", "Saturday", "Charles Dickens", "  Neil  Young "])
def test_any_other_name_is_one_that_a_card_is_made_for(name):
    assert card_or_name(name) == " ".join(name.split())


@pytest.mark.parametrize("key", builtin_concepts())
def test_a_built_in_name_is_its_card(key):
    assert card_or_name(key) == Concept.load(key)


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        *(("satrun", "saturn"), ("Saturn", "saturn"), ("tokio", "tokyo"), ("egpyt", "egypt")),
        *(("Sherlock Homes", "sherlock_holmes"), ("Albert Einstien", "einstein")),
    ],
)
def test_a_slip_is_answered_with_what_was_meant_and_all(slip, meant):
    with pytest.raises(TarsError) as caught:
        card_or_name(slip)
    said = str(caught.value)
    assert f"unknown concept {slip!r}. Did you mean {meant!r}?" in said
    assert all(name in said for name in builtin_concepts())
    assert f"tars-lens card {slip!r} --out " in said  # the way out, where it is no slip


@pytest.mark.parametrize("path", ["saturnn.toml", "cards/curie", "./curie", "~/curie.toml"])
def test_a_path_that_does_not_exist_is_no_name(path):
    with pytest.raises(TarsError) as caught:
        card_or_name(path)
    said = str(caught.value)
    assert f"unknown concept {path!r}" in said and "No card lies at that path" in said
    assert all(name in said for name in builtin_concepts())


def test_a_path_to_a_card_is_that_card(tmp_path, monkeypatch):
    assert card_or_name(str(world().card)) == Concept.load(world().card)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text('name = "A"\nanswer = "a"\nprompt = "b c"\n')
    assert card_or_name("mine").name == "A"  # a file in the working folder


@pytest.mark.parametrize("command", ["erase", "inspect", "compare"])
def test_commands_refuse_a_slip_before_any_work(command, tmp_path):
    out = tmp_path / "out"
    assert "Did you mean 'saturn'?" in mistake(command, "satrun", "--out", out)
    assert "No card lies" in mistake(command, "no/such.toml", "--out", out)
    assert not out.exists()


# --- the card ----------------------------------------------------------------------------------


def test_a_card_is_written_once_and_a_mended_one_serves(word, texts, tmp_path):
    lens = load(world().model, progress=False)
    card = Concept.load(world().card)
    own = tuple(f"Text. The {p} {word} w3 w4 w5 w6." for p in card.concept_prompts)
    own += tuple(f"Text. The {p.prompt} {word} w3 w4 w5 w6." for p in _forward(card))
    corpus = Corpus("texts", "", own)
    named = with_cards(lens, [card, word], corpus, tmp_path)
    file = tmp_path / f"{word}.toml"
    assert named.cards[0] is card and named.cards[1] == Concept.load(file)
    assert named.said == [f"{word}: a card was made from the name: {file}"]
    assert named.cards[1].to_dict() == tars_lens.make_card(lens, word, corpus).concept.to_dict()
    mended = file.read_text().replace(f'name = "{word}"', 'name = "Mended"')
    file.write_text(mended)
    again = with_cards(lens, [word], corpus, tmp_path)
    assert again.cards[0].name == "Mended" and file.read_text() == mended
    assert again.said[0].startswith(f"{word}: the card of an earlier run serves: {file} (Made for")
    nowhere = with_cards(lens, [word], corpus)
    assert nowhere.cards[0].answer == word and "kept nowhere" in nowhere.said[0]


def test_a_card_of_another_name_with_the_same_file_name_is_refused(word, tmp_path):
    lens = load(world().model, progress=False)
    (tmp_path / f"{word}_.toml").write_text(f'name = "C"\nanswer = "{word}"\nprompt = "w1 w2"\n')
    for name in (f"{word}+", f"{word}#"):
        with pytest.raises(TarsError, match=r"is the card of 'C', not of"):
            with_cards(lens, [name], None, tmp_path)


def test_erase_makes_the_card_beside_its_output_and_says_so(word, texts, tmp_path):
    given = ("--model", world().model, "--corpus", texts, *FAST)
    code, said, err = run("erase", word, *given, "--out", tmp_path)
    assert code == 0, err
    lines = [line for line in said.splitlines() if "a card was made" in line]
    assert lines == [f"{word}: a card was made from the name: {tmp_path / f'{word}.toml'}"]
    card = Concept.load(tmp_path / f"{word}.toml")
    patch = Patch.load(tmp_path / f"{word}.safetensors")
    assert patch.concepts == (card.to_dict(),)
    first = patch.sha256
    assert run("erase", word, *given, "--out", tmp_path, "--quiet")[:2] == (0, "")
    assert Patch.load(tmp_path / f"{word}.safetensors").sha256 == first


def test_inspect_and_evaluate_take_a_name_too(word, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tars_lens.concept.card_making.making.load_corpus", lambda: load_corpus(str(texts))
    )
    given = ("--model", world().model, "--out", tmp_path / "look")
    code, said, err = run("inspect", word, *given)
    assert code == 0, err
    file = tmp_path / "look" / f"{word}.toml"
    assert said.startswith(f"{word}: a card was made from the name: {file}")
    assert Concept.load(file).answer == word
    code, said, _ = run("inspect", word, *given[:2], "--json")
    assert code == 0 and json.loads(said)["concept"] == word  # nothing but JSON
    given = ("--model", world().model, "--edited", world().model, "--corpus", texts)
    out = tmp_path / "found"
    code, said, err = run("evaluate", *given, "--concept", word, "--no-controls", "--out", out)
    assert code == 0, err
    assert said.startswith(f"{word}: a card was made from the name: {out / f'{word}.toml'}")
    assert json.loads((out / "evaluation.json").read_text())["concepts"] == [word]


def test_a_name_that_the_model_does_not_know_is_one_message(texts, tmp_path):
    out = tmp_path / "out"
    given = ("--model", world().model, "--corpus", texts, "--out", out)
    assert "nothing leads" in mistake("erase", "Xyzzy Plugh", *given)
    assert not out.exists()


def test_help_tells_the_rule():
    for command in ("erase", "inspect", "compare", "evaluate"):
        said = " ".join(run(command, "--help").out.replace("│", " ").split())
        assert "for any other name a card is made first" in said
