"""What a patch holds: the rows of a base, their old values, their new ones, and their origin."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import pandas as pd
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from tars_lens.common.errors import TarsError, reason
from tars_lens.model.weights import Edits, Place, Rows, neuron_label

Kind = TypeVar("Kind", bound="Edit")

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
class Edit:
    """Rows to write into one base, and where they came from: what is kept in a file and on a stack.

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

    def with_figures(self: Kind, figures: Mapping[str, Any]) -> Kind:
        """The same patch with these figures beside those that it has."""
        return replace(self, figures=plain_values("figures", {**self.figures, **figures}))


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


def plain_values(name: str, value: Any) -> Any:
    """`value` as reading it back from the file will give it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TarsError(f"a patch's {name} must be JSON values: {reason(error)}.") from error


def _frame(place: Place, rows: PatchRows) -> pd.DataFrame:
    layer, role = place
    return pd.DataFrame(
        {
            "layer": layer,
            "role": role,
            "neuron": rows.neurons.numpy(),
            "label": [neuron_label(layer, neuron) for neuron in rows.neurons.tolist()],
            "cosine": rows.cosine.numpy(),
            "old_norm": rows.old.double().norm(dim=1).numpy(),
            "new_norm": rows.new.double().norm(dim=1).numpy(),
            "angle_degrees": angles_degrees(rows.old, rows.new).numpy(),
        }
    )
