"""Names of several words, where all but the last words have been said."""

import re
from collections.abc import Iterator, Sequence

from tars_lens.concept import Concept
from tars_lens.lens import Lens

_KNOWN = 0.05
_BETWEEN_WORDS = re.compile(r"(?<=[\s·・])(?=\S)")

FRAMES = ("{start}", "The {start}", "{name}. {start}", "{name}, {name}, {start}")
"""Texts that end in a part of a name, in the end with the whole name before.

A small model seldom completes a name that stands by itself in another script: Gemma-3-270M says
" Э" after "Альберт" with p < 0.001, and as it should once the text has the whole name.
"""


def half_said(lens: Lens, concept: Concept, tokens: Sequence[int]) -> list[tuple[str, ...]]:
    """Texts that end in the first words of one of a card's names, where the base says the rest.

    After "Albert" the second word follows from the first alone, whatever the text tells: a reader
    of descriptions is silent there, in any script but the card's.

    Args:
        lens: The base model.
        concept: The card.
        tokens: First tokens of its surface forms, which may be the rest as well.

    Returns:
        For each such beginning the texts (of `FRAMES`) after which the rest has p >= 0.05; none for
        a name of one word, or one that is spelt in bytes.
    """
    split = dict.fromkeys(part for name in _written(concept) for part in _splits(name))
    parts = {part: ways for part in split if (ways := _ways(lens, part[1]))}
    found: dict[str, dict[str, None]] = {}
    if not parts:
        return []
    frames = FRAMES if lens.spelling.begins else FRAMES[1:]
    texts = [
        [frame.format(name=start + rest, start=start.rstrip()) for frame in frames]
        for start, rest in parts
    ]
    batch = lens.prompts([text for group in texts for text in group])
    said = lens.next_logits(batch).softmax(dim=-1).split(len(frames))
    for ((start, _), ways), group, likely in zip(parts.items(), texts, said, strict=True):
        known = likely[:, sorted({*tokens, *ways})].sum(dim=1) >= _KNOWN
        own = [text for text, leads in zip(group, known.tolist(), strict=True) if leads]
        found.setdefault(start, {}).update(dict.fromkeys(own))
    return [tuple(own) for own in found.values() if own]


def _ways(lens: Lens, rest: str) -> set[int]:
    """The tokens with which the rest of a name begins; none where it is spelt in bytes."""
    first = {lens.pieces(variant)[0] for variant in (f" {rest}", rest)}
    return {token for token in first if "\ufffd" not in lens.string(token)}


def _written(concept: Concept) -> tuple[str, ...]:
    return (*concept.names, *concept.surface_forms)


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Every way of parting a name between its words ("Harry ", "Potter"; "哈利·", "波特")."""
    for match in _BETWEEN_WORDS.finditer(name):
        yield name[: match.start()], name[match.start() :]
