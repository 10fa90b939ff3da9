"""The token sequences by which a model can say something: surface forms and first tokens."""

from collections.abc import Iterable, Sequence

from tars_lens.concept import Concept
from tars_lens.lens import Lens

Form = tuple[int, ...]


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

    Without a leading space many tokenizers split a name into fragments ("S" of "Saturn") that
    begin other words as well. Such a fragment isn't the concept's token: a first token counts if
    it is the whole form, or says at least three characters, or isn't Latin script.
    """
    own = tuple(lens.pieces(f" {concept.answer.strip()}"))
    tokens = [own[0]] if own else []
    for form in forms(lens, concept):
        if form[0] not in tokens and (len(form) == 1 or _telling(lens.string(form[0]))):
            tokens.append(form[0])
    return tokens


def _telling(text: str) -> bool:
    plain = text.strip()
    return bool(plain) and (len(plain) >= 3 or not plain.isascii()) and "\ufffd" not in plain


def _extends(form: Sequence[int], other: Sequence[int]) -> bool:
    return len(form) > len(other) and tuple(form[: len(other)]) == tuple(other)
