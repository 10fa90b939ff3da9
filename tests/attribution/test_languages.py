"""What the layers read in other languages, against the plain Hugging Face model's own streams."""

from dataclasses import replace

import pytest
import torch
from tiny import read_checkpoint, read_tokenizer
from tiny_concept import world

from tars_lens.attribution import languages_by_layer
from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept, Probe
from tars_lens.model.loading import load
from tars_lens.model.weights import Rows
from tars_lens.patch.patch import Patch


@pytest.fixture(scope="module")
def lens():
    return load(world().model, progress=False)


@pytest.fixture(scope="module")
def card(lens):
    """The world's card with a word of another language, which the model says beside its own."""
    concept = Concept.load(world().card)
    prompt = concept.probes.multilingual[0].prompt
    probes = (
        Probe(prompt, concept.answer, "fr"),
        Probe(prompt, "w1", "xx"),  # an attribute of another word: none of the concept's forms
        Probe("w1 w2", "w7", "de"),  # a form that the model doesn't say there
    )
    multilingual = replace(concept.probes, multilingual=probes)
    return replace(concept, aliases=("w7",), probes=multilingual)


@pytest.fixture(scope="module")
def patch(lens, card):
    generator = torch.Generator().manual_seed(0)
    rows = {
        (1, role): Rows(torch.tensor([3]), torch.randn(1, lens.d_model, generator=generator) * 3)
        for role in lens.roles
    }
    return Patch.build(lens, rows, concepts=[card], label="loud")


def _plain(prompt, words, patch=None):
    """By layer, each word's probability by the final norm and unembedding, in transformers."""
    hf, tokenizer = read_checkpoint(world().model), read_tokenizer(world().model)
    if patch is not None:
        mlp = hf.model.layers[1].mlp
        with torch.no_grad():
            mlp.gate_proj.weight[3] = patch.edits[1, "gate"].new[0]
            mlp.up_proj.weight[3] = patch.edits[1, "in"].new[0]
            mlp.down_proj.weight[:, 3] = patch.edits[1, "out"].new[0]
    streams = []
    hooks = [
        layer.register_forward_hook(
            lambda _m, _i, out: streams.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in hf.model.layers
    ]
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids])
    with torch.no_grad():
        hf(ids)
        streams.insert(0, hf.model.embed_tokens(ids))
        logits = [hf.lm_head(hf.model.norm(stream))[0, -1] for stream in streams]
    for hook in hooks:
        hook.remove()
    wanted = [tokenizer.convert_tokens_to_ids(word) for word in words]
    return torch.stack([row.softmax(-1)[wanted] for row in logits])


def test_each_layer_reads_what_the_plain_model_s_norm_and_unembedding_do(lens, card, patch):
    frame = languages_by_layer(lens, card, patch).to_frame()
    assert set(frame["language"]) == {"fr"}
    prompt = frame["prompt"].iloc[0]
    for when, edit in (("p_before", None), ("p_after", patch)):
        expected = _plain(prompt, [card.answer], edit)[:, 0]
        for word in ("english", "own"):  # spelt alike here
            found = frame[frame["word"] == word]
            assert list(found["layer"]) == [-1, 0, 1, 2]
            assert found[when].tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-7)
    assert (frame["p_before"] - frame["p_after"]).abs().max() > 1e-3
    assert frame["p_before"].iloc[3] > 0.5


def test_the_language_s_own_word_is_told_from_the_english_one(lens, card):
    """The concept is called w7 in English; the prompt's language says what the model says."""
    said = card.answer
    other = replace(card, answer="w7", aliases=(said,))
    frame = languages_by_layer(lens, other).to_frame()
    assert list(frame["language"].unique()) == ["fr"] and set(frame["answer"]) == {said}
    expected = _plain(frame["prompt"].iloc[0], ["w7", said])
    for index, word in enumerate(("english", "own")):
        found = frame.loc[frame["word"] == word, "p_before"].tolist()
        assert found == pytest.approx(expected[:, index].tolist(), rel=1e-4, abs=1e-7)
    assert frame["p_after"].isna().all()


def test_a_card_without_a_known_probe_gives_an_empty_table_with_its_columns(lens, card, patch):
    none = replace(card, probes=replace(card.probes, multilingual=()))
    frame = languages_by_layer(lens, none, patch).to_frame()
    assert len(frame) == 0 and {"word", "p_before", "p_after"} <= set(frame)


def test_a_patch_that_is_on_the_model_leaves_no_before(lens, card, patch):
    with patch.applied(lens), pytest.raises(TarsError, match="revert it first"):
        languages_by_layer(lens, card, patch)
