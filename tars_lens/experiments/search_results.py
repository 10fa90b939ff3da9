"""What a search has found: its trials, which of them nothing betters, and the one picked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from tars_lens.common.files import write_json, write_text
from tars_lens.method.settings import Settings

OBJECTIVES = ("left", "neighbour_lost", "kl_p99")
"""What is made small: the concepts' largest probability at a validation prompt, the share of its
probability that the worst validation neighbour loses, and the KL's 99th percentile in nats."""

RULE = (
    "of the settings that leave at most the goal and whose worst neighbour loses at most 0.2, the "
    "one with the least kl_p99; where there is none, the one with the least left, then "
    "neighbour_lost, then kl_p99"
)
"""How one of them is picked."""

Space = Mapping[str, Sequence[Any]]
"""For each setting of `Settings` the values that are tried."""

_NEIGHBOUR_BUDGET = 0.2


@dataclass(frozen=True)
class Search:
    """What a search has found.

    Attributes:
        trials: One row a trial: trial, state (`complete`, `pruned`, `failed` or `running`), the
            objectives, pareto, picked, and a column a setting.
        picked: The settings that the rule picks; `None` where no trial is complete.
    """

    trials: pd.DataFrame
    picked: Settings | None

    def to_frame(self) -> pd.DataFrame:
        """The trials."""
        return self.trials.copy()

    @property
    def front(self) -> pd.DataFrame:
        """The trials that no other betters in every objective, by kl_p99."""
        return self.trials[self.trials["pareto"]].sort_values("kl_p99", ignore_index=True)

    def save(self, folder: Path | str) -> None:
        """Writes `trials.csv`, `front.csv` and `picked.json`.

        Raises:
            TarsError: The folder can't be written.
        """
        folder = Path(folder)
        write_text(folder / "trials.csv", self.trials.to_csv(index=False))
        write_text(folder / "front.csv", self.front.to_csv(index=False))
        settings = self.picked.to_dict() if self.picked else None
        write_json(folder / "picked.json", {"rule": RULE, "settings": settings})


def summarise(rows: Iterable[Mapping[str, Any]], base: Settings, space: Space) -> Search:
    """The table of trials, which of them nothing betters, and the one that is picked."""
    columns = ["trial", "state", *OBJECTIVES]
    frame = pd.DataFrame(list(rows), columns=[*columns, *space])
    complete = frame[frame["state"] == "complete"]
    values = {i: tuple(map(float, r)) for i, r in complete[list(OBJECTIVES)].T.items()}
    front = {i for i, own in values.items() if not any(dominates(v, own) for v in values.values())}
    frame.insert(len(columns), "pareto", [index in front for index in frame.index])
    chosen = pick({i: values[i] for i in sorted(front)}, base.goal)
    frame.insert(len(columns) + 1, "picked", [index == chosen for index in frame.index])
    if chosen is None:
        return Search(frame, None)
    given = {name: frame.loc[chosen, name] for name in space}
    return Search(frame, replace(base, **{k: _native(v) for k, v in given.items()}))


def pick(front: Mapping[Any, tuple[float, ...]], goal: float) -> Any:
    """The key of the trial that `RULE` picks, or `None` where there is none."""
    good = {k: v for k, v in front.items() if v[0] <= goal and v[1] <= _NEIGHBOUR_BUDGET}
    if good:
        return min(good, key=lambda key: good[key][2])
    return min(front, key=lambda key: front[key], default=None)


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is as small as `b` everywhere and smaller somewhere."""
    pairs = list(zip(a, b, strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def _native(value: Any) -> Any:
    """A table's cell as the setting that it was."""
    plain = value.item() if hasattr(value, "item") else value
    return tuple(plain) if isinstance(plain, list) else plain
