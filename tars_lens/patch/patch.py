"""A patch: made for a base, put on a model and taken off again, saved and loaded."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Edits, Place, Rows, check_edits
from tars_lens.patch import patch_file, stack
from tars_lens.patch.edit import Edit, PatchRows, package_versions, plain_values


@dataclass(frozen=True, eq=False)
class Patch(Edit):
    """An `Edit` that can be put on a model, which says what each of its attributes is.

    New values are stored, not differences, so that replay is exact in every dtype.
    """

    @classmethod
    @undisturbed
    def build(
        cls,
        lens: Lens,
        edits: Edits,
        *,
        concepts: Iterable[Concept | dict[str, Any]] = (),
        method: Mapping[str, Any] | None = None,
        seed: int = 0,
        figures: Mapping[str, Any] | None = None,
        cosines: Mapping[Place, Tensor] | None = None,
        label: str | None = None,
    ) -> "Patch":
        """A patch of new rows for a lens's base; writes nothing.

        Old rows and hashes are those of the base itself, whatever patches are applied just now.

        Args:
            lens: The model.
            edits: The new rows.
            concepts: What they remove.
            method: The method's settings, as JSON values.
            seed: The seed that the rows came from.
            figures: What was measured, as JSON values.
            cosines: For each place, the cosine of each row with the targeting vector.
            label: What messages call the patch; the concepts' names where not given.

        Raises:
            TarsError: A row that doesn't fit the model, or settings that aren't JSON values.
        """
        check_edits(lens, edits)
        filled = {place: rows for place, rows in edits.items() if len(rows.neurons)}
        cards = tuple(c.to_dict() if isinstance(c, Concept) else c for c in concepts)
        given = cosines or {}
        return cls(
            edits={
                place: _patch_rows(stack.base_rows(lens, place, rows.neurons), rows, given, place)
                for place, rows in sorted(filled.items())
            },
            base_name=lens.name,
            base_sha256={place: stack.base_sha256(lens, place) for place in sorted(filled)},
            concepts=tuple(plain_values("concepts", list(cards))),
            method=plain_values("method", dict(method or {})),
            seed=seed,
            versions=package_versions(),
            figures=plain_values("figures", dict(figures or {})),
            label=label or " + ".join(str(card["name"]) for card in cards) or "patch",
            weights_sha256=lens.sha256,
        )

    def apply(self, lens: Lens, *, force: bool = False) -> None:
        """Writes the new rows into the model, on top of the patches that it already has.

        Args:
            lens: The model.
            force: Write even where the base isn't the one that the patch was made for. What was
                there is kept, so that `revert` is exact all the same.

        Raises:
            TarsError: Another base, rows that don't fit, or the patch is applied already. Nothing
                was written.
        """
        stack.apply(lens, self, force=force)

    def revert(self, lens: Lens) -> None:
        """Takes the patch out: what remains is what it would be, had it never been applied.

        Raises:
            TarsError: The patch isn't applied to this model.
        """
        stack.revert(lens, self)

    @contextmanager
    def applied(self, lens: Lens, *, force: bool = False) -> Iterator[None]:
        """Holds the patch in the model while the block runs; see `apply`."""
        stack.apply(lens, self, force=force)
        try:
            yield
        finally:
            if stack.is_applied(lens, self):  # else the block itself has taken it out
                stack.revert(lens, self)

    def save(self, path: Path | str) -> None:
        """Writes one safetensors file, whole or not at all; the same patch gives the same bytes.

        Raises:
            TarsError: The file can't be written.
        """
        patch_file.save(self, path)

    @classmethod
    def load(cls, path: Path | str) -> "Patch":
        """Reads a patch file.

        Raises:
            TarsError: No such file, or not a whole patch file of a version that is known.
        """
        return cls(**patch_file.load(path))


def _patch_rows(base: Rows, rows: Rows, cosines: Mapping[Place, Tensor], place: Place) -> PatchRows:
    neurons = rows.neurons.to("cpu", torch.int64, copy=True)
    cosine = torch.full((len(neurons),), torch.nan)
    if place in cosines:
        cosine = cosines[place].detach().to("cpu", torch.float32, copy=True)
    if cosine.shape != neurons.shape:
        raise TarsError(
            f"layer {place[0]}, role {place[1]!r}: {len(neurons)} rows need as many cosines, got "
            f"shape {tuple(cosine.shape)}."
        )
    old = base.values.cpu()
    new = rows.values.detach().to("cpu", old.dtype, copy=True)
    if not old.isfinite().all():
        raise TarsError(
            f"layer {place[0]}, role {place[1]!r}: a row of the model itself is not finite, so no "
            "patch could put it back. Get the model's weights again."
        )
    return PatchRows(neurons, old, new, cosine)
