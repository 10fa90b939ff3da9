"""A ranking of a checkpoint on disk beside what chance gives, all in one pass over its bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tars_lens.common.cache import Advance
from tars_lens.common.errors import TarsError
from tars_lens.common.files import write_text
from tars_lens.common.surroundings import undisturbed
from tars_lens.method.disk_ranking import checkpoint_cosines
from tars_lens.method.ranking import Null, null_of, random_directions
from tars_lens.method.targeting import TargetingVector
from tars_lens.model.layout import checkpoint_slots

_DIRECTIONS = 16


@dataclass(frozen=True, eq=False)
class DiskInspection:
    """Saved vectors against a checkpoint.

    Attributes:
        ranking: The highest cosines of each: vector (the file's stem), layer, role, neuron, label,
            cosine, norm, above_null.
        null: What chance gives.
    """

    ranking: pd.DataFrame
    null: Null

    def to_frame(self) -> pd.DataFrame:
        """The ranking."""
        return self.ranking.copy()

    def to_dict(self) -> dict[str, Any]:
        """Both tables, as JSON values."""
        null = {name: value for name, value in vars(self.null).items() if name != "quantiles"}
        null["spread"] = self.null.to_frame().to_dict("records")
        return {"ranking": self.ranking.to_dict("records"), "null": null}

    def save(self, folder: Path | str) -> tuple[str, ...]:
        """Writes both tables as CSV; returns the files' names.

        Raises:
            TarsError: The folder can't be written.
        """
        for name, table in (("ranking", self.ranking), ("null", self.null.to_frame())):
            write_text(Path(folder) / f"{name}.csv", table.to_csv(index=False))
        return ("ranking.csv", "null.csv")


@undisturbed
def inspect_on_disk(
    folder: Path | str,
    files: Sequence[Path | str],
    *,
    top: int = 20,
    seed: int = 0,
    advance: Advance | None = None,
) -> DiskInspection:
    """Ranks a checkpoint's weight vectors against saved targeting vectors; loads no model.

    Args:
        folder: The checkpoint.
        files: What `TargetingVector.save` or `inspect --out` has written.
        top: How many weight vectors to keep of each.
        seed: Of the null.
        advance: Told the progress.

    Raises:
        TarsError: A file that isn't a targeting vector or is of another width, no file at all, a
            `top` below 1, or a checkpoint that can't be read.
    """
    if top < 1:
        raise TarsError(f"--top must be at least 1, got {top}.")
    if not files:
        raise TarsError("there is nothing to rank against: give at least one vector.")
    width = next(iter(checkpoint_slots(folder).values())).shape[1]
    vectors = [TargetingVector.load(file).vector for file in files]
    for file, vector in zip(files, vectors, strict=True):
        if len(vector) != width:
            raise TarsError(
                f"{str(file)!r} has width {len(vector)}, and {str(folder)!r} has {width}: use a "
                "vector that was made on this model."
            )
    random = random_directions(_DIRECTIONS, width, seed=seed)
    found = checkpoint_cosines(folder, torch.stack([*vectors, *random]), advance=advance)
    null = null_of(replace(found, values=found.values[len(files) :]))
    ranking = replace(found, values=found.values[: len(files)]).top(top)
    names = [Path(file).stem for file in files]
    ranking.insert(0, "vector", [names[target] for target in ranking.pop("target")])
    ranking["above_null"] = ranking["cosine"] > null.threshold
    return DiskInspection(ranking, null)
