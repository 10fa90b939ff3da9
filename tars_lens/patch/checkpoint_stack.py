"""Patches on a checkpoint on disk: applied with a record, so that any of them can be taken out."""

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tars_lens.common.errors import TarsError
from tars_lens.common.files import user_path
from tars_lens.model.folders import copy_checkpoint, whole_folder
from tars_lens.model.layout import Slot, checkpoint_slots
from tars_lens.model.weights import Place
from tars_lens.patch.edit import PatchRows
from tars_lens.patch.export import (
    check_base,
    check_copied,
    check_fits,
    final_bits,
    mismatch,
    write_slot,
)
from tars_lens.patch.patch import Patch

RECORD = "tars_lens_patches"
"""The folder, inside an edited checkpoint, that holds its patches in the order applied."""

_RECORDED = re.compile(r"(\d{3,6})_.*\.safetensors", re.ASCII | re.DOTALL)


def apply_to_checkpoint(
    patches: Sequence[Patch], source: Path | str, out: Path | str, *, force: bool = False
) -> Path:
    """`export`, with the patches kept inside the new folder for `revert_checkpoint`.

    A source that has patches already gets these on top; the base is what it was before them.

    Raises:
        TarsError: See `export`; or a patch that the source has already.
    """
    source, out = user_path(source), user_path(out)
    before = recorded_patches(source)
    _check_new(patches, before, source)
    return _rebuild(source, out, before, before, patches, force=force)


def revert_checkpoint(patch: Patch, source: Path | str, out: Path | str) -> Path:
    """Copies an edited checkpoint with one of its patches taken out, whatever came after it.

    What remains is bit for bit what the other patches alone make of the base.

    Raises:
        TarsError: The checkpoint has no record of this patch, or was changed since its patches
            were applied; or `out` can't be written.
    """
    source, out = user_path(source), user_path(out)
    before = recorded_patches(source)
    return _rebuild(source, out, before, _without(patch, before, source))


def recorded_patches(folder: Path | str) -> list[Patch]:
    """The patches of an edited checkpoint, in the order applied; none where it has no record.

    Raises:
        TarsError: The record holds a file that isn't a patch, or that wasn't put there by a write.
    """
    found: dict[int, Path] = {}
    for file in sorted((Path(folder) / RECORD).glob("*.safetensors")):
        own = _RECORDED.fullmatch(file.name)
        number = int(own[1]) if own else None
        if number is None or number in found:
            raise TarsError(
                f"{str(file)!r} is no file that tars_lens keeps there: the folder holds the "
                "checkpoint's own patches alone. Move it elsewhere; `patch apply` puts it on."
            )
        found[number] = file
    return [Patch.load(file) for _, file in sorted(found.items())]


def _check_new(patches: Sequence[Patch], before: Sequence[Patch], source: Path) -> None:
    """Refuses a patch that a checkpoint has already, and one that is given twice."""
    for index, patch in enumerate(patches):
        if any(_is(patch, other) for other in patches[:index]):
            raise TarsError(
                f"{patch.label!r} is given twice. Nothing was written: give each patch once."
            )
        if any(_is(patch, other) for other in before):
            raise TarsError(f"{patch.label!r} is applied to {str(source)!r} already.")


def _without(patch: Patch, before: Sequence[Patch], source: Path) -> list[Patch]:
    """The recorded patches but this one; refuses one that isn't among them."""
    remaining = [other for other in before if not _is(patch, other)]
    if len(remaining) == len(before):
        there = ", ".join(repr(other.label) for other in before) or "none"
        raise TarsError(
            f"{patch.label!r} is not applied to {str(source)!r}. Recorded there: {there}. Only a "
            "checkpoint made by `patch apply` keeps a record; `patch export` makes a plain one."
        )
    return remaining


