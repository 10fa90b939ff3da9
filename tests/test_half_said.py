"""Names of several words, half said."""

from dataclasses import replace

import pytest
import torch
from tiny_concept import world

from tars_lens.concept import Concept
from tars_lens.corpus import load_corpus
from tars_lens.forms import first_tokens
from tars_lens.forward_readers import at_end, forward_readers
from tars_lens.half_said import half_said
from tars_lens.leaning import lens_direction
from tars_lens.lens import Point
from tars_lens.loading import load
from tars_lens.neutral import Neutral
from tars_lens.settings import Settings
from tars_lens.unembedding import Unembedding
from tars_lens.windows import cut


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


def test_half_said_names_join_the_readers_where_they_would_be_passed_over(tiny):
    settings = Settings()
    windows = cut(tiny, load_corpus(str(world().corpus)), reported_tokens=512)
    neutral = Neutral.fit(tiny, windows.statistics, settings.layers(tiny.n_layers))
    card = Concept.load(world().card)
    prompts = card.concept_prompts
    last, tokens = tiny.n_layers - 1, first_tokens(tiny, card)
    towards = lens_direction(Unembedding.fit(tiny), tokens, torch.ones(len(tokens)))

    def late(half):
        read = forward_readers(tiny, card, prompts, (), half, towards, neutral, settings)
        return read[last]

    plain = late([])
    without = plain.description[0]
    assert torch.equal(late([prompts]).description[0].weight, without.weight)
    strange = ("The w9",)
    state = at_end(tiny, strange, [Point("mlp_in", last)])[Point("mlp_in", last)]
    assert float(without.score(state)) < max(settings.forward_thresholds)
    joined = late([strange])
    assert float(joined.description[0].score(state)) > float(without.score(state)) + 0.2
    assert float(joined.leaning.score(state)) > float(plain.leaning.score(state))
    assert float(joined.leaning.score(state)) >= 0.99


def test_a_name_of_one_word_is_never_half_said(tiny):
    card = Concept("w3", "w3", "p", names=("w3",))
    assert half_said(tiny, card, first_tokens(tiny, card)) == []
