"""The concept's direction, from what the base says at the card's prompts and its unembedding."""

from dataclasses import replace

import pytest
import torch
from tiny_recipe import FIRST_WORD, ids_of, sharp
from tokenizers import normalizers

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept, Probe
from tars_lens.method.direction import concept_direction, near_names
from tars_lens.model.lens import Lens


@torch.no_grad()
def _unlikely(place, tokens):
    """Three texts after which the plain model says the tokens least."""
    words = torch.randint(60, (200, 6), generator=torch.Generator().manual_seed(5))
    said = place.hf(words + FIRST_WORD).logits[:, -1].softmax(-1)[:, tokens].sum(1)
    chosen = words[said.argsort()[:3]].tolist()
    return [" ".join(f"w{word}" for word in row) for row in chosen]


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_the_vector_is_the_unembedding_weighted_by_what_is_said(arch):
    place = sharp(arch)
    other = place.other.answer
    tokens = [place.token, *ids_of(other)]
    prompts = (*place.concept.prompts, place.other.prompt, *_unlikely(place, tokens))
    card = replace(place.concept, aliases=(other,), prompts=prompts)
    rows = [place.seen(torch.tensor([ids_of(t)])).logits[0, -1] for t in card.concept_prompts]
    said = torch.stack(rows).softmax(-1)[:, tokens]
    known = said.sum(1) >= 0.05
    assert known.sum() > 1 and (known.sum() < len(known) or arch == "gpt2")
    weights = said[known].mean(0) / said[known].mean(0).sum()
    head = place.hf.lm_head.weight.detach()
    effective = (head - head.mean(0)) * place.gain
    if arch == "gpt2":  # a LayerNorm takes the mean out of what it is given
        effective = effective - effective.mean(1, keepdim=True)
    found = concept_direction(place.lens, card)
    assert found.tokens == tuple(tokens)
    torch.testing.assert_close(found.vector, weights @ effective[tokens], rtol=1e-4, atol=1e-4)
    assert list(found.prompts) == [
        t for t, one in zip(card.concept_prompts, known, strict=True) if one
    ]
    # what it says of a stream is the concept's lead over an average token, in nats
    seen = place.seen(torch.tensor([ids_of(card.prompt)]))
    end = seen.streams[-1][0, -1]
    scale = (end.std(correction=0) if arch == "gpt2" else end.square().mean().sqrt()).float()
    lead = weights @ (seen.logits[0, -1, tokens] - seen.logits[0, -1].mean())
    if arch == "gpt2":  # whose norm adds the same to every stream
        lead = lead - weights @ ((head - head.mean(0))[tokens] @ place.norm.bias.detach())
    assert float(found.vector @ end / scale) == pytest.approx(float(lead), rel=1e-3, abs=1e-3)


def test_a_prompt_is_kept_where_none_is_known():
    place = sharp("llama")
    prompts = _unlikely(place, [place.token])
    card = replace(place.concept, prompt=prompts[0], prompts=tuple(prompts[1:]))
    said = [
        float(place.seen(torch.tensor([ids_of(t)])).logits[0, -1].softmax(-1)[place.token])
        for t in prompts
    ]
    assert max(said) < 0.05 and len(set(said)) == len(said)
    assert concept_direction(place.lens, card).prompts == (prompts[said.index(max(said))],)


def test_what_the_card_contrasts_and_what_is_likely_are_neighbours_and_the_concept_is_none():
    place = sharp("llama")
    found = concept_direction(place.lens, place.concept)
    assert {ids_of(probe.answer)[0] for probe in place.concept.contrast} <= set(found.neighbours)
    likely = place.seen(torch.tensor([ids_of(place.concept.prompt)])).logits[0, -1].topk(5).indices
    own = place.concept.answer
    others = {t for t in likely.tolist() if t >= FIRST_WORD and not _variant(t, own)}
    assert others <= set(found.neighbours)
    assert place.token not in found.neighbours


def _variant(token, own):
    """Whether one word is the beginning of the other, as "w5" is of "w56"."""
    word = f"w{token - FIRST_WORD}"
    return word.startswith(own) or own.startswith(word)


def test_near_names_are_the_cards_own_first_and_never_the_concepts():
    place = sharp("llama")
    card = replace(place.concept, names=(place.concept.answer, "w7"), substitute="w3")
    found = near_names(place.lens, card, [FIRST_WORD + 7, FIRST_WORD + 9, FIRST_WORD + 11], 6)
    contrast = [probe.answer for probe in card.contrast]
    assert found == tuple(dict.fromkeys(["w3", *contrast, "w9", "w11"]))[:6]


@pytest.mark.parametrize(
    ("key", "value"),
    [("names", ("!!!",)), ("substitute", "!!!"), ("contrast", (Probe("w1 w2", "!!!"),))],
)
def test_a_name_that_the_tokenizer_drops_is_refused(key, value, lens):
    lens.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("!", "")
    card = replace(Concept("a word", "w9", "w1 w2"), **{key: value})
    with pytest.raises(TarsError, match=f"key '{key}' of .* has '!!!', which is no token at all"):
        concept_direction(lens, card)


def test_a_card_that_nothing_leads_to_is_refused(monkeypatch):
    place = sharp("llama")
    flat = torch.full((1, place.lens.d_vocab), 1e-9)
    flat[:, 5] = 1.0
    flat[:, place.token] = 0.0
    monkeypatch.setattr("tars_lens.concept.leading._said", lambda *_: flat)
    monkeypatch.setattr("tars_lens.concept.leading._RANK", 10)
    with pytest.raises(TarsError, match="no prompt of .* leads .* to 'w"):
        concept_direction(place.lens, replace(place.concept, prompts=()))


def test_no_probe_is_looked_at(monkeypatch):
    place = sharp("llama")
    asked = []
    prompts = Lens.prompts
    monkeypatch.setattr(Lens, "prompts", lambda lens, t: asked.extend(t) or prompts(lens, t))
    probes = replace(
        place.concept.probes, forward=(Probe("w1 w1 w1"),), neighbour=(Probe("w2 w2", "w5"),)
    )
    card = replace(place.concept, probes=probes, validation=probes)
    place.recipe().patch(card)
    assert card.prompt in asked and not {"w1 w1 w1", "w2 w2"} & set(asked)
