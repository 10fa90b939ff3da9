"""What is known of the base model before any edit, gathered once for all measures and subjects."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.evaluation.asking import base_answers
from tars_lens.evaluation.derived import derived_questions
from tars_lens.evaluation.near import near_windows, paragraphs
from tars_lens.evaluation.questions import PLAIN_KINDS, Question, plain_questions
from tars_lens.evaluation.suites import Suite
from tars_lens.model.lens import Lens
from tars_lens.patch import stack
from tars_lens.text.corpus import Corpus
from tars_lens.text.windows import Windows, cut

_BATCH = 4
Found = TypeVar("Found")


class Base:
    """The base model, its concepts, the texts, and every figure that is taken before an edit.

    Args:
        lens: The base, with no patch on it.
        concepts: The cards of what was removed; a card that is given twice counts once.
        corpus: Plain text.
        suite: The sizes.
        seed: Of every random draw.

    Raises:
        TarsError: No concept, two different cards of one name, or patches are on the model.
    """

    def __init__(
        self, lens: Lens, concepts: Sequence[Concept], corpus: Corpus, suite: Suite, seed: int
    ) -> None:
        if not concepts:
            raise TarsError(
                "no concept to ask about: the patch holds no card, so name one (--concept)."
            )
        if stack.applied_patches(lens):
            raise TarsError("patches are applied to the model: revert them, a base has none.")
        self.lens, self.concepts, self.suite, self.seed = lens, _distinct(concepts), suite, seed
        self.corpus = corpus
        self.windows: Windows = cut(lens, corpus, reported_tokens=suite.windows * 256)
        self.near: Int[Tensor, "windows pos"] | None = near_windows(
            lens, corpus, self.concepts, suite.near_windows
        )
        self._known: dict[str, Any] = {}
        self._held = False
        self._ask()

    @property
    def forms(self) -> tuple[str, ...]:
        """How the concepts are named, to tell the text that names them from the rest."""
        return tuple(f for c in self.concepts for f in c.mentions)

    def once(self, key: str, compute: Callable[[], Found]) -> Found:
        """A figure of the base, computed the first time it is asked for.

        Raises:
            RuntimeError: An edit is on the model, so that it isn't the base: a bug of a measure.
        """
        if key not in self._known:
            if self._held:
                raise RuntimeError(f"{key!r} of the base was asked for while an edit is held")
            self._known[key] = compute()
        found: Found = self._known[key]
        return found

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Nothing new is asked of the base while the block runs."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def stream(self, name: str) -> Float[Tensor, "windows pos d_model"]:
        """The final residual stream on the windows `reported` or `near`."""
        return self.once(f"stream {name}", lambda: final_stream(self.lens, self.ids(name)))

    def ids(self, name: str) -> Int[Tensor, "windows pos"]:
        """The windows called `reported` or `near`."""
        ids = self.windows.reported if name == "reported" else self.near
        if ids is None:
            raise TarsError(f"there are no windows {name!r} in this corpus.")
        return ids

    def paragraphs(self, concept: Concept) -> list[str]:
        """Paragraphs about a concept, for relearning."""
        return paragraphs(self.corpus, concept, self.suite.paragraphs)

    def _ask(self) -> None:
        """Puts every question to the base: the card's own, then those made from known facts."""
        plain = [q for concept in self.concepts for q in plain_questions(concept)]
        table = base_answers(self.lens, plain)
        derived = [
            q
            for concept in self.concepts
            for q in derived_questions(concept, _known_facts(table, concept), self.suite.facts)
        ]
        parts = [table, base_answers(self.lens, derived)] if derived else [table]
        whole = pd.concat(parts, ignore_index=True)
        self.questions: dict[str, list[Question]] = {}
        self.answers: dict[str, pd.DataFrame] = {}
        for kind in dict.fromkeys([*PLAIN_KINDS, *(q.kind for q in derived)]):
            rows = whole["kind"] == kind
            self.questions[kind] = [q for q in (*plain, *derived) if q.kind == kind]
            self.answers[kind] = whole[rows].reset_index(drop=True)


def _distinct(concepts: Sequence[Concept]) -> tuple[Concept, ...]:
    """Each card once, as every figure is told apart by its card's name.

    Raises:
        TarsError: Two different cards have one name.
    """
    found: dict[str, Concept] = {}
    for concept in concepts:
        first = found.setdefault(concept.name, concept)
        if first.to_dict() != concept.to_dict():  # a patch's card has no file to be called by
            raise TarsError(
                f"two different cards are named {concept.name!r}: give one of the two, or rename "
                "one of them."
            )
    return tuple(found.values())


def final_stream(
    lens: Lens, ids: Int[Tensor, "windows pos"]
) -> Float[Tensor, "windows pos d_model"]:
    """The stream after the last layer, a few windows at a time."""
    return torch.cat([lens.residual(part, -1) for part in ids.split(_BATCH)])


def _known_facts(table: pd.DataFrame, concept: Concept) -> dict[str, Sequence[int]]:
    counted = table[(table["concept"] == concept.name) & table["known"] & ~table["set_phrase"]]
    return {
        kind: counted.loc[counted["kind"] == kind, "fact"].tolist()
        for kind in ("forward", "reverse")
    }
