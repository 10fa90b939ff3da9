"""A patch: which rows of which base, their old values and their new ones."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Edits, Place, Rows, check_edits

_PACKAGES = ("tars-lens", "torch", "transformer-lens", "transformers")


@dataclass(frozen=True, eq=False)
class PatchRows:
    """The edited rows of one weight matrix.

    Attributes:
        neurons: Row indices, each once, in the order in which they were chosen.
        old: The rows of the unedited base, in its dtype.
        new: What stands there when the patch is applied, in the base's dtype.
        cosine: Of each old row with the vector that replaces it, reversed; NaN where it wasn't
            given.
    """

    neurons: Int64[Tensor, " rows"]
    old: Float[Tensor, "rows d_model"]
    new: Float[Tensor, "rows d_model"]
    cosine: Float32[Tensor, " rows"]


@dataclass(frozen=True, eq=False)
class Patch:
    """Rows to write into one base, and where they came from.

    New values are stored, not differences, so that replay is exact in every dtype.

    Attributes:
        edits: The rows by the matrix they stand in.
        base_name: What the base model was called.
        base_sha256: The hash of each touched matrix before any edit (`Lens.tensor_sha256`).
        concepts: The cards, as `Concept.to_dict` gives them.
        method: Every setting of the method.
        seed: The seed that it ran with.
        versions: The packages that made it.
        figures: What was measured on it.
        label: What messages call the patch.
        weights_sha256: The hash of the base's weight files (`Checkpoint.sha256`), where known.
    """

    edits: dict[Place, PatchRows]
    base_name: str
    base_sha256: dict[Place, str]
    concepts: tuple[dict[str, Any], ...] = ()
    method: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    label: str = "patch"
    weights_sha256: str = ""

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
        from tars_lens.patch import stack  # the stack stands above the patch: late, or a circle

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
            concepts=tuple(_plain("concepts", list(cards))),
            method=_plain("method", dict(method or {})),
            seed=seed,
            versions=package_versions(),
            figures=_plain("figures", dict(figures or {})),
            label=label or " + ".join(str(card["name"]) for card in cards) or "patch",
            weights_sha256=lens.sha256,
        )

    @property
    def n_rows(self) -> int:
        """The number of edited rows."""
        return sum(len(rows.neurons) for rows in self.edits.values())

    @property
    def neurons(self) -> set[tuple[int, int]]:
        """`(layer, neuron)` of every neuron that it touches."""
        return {
            (layer, neuron)
            for (layer, _), rows in self.edits.items()
            for neuron in rows.neurons.tolist()
        }

    @property
    def new_rows(self) -> Edits:
        """What `write_rows` needs to put the patch in."""
        return {place: Rows(rows.neurons, rows.new) for place, rows in self.edits.items()}

    @cached_property
    def sha256(self) -> str:
        """The hash of what the patch does to which base: two files of one edit share it."""
        digest = hashlib.sha256()
        for place, rows in sorted(self.edits.items()):
            order = rows.neurons.argsort()
            digest.update(f"{place} {self.base_sha256[place]} {rows.new.dtype}".encode())
            for values in (rows.neurons[order], rows.new[order]):
                digest.update(values.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to_frame(self) -> pd.DataFrame:
        """One line per edited row: where it stands, its cosine, norms, and angle in degrees."""
        columns = [
            *("layer", "role", "neuron", "label"),
            *("cosine", "old_norm", "new_norm", "angle_degrees"),
        ]
        parts = [_frame(place, rows) for place, rows in self.edits.items()]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def with_figures(self, figures: Mapping[str, Any]) -> "Patch":
        """The same patch with these figures beside those that it has."""
        return replace(self, figures=_plain("figures", {**self.figures, **figures}))

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
        from tars_lens.patch import stack

        stack.apply(lens, self, force=force)

    def revert(self, lens: Lens) -> None:
        """Takes the patch out: what remains is what it would be, had it never been applied.

        Raises:
            TarsError: The patch isn't applied to this model.
        """
        from tars_lens.patch import stack

        stack.revert(lens, self)

    @contextmanager
    def applied(self, lens: Lens, *, force: bool = False) -> Iterator[None]:
        """Holds the patch in the model while the block runs; see `apply`."""
        from tars_lens.patch import stack

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
        from tars_lens.patch import patch_file

        patch_file.save(self, path)

    @classmethod
    def load(cls, path: Path | str) -> "Patch":
        """Reads a patch file.

        Raises:
            TarsError: No such file, or not a whole patch file of a version that is known.
        """
        from tars_lens.patch import patch_file

        return patch_file.load(path)


def package_versions() -> dict[str, str]:
    """The versions of this package and of those that its results depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that isn't installed
            found[package] = "unknown"
    return found


def angles_degrees(
    a: Float[Tensor, "rows d_model"], b: Float[Tensor, "rows d_model"]
) -> Float64[Tensor, " rows"]:
    """The angle between the rows of `a` and of `b`, in degrees.

    By W. Kahan's `2 atan2(|u - v|, |u + v|)` of the unit rows: the arc cosine loses half of its
    digits at small angles.
    """
    u = torch.nn.functional.normalize(a.double(), dim=1)
    v = torch.nn.functional.normalize(b.double(), dim=1)
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1)))


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


def _plain(name: str, value: Any) -> Any:
    """`value` as reading it back from the file will give it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TarsError(f"a patch's {name} must be JSON values: {error}.") from error


def _frame(place: Place, rows: PatchRows) -> pd.DataFrame:
    layer, role = place
    return pd.DataFrame(
        {
            "layer": layer,
            "role": role,
            "neuron": rows.neurons.numpy(),
            "label": [f"L{layer}N{neuron}" for neuron in rows.neurons.tolist()],
            "cosine": rows.cosine.numpy(),
            "old_norm": rows.old.double().norm(dim=1).numpy(),
            "new_norm": rows.new.double().norm(dim=1).numpy(),
            "angle_degrees": angles_degrees(rows.old, rows.new).numpy(),
        }
    )
