"""What a figure has to reach: the bars of the measures that have one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Bar:
    """A figure of a measure, and what it has to reach.

    Attributes:
        measure: Its measure.
        path: Where the measure's figures have it, key by key.
        about: What tables call it.
        least: Whether the bar is the least that will do, or the most.
        value: The bar, in the figure's unit.
    """

    measure: str
    path: tuple[str, ...]
    about: str
    least: bool
    value: float

    @property
    def text(self) -> str:
        """The bar as tables show it."""
        return f"{'≥' if self.least else '≤'} {self.value:g}"

    def figure(self, figures: Mapping[str, Any]) -> float | None:
        """The figure out of a measure's figures of one subject; `None` where it has none."""
        found: Any = figures
        for key in self.path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return None if found is None else float(found)

    def missed(self, figure: float | None) -> bool:
        """Whether a figure falls short; what couldn't be measured doesn't."""
        if figure is None:
            return False
        return figure < self.value if self.least else figure > self.value


def _bar(measure: str, path: str, about: str, way: Literal["<=", ">="], value: float) -> Bar:
    return Bar(measure, tuple(path.split(".")), about, way == ">=", value)


BARS = (
    _bar("forward", "after_max", "worst p", "<=", 0.005),
    _bar("forward", "said_after", "said", "<=", 0.0),
    _bar("reverse", "kept", "kept", "<=", 0.1),
    _bar("reverse", "said_after_own", "said, not of the substitute", "<=", 1.0),
    _bar("neighbour", "kept", "kept, mean", ">=", 0.9),
    _bar("neighbour", "worst_kept", "kept, worst", ">=", 0.5),
    _bar("wikipedia", "elsewhere.median", "KL elsewhere, median", "<=", 0.001),
    _bar("wikipedia", "elsewhere.mean", "KL elsewhere, mean", "<=", 0.005),
    _bar("wikipedia", "elsewhere.p99", "KL elsewhere, p99", "<=", 0.05),
    _bar("logit_lens", "largest_p", "largest p", "<=", 0.05),
)
"""In the order of tables; *elsewhere* is text that never names a removed concept."""
