"""What a measure is given: the base's figures, the subject, and runs that measures share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pandas as pd

from tars_lens.evaluation.asking import subject_answers
from tars_lens.evaluation.base import Base
from tars_lens.evaluation.subject import Subject
from tars_lens.model.lens import Lens

Found = TypeVar("Found")


class Context:
    """One subject beside the base.

    Args:
        base: What was gathered of the base model.
        subject: What is examined.
    """

    def __init__(self, base: Base, subject: Subject) -> None:
        self.base, self.subject = base, subject
        self.lens, self.suite, self.seed = base.lens, base.suite, base.seed
        self._shared: dict[str, Any] = {}

    @property
    def windows(self) -> int:
        """How many windows of plain text this subject is compared on."""
        count = self.suite.control_windows if self.subject.control else self.suite.windows
        return min(count, len(self.base.windows.reported))

    @contextmanager
    def edited(self) -> Iterator[Lens]:
        """The subject as a lens; nothing new can be asked of the base meanwhile."""
        with self.base.closed(), self.subject.held(self.lens) as lens:
            yield lens

    def once(self, key: str, compute: Callable[[], Found]) -> Found:
        """A run of the subject that several measures share."""
        if key not in self._shared:
            self._shared[key] = compute()
        found: Found = self._shared[key]
        return found

    def has(self, key: str) -> bool:
        """Whether a shared run has been made, so that it costs nothing any more."""
        return key in self._shared

    def answers(self, kind: str) -> pd.DataFrame:
        """The base's and the subject's answers to the questions of a kind; see `asking`."""

        def ask() -> pd.DataFrame:
            with self.edited() as lens:
                return subject_answers(lens, self.questions(kind), self.base_answers(kind))

        return self.once(f"answers {kind}", ask)

    def questions(self, kind: str) -> list[Any]:
        """The questions of a kind; none where the cards give rise to none."""
        return self.base.questions.get(kind, [])

    def base_answers(self, kind: str) -> pd.DataFrame:
        """What the base says to them."""
        empty = self.base.answers["forward"].iloc[:0]
        return self.base.answers.get(kind, empty)

    def known(self, kind: str) -> pd.DataFrame:
        """Of `answers`, the rows that count."""
        frame = self.answers(kind)
        return frame[frame["known"] & ~frame["set_phrase"]]
