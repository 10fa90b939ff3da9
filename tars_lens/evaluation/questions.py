"""Everything that is asked of a concept, as a list of questions of one shape."""

from collections.abc import Sequence
from dataclasses import dataclass

from tars_lens.concept.card import Concept, Probe, substituted

PLAIN_KINDS = ("forward", "reverse", "neighbour", "multilingual")
"""The kinds that a card writes down; the others are derived from known facts of these."""


@dataclass(frozen=True)
class Question:
    """A prompt, the texts that answer it, and what it is worth.

    Attributes:
        concept: The card's name.
        kind: What it shows: `forward`, `paraphrase`, `attack` and so on.
        way: How it was derived, its language, or a neighbour's distance; `""` as the card has it.
        fact: The index of the card's probe that it asks for, among its kind.
        prompt: The text before the answer.
        answers: Texts, any of which answers it.
        floor: A prompt after which the answer's probability is what chance gives, or `""`.
        chance: What chance gives, where no prompt says it.
    """

    concept: str
    kind: str
    way: str
    fact: int
    prompt: str
    answers: tuple[str, ...]
    floor: str = ""
    chance: float = 0.0


def plain_questions(concept: Concept) -> list[Question]:
    """The card's reported probes, as they are."""
    asked = [
        Question(concept.name, "forward", "", i, probe.prompt, concept.surface_forms)
        for i, probe in enumerate(concept.probes.forward)
    ]
    asked += [reverse_question(concept, i, p) for i, p in enumerate(concept.probes.reverse)]
    for kind in ("neighbour", "multilingual"):
        for i, probe in enumerate(getattr(concept.probes, kind)):
            way = probe.language or probe.distance
            asked.append(Question(concept.name, kind, way, i, probe.prompt, (probe.answer,)))
    return asked


def reverse_question(concept: Concept, fact: int, probe: Probe) -> Question:
    """A probe from name to attribute; its floor has the substitute in place of the name."""
    floor = ""
    if concept.substitute:
        floor = substituted(probe.prompt, concept.names, concept.substitute)
    return Question(concept.name, "reverse", "", fact, probe.prompt, (probe.answer,), floor)


def facts(concept: Concept, kind: str, known: Sequence[int], most: int) -> list[tuple[int, Probe]]:
    """The first known probes of a kind, with their indices."""
    probes = getattr(concept.probes, kind)
    return [(i, probes[i]) for i in known[:most]]
