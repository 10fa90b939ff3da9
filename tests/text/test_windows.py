"""Windows: what is reported, what statistics see and what settings are chosen on never overlap."""

import logging

import pytest
import torch
from tiny import WORDS, save_checkpoint, tiny_lens
from tokenizers import processors

from tars_lens.attribution.neuron_index import NeuronIndex
from tars_lens.common.errors import TarsError
from tars_lens.model.loading import load
from tars_lens.text.corpus import Corpus
from tars_lens.text.windows import STATISTICS_WINDOWS, VALIDATION_WINDOWS, WIDTH, cut


def corpus_of(lengths, seed=0) -> Corpus:
    """Documents of random words, so that no two windows are equal by chance."""
    generator = torch.Generator().manual_seed(seed)
    documents = [
        " ".join(f"w{i}" for i in torch.randint(WORDS, (n,), generator=generator)) for n in lengths
    ]
    return Corpus("made up", "", tuple(documents))


def rows(windows) -> list[tuple[int, ...]]:
    parts = (windows.reported, windows.statistics, windows.validation)
    return [tuple(row) for part in parts for row in part.tolist()]


def pieces(lens, corpus) -> set[tuple[int, ...]]:
    """Every whole window of a corpus, cut by hand."""
    found = set()
    for document in corpus.documents:
        ids = lens.tokens(document)
        found |= {tuple(ids[i : i + WIDTH]) for i in range(0, len(ids) - WIDTH + 1, WIDTH)}
    return found


@pytest.mark.parametrize(
    "lengths",
    [
        [WIDTH * 3 + 10] * 60,  # long articles: beginnings reported, the rest for the others
        [WIDTH + 3] * 60,  # short ones: some are held back
        [WIDTH * 40],  # one long text
        [100, WIDTH * 2, 50, WIDTH, WIDTH * 5, WIDTH * 2 - 1],
    ],
)
def test_the_three_uses_never_overlap(lens, lengths):
    corpus = corpus_of(lengths)
    windows = cut(lens, corpus, reported_tokens=20 * WIDTH)
    every = rows(windows)
    assert len(every) == len(set(every))
    assert set(every) <= pieces(lens, corpus)
    assert min(len(windows.reported), len(windows.statistics), len(windows.validation)) >= 1


def test_the_beginnings_are_reported_up_to_the_tokens_asked_for(lens):
    corpus = corpus_of([WIDTH * 3] * 80)
    windows = cut(lens, corpus, reported_tokens=50 * WIDTH)
    beginnings = [lens.tokens(text)[:WIDTH] for text in corpus.documents[:50]]
    assert windows.reported.tolist() == beginnings
    assert len(windows.statistics) == STATISTICS_WINDOWS
    assert len(windows.validation) == VALIDATION_WINDOWS
    assert windows.texts == tuple(lens.tokenizer.decode(ids) for ids in beginnings)
    assert len(cut(lens, corpus, reported_tokens=50 * WIDTH + 1).reported) == 51
    assert windows.corpus == "made up"


def test_what_is_chosen_on_does_not_depend_on_what_is_reported(lens):
    corpus = corpus_of([WIDTH * 3] * 80)
    few, many = (cut(lens, corpus, reported_tokens=n * WIDTH) for n in (1, 70))
    assert torch.equal(few.statistics, many.statistics)
    assert torch.equal(few.validation, many.validation)


def test_short_documents_are_held_back_and_never_reported(lens):
    corpus = corpus_of([WIDTH] * 10)
    windows = cut(lens, corpus, reported_tokens=10 * WIDTH)
    assert len(windows.reported) == 5
    assert len(windows.statistics) + len(windows.validation) == 5
    assert windows.reported.tolist() == [lens.tokens(text) for text in corpus.documents[:5]]


def test_short_documents_are_enough_however_few_are_reported(lens):
    corpus = corpus_of([WIDTH] * 40)
    few, many = (cut(lens, corpus, reported_tokens=n * WIDTH) for n in (1, 20))
    assert (len(few.reported), len(many.reported)) == (1, 20)
    assert few.reported.tolist() == many.reported[:1].tolist()
    for windows in (few, many):
        used = len(windows.statistics) + len(windows.validation)
        assert used == (STATISTICS_WINDOWS + VALIDATION_WINDOWS) // 4
        assert len(set(rows(windows))) == len(rows(windows))  # none is reported and drawn from


def test_every_window_begins_as_the_tokenizer_begins_a_text(tmp_path):
    folder = save_checkpoint(tmp_path / "bos", "llama")
    plain = load(folder, progress=False)
    token, number = plain.tokenizer.bos_token, plain.tokenizer.bos_token_id
    plain.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, number)]
    )
    plain.tokenizer.save_pretrained(folder)
    lens = load(folder, progress=False)
    corpus = corpus_of([WIDTH * 3] * 8)
    every = rows(cut(lens, corpus, reported_tokens=4 * WIDTH))
    assert {row[0] for row in every} == {number}
    assert all(number not in row[1:] for row in every)
    body = lens.pieces(corpus.documents[0])
    width = WIDTH - 1
    assert {tuple([number, *body[i * width :][:width]]) for i in range(3)} <= set(every)


@pytest.mark.parametrize("lengths", [[], [10] * 50, [WIDTH - 1], [WIDTH], [WIDTH] * 3])
def test_a_corpus_that_is_too_short_is_refused(lens, lengths):
    with pytest.raises(TarsError, match=r"'made up' is too short: it gives \d windows of 256"):
        cut(lens, corpus_of(lengths), reported_tokens=WIDTH)


def test_fewer_windows_than_asked_for_are_told(lens, caplog):
    corpus = corpus_of([WIDTH * 20] * 5)
    with caplog.at_level(logging.WARNING):
        cut(lens, corpus, reported_tokens=5 * WIDTH)
        assert not caplog.records
        cut(lens, corpus, reported_tokens=6 * WIDTH)
    assert "only 5 windows of 256 tokens to report on, where 6 were asked for" in caplog.text


@pytest.mark.parametrize("arch", ["gpt2", "opt"])
def test_a_model_with_fewer_positions_than_a_window_is_refused(arch):
    lens = tiny_lens(arch)
    said = f"tiny-{arch} can't read windows of plain text: .* 256 tokens .* reads 64 at the most"
    with pytest.raises(TarsError, match=said):
        cut(lens, corpus_of([WIDTH * 3] * 8))
    with pytest.raises(TarsError, match=said):
        NeuronIndex.fit(lens, torch.zeros(2, WIDTH, dtype=torch.long))
    assert NeuronIndex.fit(lens, torch.zeros(2, 64, dtype=torch.long)).ids.shape == (2, 64)
