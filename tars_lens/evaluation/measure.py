"""A measure of the battery, and what it finds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from tars_lens.evaluation.subject import BLOCKED, Subject
from tars_lens.evaluation.suites import SuiteName

if TYPE_CHECKING:
    from tars_lens.evaluation.context import Context

Which = Literal["all", "blocked", "none"]
"""The controls that a measure is taken of as well."""


@dataclass(frozen=True)
class Result:
    """What one measure found of one subject.

    Attributes:
        measure: Its name.
        headline: The key of `figures` that tables show.
        figures: Plain values; `None` where nothing could be measured, never a stand-in.
        interval: Bootstrap interval (95 %) of the headline over the items, or `None`.
        items: One row an item: a probe, a prompt, a layer, a position.
    """

    measure: str
    headline: str
    figures: dict[str, Any]
    interval: tuple[float, float] | None
    items: pd.DataFrame

    @property
    def value(self) -> float | None:
        """The headline."""
        found = self.figures.get(self.headline)
        return None if found is None else float(found)

    def to_frame(self) -> pd.DataFrame:
        """The items, as `docs/evaluation.md` describes the columns of each measure."""
        return self.items.copy()

    def to_dict(self) -> dict[str, Any]:
        """Headline, its value and interval, and all figures, as JSON values."""
        return {
            "headline": self.headline,
            "value": self.value,
            "interval": list(self.interval) if self.interval else None,
            **self.figures,
        }


@dataclass(frozen=True)
class Measure:
    """One measure of the battery.

    Attributes:
        name: What tables and files call it.
        about: What its headline says, in one line.
        better: Whether a low or a high headline speaks for the edit.
        suite: The smaller suite that it belongs to.
        run: Measures the context's subject.
        controls: The controls that it is taken of, by suite.
    """

    name: str
    about: str
    better: Literal["low", "high"]
    suite: SuiteName
    run: "Callable[[Context], Result]"
    controls: Mapping[str, Which] = field(default_factory=lambda: {"quick": "all", "full": "all"})

    def taken(self, suite: SuiteName, subject: Subject) -> bool:
        """Whether a suite takes it of a subject."""
        if self.suite == "full" and suite == "quick":
            return False
        which = self.controls.get(suite, "none") if subject.control else "all"
        return which == "all" or (which == "blocked" and subject.name == BLOCKED)
