"""The token sequences by which a model can say something: surface forms and first tokens."""

from collections.abc import Iterable, Sequence

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.model.lens import Lens

Form = tuple[int, ...]

_SHARE = 0.6


def text_forms(lens: Lens, texts: Iterable[str]) -> tuple[Form, ...]:
    """The distinct token sequences of each text, with and without a leading space.

    A sequence that extends another one is left out: the shorter one's probability counts it.
    """
    found: list[Form] = []
    for text in texts:
        for variant in (f" {text.strip()}", text.strip()):
            form = tuple(lens.pieces(variant))
            if form and form not in found:
                found.append(form)
    return tuple(f for f in found if not any(_extends(f, other) for other in found))


def forms(lens: Lens, concept: Concept) -> tuple[Form, ...]:
    """The token sequences of a concept's answer and aliases."""
    return text_forms(lens, concept.surface_forms)


def first_tokens(lens: Lens, concept: Concept) -> list[int]:
    """The tokens with which the concept's surface forms begin, the answer's own first.

    Many tokenizers split a name into fragments ("S" of "Saturn", one letter of another script)
    that begin other words as well. A first token is the concept's if it says the first word of
    the form or most of it; that of the answer after a space is, whatever it says of it. A bare
    space never is, nor is a number that more follows on: " 1969" is " ", "1", "9", "6", "9" to
    many tokenizers.

    Raises:
        TarsError: None of them tells the concept.
    """
    tokens: list[int] = []
    for text in concept.surface_forms:
        for index, form in enumerate(text_forms(lens, [text])):
            said = lens.string(form[0]).strip()
            own = index == 0 and text == concept.answer
            begun = not said or (said.isdigit() and said != text.strip())
            if not begun and form[0] not in tokens and (own or _tells(said, text)):
                tokens.append(form[0])
    if not tokens:
        pieces = ", ".join(repr(lens.string(token)) for token in lens.pieces(f" {concept.answer}"))
        raise TarsError(
            f"the answer of {concept.name!r} can't be told by its first token: {lens.name} spells "
            f"{concept.answer!r} as {pieces}. Choose an answer that begins with a word."
        )
    return tokens


def _tells(start: str, text: str) -> bool:
    """Whether what a token says is at least `_SHARE` of the first word of a text."""
    word = text.split()[0]
    return "\ufffd" not in start and word.startswith(start) and len(start) >= _SHARE * len(word)


def _extends(form: Sequence[int], other: Sequence[int]) -> bool:
    return len(form) > len(other) and tuple(form[: len(other)]) == tuple(other)