def _on_base(
    patches: Sequence[Patch],
    before: Sequence[Patch],
    slots: dict[Place, Slot],
    folder: Path,
    *,
    force: bool = False,
) -> list[Patch]:
    """Patches as a checkpoint's record keeps them: with what they replace there.

    That is what a patch was made on, unless it is forced onto another base. Only with the rows,
    the hashes and the dtype of that one can it be taken out again. On the way every matrix that
    the checkpoint's own patches touch is proven to be, without them, what they were put on.
    """
    edits: list[dict[Place, PatchRows]] = [{} for _ in patches]
    hashes: list[dict[Place, str]] = [{} for _ in patches]
    for place in sorted({place for patch in (*before, *patches) for place in patch.edits}):
        slot = slots[place]
        whole, digest = _undone(slot, place, before, folder)
        for patch, rows_by_place, hash_by_place in zip(patches, edits, hashes, strict=True):
            if place in patch.edits:
                check_base(patch, place, slot, digest, force)
                rows = patch.edits[place]
                old = torch.from_numpy(whole[rows.neurons.numpy()]).view(slot.dtype)
                if not old.isfinite().all():  # a record of it couldn't be read again
                    raise TarsError(
                        f"{str(folder)!r} holds a row in {slot.tensor.key} that is not finite, "
                        f"which {patch.label!r} replaces. Nothing was written: get the base again."
                    )
                rows_by_place[place] = replace(rows, old=old, new=rows.new.to(slot.dtype))
                hash_by_place[place] = digest
    return [
        replace(patch, edits=rows, base_sha256=found)
        for patch, rows, found in zip(patches, edits, hashes, strict=True)
    ]


def _undone(
    slot: Slot, place: Place, before: Sequence[Patch], folder: Path
) -> tuple[np.ndarray, str]:
    """A matrix without the checkpoint's patches, proven to be their base's, and its hash."""
    whole = slot.matrix()
    for neuron, row in final_bits(before[::-1], place, slot, "old").items():
        whole[neuron] = row
    digest = hashlib.sha256(whole.data).hexdigest()
    if any(place in patch.edits and mismatch(patch, place, slot, digest) for patch in before):
        raise TarsError(
            f"{str(folder)!r} was changed since its patches were applied: {slot.tensor.key} can't "
            "be put back. Nothing was written."
        )
    return whole, digest


def _is(patch: Patch, recorded: Patch) -> bool:
    """Whether a recorded patch is this one, on whatever base it was put."""
    if patch.edits.keys() != recorded.edits.keys():
        return False
    edits = {
        place: replace(rows, new=rows.new.to(recorded.edits[place].new.dtype))
        for place, rows in patch.edits.items()
    }
    there = replace(patch, edits=edits, base_sha256=recorded.base_sha256)
    return there.sha256 == recorded.sha256


def _rebuild(
    source: Path,
    out: Path,
    before: Sequence[Patch],
    left: Sequence[Patch],
    chosen: Sequence[Patch] = (),
    *,
    force: bool = False,
) -> Path:
    """A copy that has, of the patches that the source has, those left, and the chosen on top."""
    there = checkpoint_slots(source)
    for patch in (*before, *chosen):
        for place, rows in patch.edits.items():
            check_fits(patch, there, place, rows, source)
    after = [*left, *_on_base(chosen, before, there, source, force=force)]
    undo = before[::-1]  # of a shared row the first patch knows the base's, and so comes last
    places = {place for patch in (*before, *after) for place in patch.edits}
    with whole_folder(out) as folder:
        copy_checkpoint(source, folder)
        slots = checkpoint_slots(folder)
        for place in places:
            for rows in (patch.edits[place] for patch in undo if place in patch.edits):
                write_slot(slots[place], replace(rows, new=rows.old))
            for rows in (patch.edits[place] for patch in after if place in patch.edits):
                write_slot(slots[place], rows)
            final = final_bits(undo, place, slots[place], "old")
            final.update(final_bits(after, place, slots[place], "new"))
            check_copied(slots[place], there[place], final)
        _record(folder, after)
    return out


def _record(folder: Path, patches: Sequence[Patch]) -> None:
    shutil.rmtree(folder / RECORD, ignore_errors=True)
    for index, patch in enumerate(patches):
        # a label is free text: a slash in it must not lead out of the folder
        name = "".join(c if c.isalnum() or c in " +-." else "_" for c in patch.label)[:40]
        patch.save(folder / RECORD / f"{index:03d}_{name}.safetensors")
