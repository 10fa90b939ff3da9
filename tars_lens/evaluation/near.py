"""Text near a concept, and text about it, out of a corpus."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from tars_lens.common.text import paragraphs as lines_of
from tars_lens.concept.card import Concept, forms_in
from tars_lens.model.lens import Lens
from tars_lens.text.corpus import Corpus
from tars_lens.text.windows import WIDTH

_SHORTEST = 80  # characters of a paragraph that says something
_ENOUGH = 16 * WIDTH  # characters that hold a window, without reading a whole article each time
_LEAST_LETTERS = 4  # of a neighbour's name: "Au" is in half of all texts


def near_windows(
    lens: Lens, corpus: Corpus, concepts: Sequence[Concept], count: int
) -> Int[Tensor, "windows pos"] | None:
    """Windows that begin where a text names a neighbour of a concept and no concept itself.

    Returns:
        At most `count` windows, one a document; `None` where the corpus has none.
    """
    forms = [f for c in concepts for f in c.mentions]
    names = sorted({name for concept in concepts for name in neighbour_names(concept)})
    found: list[list[int]] = []
    for document in corpus.documents:
        if len(found) == count:
            break
        for text in _beginning_at(document, names):
            ids = lens.tokens(text[:_ENOUGH])[:WIDTH]
            if len(ids) == WIDTH and not forms_in(lens.tokenizer.decode(ids), forms):
                found.append(ids)
                break
    return torch.tensor(found, device=lens.device) if found else None


def neighbour_names(concept: Concept) -> list[str]:
    """What the card's contrast and neighbour probes answer with, where it is a name."""
    probes = (*concept.contrast, *concept.validation.neighbour, *concept.probes.neighbour)
    answers = dict.fromkeys(probe.answer for probe in probes)
    return [a for a in answers if len(a) >= _LEAST_LETTERS and a[0].isupper()]


def paragraphs(corpus: Corpus, concept: Concept, count: int) -> list[str]:
    """Paragraphs that name a concept, in the corpus's order, and the card's text where they lack.

    The card's part is what its vector is made from and what was chosen on, never a reported probe.
    """
    found = []
    for document in corpus.documents:
        for line in lines_of(document):
            if len(line) >= _SHORTEST and forms_in(line, concept.names):
                found.append(line)
        if len(found) >= count:
            return found[:count]
    own = [f"{p} {concept.answer}." for p in concept.concept_prompts]
    own += [f"{p.prompt} {concept.answer}." for p in concept.validation.forward]
    own += [f"{p.prompt} {p.answer}." for p in concept.validation.reverse]
    return [*found, *own][:count]


def unrelated(corpus: Corpus, forms: Sequence[str], count: int) -> list[str]:
    """Paragraphs that name none of some forms: the benign text that a model may be trained on."""
    found = []
    for document in corpus.documents:
        lines = [line for line in lines_of(document) if len(line) >= _SHORTEST]
        found += [line for line in lines[:2] if not forms_in(line, forms)]
        if len(found) >= count:
            break
    return found[:count]


def _beginning_at(document: str, names: Sequence[str]) -> Iterator[str]:
    """The document from each line on that names a neighbour."""
    lines = lines_of(document)
    for i, line in enumerate(lines):
        if forms_in(line, names):
            yield "\n".join(lines[i:])
