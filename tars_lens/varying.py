"""The concept's prompts with one word changed: most of them no longer lead to the concept.

"The capital of Germany is" leads to Berlin, "The capital of Austria is" doesn't. What an edit
reads must lie in what the two have not in common, and a card need not list such prompts: the
nearest words of the vocabulary make them, and the base model says which of them stray.
"""

from collections.abc import Sequence

from tars_lens.lens import Lens
from tars_lens.unembedding import Unembedding, is_word

STRAYED = 0.01
"""Below this probability of the concept a prompt no longer leads to it."""

_NEAR_WORDS = 4
_LONG = 24
"""Tokens of the longest prompt that is varied: the others would be padded to a longer one."""

MOST = 64
"""Prompts at most, spread over all words of all prompts."""


def varied(
    lens: Lens, unembedding: Unembedding, prompts: Sequence[str], tokens: Sequence[int]
) -> tuple[str, ...]:
    """The prompts with one word changed for one of its nearest in the vocabulary.

    Args:
        lens: Whose vocabulary it is; the model isn't run.
        unembedding: Where words are near each other.
        prompts: The concept's.
        tokens: The concept's first tokens, which are never put in.
    """
    texts = [lens.pieces(prompt) for prompt in varied_prompts(lens, prompts)]
    words = sorted({t for ids in texts for t in ids if is_word(lens, t)})
    nearest = dict(zip(words, unembedding.nearest_each(words, _NEAR_WORDS), strict=True))
    found = dict.fromkeys(
        _text(lens, [*ids[:at], other, *ids[at + 1 :]])
        for ids in texts
        for at, token in enumerate(ids)
        for other in nearest.get(token, ())
        if not unembedding.is_variant(other, tokens)
    )
    return spread([text for text in found if text not in prompts], MOST)


def varied_prompts(lens: Lens, prompts: Sequence[str]) -> list[str]:
    """The prompts that are varied, shortest first: the others are long, or have no word token."""
    pieces = {prompt: lens.pieces(prompt) for prompt in prompts}
    worded = [p for p, ids in pieces.items() if any(is_word(lens, t) for t in ids)]
    by_length = sorted(worded, key=lambda prompt: len(pieces[prompt]))
    most = max(_LONG, min((len(pieces[prompt]) for prompt in worded), default=0))
    return [prompt for prompt in by_length if len(pieces[prompt]) <= most]


def spread(texts: Sequence[str], count: int) -> tuple[str, ...]:
    """At most so many of the texts, evenly from the first to the last."""
    if len(texts) <= count:
        return tuple(texts)
    return tuple(texts[at * len(texts) // count] for at in range(count))


def _text(lens: Lens, ids: Sequence[int]) -> str:
    return str(lens.tokenizer.decode(list(ids)))
