"""Patches looked at, compared and joined."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch

from tars_lens.common.errors import TarsError
from tars_lens.model.weights import Place, neuron_label
from tars_lens.patch.edit import PatchRows, angles_degrees, package_versions
from tars_lens.patch.patch import Patch


class PatchView(NamedTuple):
    """What there is to see of a patch.

    Attributes:
        header: Label, base, concepts, number of rows, method, seed, versions, figures.
        frame: `Patch.to_frame`.
    """

    header: dict[str, Any]
    frame: pd.DataFrame


def show(patch: Patch) -> PatchView:
    """A patch as a header and a table."""
    return PatchView(
        header={
            "label": patch.label,
            "sha256": patch.sha256,
            "base": patch.base_name,
            "base_sha256": {f"L{k[0]}.{k[1]}": v for k, v in patch.base_sha256.items()},
            "concepts": [str(card.get("name", "")) for card in patch.concepts],
            "rows": patch.n_rows,
            "method": patch.method,
            "seed": patch.seed,
            "versions": patch.versions,
            "figures": patch.figures,
        },
        frame=patch.to_frame(),
    )


def diff(a: Patch, b: Patch) -> pd.DataFrame:
    """One line for each row that either patch touches.

    `status` is `only_a`, `only_b`, `same` (equal new values, bit by bit) or `different`;
    `angle_degrees` is the angle between the two new rows, where both have one.
    """
    lines = []
    for place in sorted(a.edits.keys() | b.edits.keys()):
        ours, theirs = _index(a, place), _index(b, place)
        for neuron in sorted(ours.keys() | theirs.keys()):
            status, angle = _compare(a, b, place, ours.get(neuron), theirs.get(neuron))
            label = neuron_label(place[0], neuron)
            lines.append((*place, neuron, label, status, angle))
    columns = ["layer", "role", "neuron", "label", "status", "angle_degrees"]
    return pd.DataFrame(lines, columns=columns)


def merge(patches: Sequence[Patch], *, label: str | None = None) -> Patch:
    """One patch that does what the patches do one after another; the later wins a shared row.

    Figures aren't taken over: they were measured on the parts.

    Raises:
        TarsError: No patch, or patches of different bases.
    """
    if not patches:
        raise TarsError("nothing to merge: give at least one patch.")
    first = patches[0]
    _check_same_base(patches)
    places = sorted({place for patch in patches for place in patch.edits})
    return Patch(
        edits={
            place: join_rows([p.edits[place] for p in patches if place in p.edits])
            for place in places
        },
        base_name=first.base_name,
        base_sha256={place: _hash(patches, place) for place in places},
        concepts=tuple(card for patch in patches for card in patch.concepts),
        method=_method(patches),
        seed=first.seed,
        versions=package_versions(),
        label=label or " + ".join(patch.label for patch in patches),
        weights_sha256=_common([patch.weights_sha256 for patch in patches]),
    )


def join_rows(parts: Sequence[PatchRows]) -> PatchRows:
    """Rows of one matrix as one; of a neuron that several parts have, the last one's."""
    neurons = torch.cat([part.neurons for part in parts])
    last = {neuron: i for i, neuron in enumerate(neurons.tolist())}  # a later index overwrites
    keep = torch.tensor(list(last.values()))
    return PatchRows(
        neurons[keep],
        torch.cat([part.old for part in parts])[keep],
        torch.cat([part.new for part in parts])[keep],
        torch.cat([part.cosine for part in parts])[keep],
    )


def _index(patch: Patch, place: Place) -> dict[int, int]:
    if place not in patch.edits:
        return {}
    return {neuron: i for i, neuron in enumerate(patch.edits[place].neurons.tolist())}


def _compare(
    a: Patch, b: Patch, place: Place, i: int | None, j: int | None
) -> tuple[str, float | None]:
    if i is None:
        return "only_b", None
    if j is None:
        return "only_a", None
    ours, theirs = a.edits[place].new[i : i + 1], b.edits[place].new[j : j + 1]
    if ours.shape != theirs.shape:
        return "different", None
    same = ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    return "same" if same else "different", float(angles_degrees(ours, theirs)[0])


def _check_same_base(patches: Sequence[Patch]) -> None:
    """Each must share a proven matrix, or else the base's name, with those before it."""
    first_at: dict[Place, Patch] = {}
    names: set[str] = set()
    for patch in patches:
        shared = sorted(first_at.keys() & patch.edits.keys())
        for place in shared:
            _check_same_matrix(first_at[place], patch, place)
        if names and not shared and patch.base_name not in names:
            raise TarsError(
                f"{patches[0].label!r} is a patch of {patches[0].base_name}, {patch.label!r} of "
                f"{patch.base_name}. Only patches of one base can be merged."
            )
        names.add(patch.base_name)
        first_at = {**dict.fromkeys(patch.edits, patch), **first_at}


def _check_same_matrix(a: Patch, b: Patch, place: Place) -> None:
    ours, theirs = (
        (p.base_sha256[place], f"width {p.edits[place].new.shape[1]}, {p.edits[place].new.dtype}")
        for p in (a, b)
    )
    if ours != theirs:
        raise TarsError(
            f"{a.label!r} and {b.label!r} are patches of different bases: layer {place[0]}, role "
            f"{place[1]!r} has SHA-256 {ours[0][:12]} ({ours[1]}) and {theirs[0][:12]} "
            f"({theirs[1]}). Only patches of one base can be merged."
        )


def _hash(patches: Sequence[Patch], place: Place) -> str:
    return next(p.base_sha256[place] for p in patches if place in p.edits)


def _common(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else ""


def _method(patches: Sequence[Patch]) -> dict[str, Any]:
    methods = [patch.method for patch in patches]
    if all(method == methods[0] for method in methods):
        return methods[0]
    return {"name": "merged", "parts": methods}
