"""Text as people have it: what is read is plain, and names are found as readers would find them."""

import textwrap
import unicodedata

import pytest
from commands import run

from tars_lens.common.errors import TarsError
from tars_lens.common.files import file_key, shell_path
from tars_lens.common.text import forms_in, paragraphs, plain, read_text, substituted
from tars_lens.concept.card import Concept
from tars_lens.concept.card_making.sentences import forward_cuts, sentences_of

FOUND = [
    ("วงแหวนของดาวเสาร์ประกอบด้วยน้ำแข็ง", "ดาวเสาร์"),
    ("ວົງແຫວນຂອງດາວເສົາປະກອບ", "ດາວເສົາ"),
    ("ភពសៅរ៍ជាភពទីប្រាំមួយ", "ភពសៅរ៍"),
    ("စနေဂြိုဟ်သည်ဂြိုဟ်", "စနေဂြိုဟ်"),
    ("土星的光环", "土星"),
    ("토성은 행성이다", "토성"),
    (unicodedata.normalize("NFD", "토성은 행성이다"), "토성"),
    ("私はSherlockです", "Sherlock"),
    ("Beyoncé sang", unicodedata.normalize("NFD", "Beyoncé")),
    (unicodedata.normalize("NFD", "Beyoncé sang"), "Beyoncé"),
    ("O’Brien left", "O'Brien"),
    ("by Sherlock\nHolmes himself", "Sherlock Holmes"),
    ("by Sherlock\xa0 Holmes himself", "Sherlock Holmes"),
    ("Sher\xadlock Holmes", "Sherlock"),
    ("Die STRASSE", "Straße"),
    ("Ｓａｔｕｒｎ ist da", "Saturn"),
    ("Marie‐Curie", "Marie-Curie"),
    ("مُحَمَّد", "محمد"),
    ("سال\u200cنو", "سال\u200cنو"),
]
LEFT = [
    ("रामायण", "राम"),
    ("रामा", "राम"),
    ("Saturnalia", "Saturn"),
    ("Beyonce sang", "Beyoncé"),
    ("กำ", "ก"),
    ("Apollo 110", "Apollo 11"),
]


@pytest.mark.parametrize(("text", "name"), FOUND)
def test_a_name_is_found_however_it_is_typed(text, name):
    assert forms_in(text, [name]) == [name]
    assert substituted(text, [name], "X") != plain(text) or "Ｓ" in text


@pytest.mark.parametrize(("text", "name"), LEFT)
def test_a_piece_of_another_word_is_no_name(text, name):
    assert forms_in(text, [name]) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_whatever_editor_wrote_it(tmp_path, encoding):
    file = tmp_path / "text.txt"
    file.write_bytes(unicodedata.normalize("NFD", "é\r\nb\u2028c\ufeff").encode(encoding))
    assert read_text(file) == "é\nb\nc"


def test_what_is_no_text_is_one_line(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xe9t\xe9")
    with pytest.raises(TarsError, match="as UTF-8 text: .*Save it as UTF-8"):
        read_text(file)


PARAGRAPH = (
    "Saturn is the sixth planet from the Sun and the second largest of the Solar System. In 1610 "
    "Galileo saw the well-known rings of Saturn with a telescope that he had made by himself."
)


@pytest.mark.parametrize("width", [50, 60, 72, 100])
def test_lines_that_were_broken_to_fit_a_page_are_joined(width):
    wrapped = textwrap.fill(PARAGRAPH, width)
    assert paragraphs(f"{wrapped}\n\n{wrapped}\n") == [PARAGRAPH, PARAGRAPH]
    assert list(sentences_of([wrapped], ["Saturn"])) == list(sentences_of([PARAGRAPH], ["Saturn"]))


def test_lines_that_stand_by_themselves_stay_apart():
    listed = "Mercury\nVenus\nEarth\nA line that is longer than all the others here by far"
    assert paragraphs(listed) == listed.split("\n")
    assert paragraphs(f"{PARAGRAPH}\n{PARAGRAPH}") == [PARAGRAPH, PARAGRAPH]


def test_a_prompt_is_cut_where_words_have_no_spaces():
    (cut,) = forward_cuts("太陽系で二番目に大きな惑星は土星です。", "土星", ["土星"])
    assert (cut.prompt, cut.answer) == ("太陽系で二番目に大きな惑星は", "土星")


def _card(prompt):
    table = {"name": "Apple", "answer": "Apple", "prompt": "The maker of the iPhone is"}
    return table | {"probes": {"neighbour": [{"prompt": prompt, "answer": "doctor"}]}}


def test_a_homograph_in_another_case_may_be_a_neighbour():
    assert Concept.from_dict(_card("An apple a day keeps away the")).probes.neighbour
    for prompt in ("The founder of Apple was Steve", "APPLE WAS FOUNDED BY"):
        with pytest.raises(TarsError, match="names the concept"):
            Concept.from_dict(_card(prompt))


def test_names_of_files_tell_names_apart_and_fit():
    assert file_key("Marie Curie") == "marie_curie"
    assert file_key("राम") != file_key("रामा")
    assert file_key(unicodedata.normalize("NFD", "Beyoncé")) == "beyoncé"
    assert len(file_key("ดาวเสาร์" * 99).encode()) < 200
    assert file_key("x" * 99) != file_key("x" * 98)


def test_a_path_means_what_it_means_to_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert shell_path("~/x") == tmp_path / "home" / "x"
    assert shell_path("./~/x") == tmp_path / "~" / "x"
    for word in ("~/p.safetensors", "./~/p.safetensors"):
        _, _, said = run("patch", "show", word)
        assert said == f"error: no patch file {str(shell_path(word))!r}.\n"
