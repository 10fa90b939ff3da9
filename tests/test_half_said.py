"""Names of several words, half said."""

from dataclasses import replace

import pytest
from tiny_concept import world

from tars_lens.concept import Concept
from tars_lens.forms import first_tokens
from tars_lens.half_said import half_said
from tars_lens.loading import load


@pytest.fixture(scope="module")
def tiny():
    return load(world().model, progress=False)


def _next_word(lens, text):
    return lens.string(int(lens.next_logits(lens.prompts([text])).argmax())).strip()


def test_a_name_is_half_said_where_the_model_says_the_rest(tiny):
    word = "w1"
    rest = _next_word(tiny, f"The {word}")
    card = Concept("x", rest, "p", names=(f"{word} {rest}",))
    (texts,) = half_said(tiny, card, first_tokens(tiny, card))
    assert f"The {word}" in texts
    assert all(text.endswith(word) for text in texts)
    unlikely = next(w for w in ("w7", "w8", "w9") if w != rest)
    other = replace(card, answer=unlikely, names=(f"{word} {unlikely}",))
    assert f"The {word}" not in [t for own in half_said(tiny, other, [0]) for t in own]


def test_a_name_of_one_word_is_never_half_said(tiny):
    card = Concept("w3", "w3", "p", names=("w3",))
    assert half_said(tiny, card, first_tokens(tiny, card)) == []
