"""Runs of a model that keep what passes some points, of whole texts or only as far as is asked."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tars_lens.common.errors import told
from tars_lens.model.grouping import groups, run_cost
from tars_lens.model.running import Point, Resumption, Seen, replacing, watching

Resume = tuple[int, Float[Tensor, "batch pos d_model"]]
"""`(layer, residual)`: where a run begins, and with what."""


class Capture:
    """What `Lens.capture` does it with.

    Args:
        model: The bridge or `HookedTransformer`.
        hooked: Whether it is a `HookedTransformer`.
    """

    def __init__(self, model: Any, *, hooked: bool) -> None:
        self._model = model
        self._hooked = hooked
        self._resumption = Resumption(model)

    @torch.no_grad()
    def whole(
        self,
        ids: Int[Tensor, "batch pos"],
        points: Sequence[Point],
        positions: Int[Tensor, " batch"] | None = None,
        resume: Resume | None = None,
        replace: Mapping[Point, Float[Tensor, "batch pos ..."]] | None = None,
    ) -> dict[Point, Float[Tensor, "..."]]:
        """One run of all that is given, ended where the last point was seen."""
        seen: dict[Point, Tensor] = {}
        wanted = set(points)

        def keep(point: Point, value: Tensor) -> None:
            if positions is None:
                seen[point] = value.detach().clone().to(ids.device)  # its layer's may be another
            else:
                rows = torch.arange(len(value), device=value.device)
                seen[point] = value[rows, positions.to(value.device)].detach().to(ids.device)
            if len(seen) == len(wanted):
                raise Seen

        with (
            self._resumption.at(resume),
            replacing(self._model, replace or {}),
            watching(self._model, wanted, keep, hooked=self._hooked),
            told(
                f"the model can't read {len(ids)} texts of {ids.shape[1]} tokens",
                "Give shorter texts, or choose another model or a device with more memory.",
            ),
            suppress(Seen),
        ):
            self._model(ids, return_type="logits")
        return seen

    def as_far_as(
        self,
        last: Int[Tensor, " batch"],
        ids: Int[Tensor, "batch pos"],
        points: Sequence[Point],
        positions: Int[Tensor, " batch"] | None = None,
        resume: Resume | None = None,
    ) -> dict[Point, Float[Tensor, "..."]]:
        """The same, each row no further than it matters, and rows of much the same length together.

        Args:
            last: The last position of each row that matters.
            ids: Token ids.
            points: Where to look.
            positions: One position a row, kept alone.
            resume: Where the run begins, and with what.
        """
        found = groups((last + 1).tolist(), run_cost(ids.device))
        seen: dict[Point, Tensor] = {}
        for rows in found:
            width = int(last[rows[-1]]) + 1
            if len(found) == 1 and width == ids.shape[1]:
                return self.whole(ids, points, positions, resume)
            index = torch.tensor(rows, device=ids.device)
            part = self.whole(
                ids[index, :width],
                points,
                None if positions is None else positions[index],
                None if resume is None else (resume[0], resume[1][index, :width]),
            )
            for point, values in part.items():
                size = ids.shape if positions is None else ids.shape[:1]
                if point not in seen:
                    seen[point] = values.new_zeros(*size, *values.shape[len(size) :])
                place = (index, slice(width)) if positions is None else index
                seen[point][place] = values
        return seen
