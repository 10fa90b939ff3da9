"""Patches put into a checkpoint on disk, with no model in memory."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.common.files import user_path
from tars_lens.model.checkpoints import from_folder
from tars_lens.model.folders import copy_checkpoint, weight_files, whole_folder
from tars_lens.model.layout import Slot, StoredTensor, checkpoint_slots, stored_tensors
from tars_lens.model.weights import Place
from tars_lens.patch.edit import PatchRows
from tars_lens.patch.patch import Patch
from tars_lens.patch.verification import Verification, base_changed, planned_rows

logger = logging.getLogger(__name__)

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 24


def export(
    patches: Patch | Sequence[Patch],
    source: Path | str,
    out: Path | str,
    *,
    force: bool = False,
    link: bool = False,
) -> Path:
    """Copies an HF checkpoint with patches put in: a folder for `from_pretrained`.

    The files are cloned where the disk can, else copied, and the rows written over in place, so
    that memory holds one matrix at a time, whatever the model's size. The base is proven by hash;
    what was written is read back and compared with the base's bits. The folder appears whole or not
    at all, and reaches the disk in the system's own time, as any copy does.

    Args:
        patches: One patch, or several; the later wins a shared row.
        source: The checkpoint's folder (safetensors).
        out: The new folder; it mustn't hold anything yet.
        force: Write even where the checkpoint isn't the base that a patch was made for.
        link: Make the weight files that hold no edited row hard links to the source's. They take
            no space, but a program that writes to such a file changes the source's with it.

    Returns:
        The new folder.

    Raises:
        TarsError: Another base, a checkpoint that can't be edited, or a folder that can't be
            written or isn't empty.
    """
    chosen = (patches,) if isinstance(patches, Patch) else tuple(patches)
    source, out = user_path(source), user_path(out)
    slots = checkpoint_slots(source)
    for patch in chosen:
        _check(patch, slots, source, force)
    touched = {place for patch in chosen for place in patch.edits}
    files = {slots[place].tensor.file for place in touched}
    with whole_folder(out) as folder:
        copy_checkpoint(source, folder, set(weight_files(source)) - files if link else ())
        copied = checkpoint_slots(folder)
        for patch in chosen:
            for place, rows in patch.edits.items():
                write_slot(copied[place], rows)
        for place in touched:
            final = final_bits(chosen, place, slots[place], "new")
            check_copied(copied[place], slots[place], final)
    return out


def verify_checkpoint(
    patches: Patch | Sequence[Patch], source: Path | str, edited: Path | str
) -> Verification:
    """Compares an edited checkpoint with its base, tensor by tensor and bit by bit.

    `restored_identical` says that the patches' old rows, put back, give the base's tensors, and
    that the base is the one that the patches were made on. Where the two share files, a change
    shows in both, and so in the base's hash alone.

    Raises:
        TarsError: A folder that isn't a checkpoint, or patches for another layout.
    """
    chosen = (patches,) if isinstance(patches, Patch) else tuple(patches)
    before, after = stored_tensors(source), stored_tensors(edited)
    slots = checkpoint_slots(source)
    for patch in chosen:
        for place, rows in patch.edits.items():
            check_fits(patch, slots, place, rows, Path(source))
    touched = {slots[place].tensor.key for patch in chosen for place in patch.edits}
    others = before.keys() == after.keys()
    for key in before.keys() & after.keys() - touched:
        others &= _alike(before[key], after[key]) and _equal(before[key], after[key])
    changed, restored = 0, True
    for key in touched:
        if key not in after or not _alike(before[key], after[key]):
            others = restored = False
            continue
        count, alone, back = _compare(before[key], after[key], slots, chosen)
        changed, others, restored = changed + count, others and alone, restored and back
    restored &= others and not (
        _shared(source, edited) and base_changed(chosen, from_folder(Path(source)).sha256)
    )
    return Verification(changed, planned_rows(chosen), others, restored)


def _shared(source: Path | str, edited: Path | str) -> bool:
    """Whether any weight file of two checkpoints is one file under two names."""
    ours, theirs = (
        {(status.st_dev, status.st_ino) for status in map(Path.stat, weight_files(folder))}
        for folder in (source, edited)
    )
    return not ours.isdisjoint(theirs)


def _check(patch: Patch, slots: dict[Place, Slot], source: Path, force: bool) -> None:
    """Refuses a patch that a checkpoint has no place for, or that is of another base."""
    for place, rows in patch.edits.items():
        check_fits(patch, slots, place, rows, source)
        check_base(patch, place, slots[place], slots[place].sha256(), force)


def check_base(patch: Patch, place: Place, slot: Slot, actual: str, force: bool) -> None:
    """Refuses, or with force warns of, a matrix whose base isn't the one that a patch is for.

    Args:
        patch: The patch.
        place: Which of its matrices.
        slot: Where that stands.
        actual: The hash of its base.
        force: Whether to warn alone.
    """
    problem = mismatch(patch, place, slot, actual)
    if problem and not force:
        raise TarsError(
            f"{patch.label!r} was made for another base ({patch.base_name}): {problem} Nothing was "
            "written: choose that base's folder, or do it all the same with force=True (--force)."
        )
    if problem:
        logger.warning("%s is forced onto another base: %s", patch.label, problem)


def check_fits(
    patch: Patch, slots: dict[Place, Slot], place: Place, rows: PatchRows, source: Path
) -> None:
    """Refuses rows that a checkpoint has no place for, or no numbers in its dtype."""
    where = f"layer {place[0]}, role {place[1]!r}"
    if place not in slots:
        raise TarsError(f"{patch.label!r} edits {where}, which {str(source)!r} doesn't have.")
    count, width = slots[place].shape
    fits = 0 <= int(rows.neurons.min()) <= int(rows.neurons.max()) < count
    if rows.new.shape[1] != width or not fits:
        raise TarsError(
            f"{patch.label!r} edits neurons up to {int(rows.neurons.max())} of width "
            f"{rows.new.shape[1]} at {where}; {str(source)!r} has {count} of width {width}."
        )
    if not torch.isfinite(rows.new.to(slots[place].dtype)).all():
        raise TarsError(
            f"{patch.label!r} has a row at {where} that is not finite in the checkpoint's "
            f"{slots[place].dtype}. Nothing was written: make the patch on this checkpoint."
        )


def mismatch(patch: Patch, place: Place, slot: Slot, actual: str) -> str:
    """What of one matrix, whose base has the hash `actual`, isn't as the patch expects, or `""`."""
    if slot.dtype != patch.edits[place].new.dtype:
        return (
            f"{slot.tensor.key} is {slot.dtype} on disk and {patch.edits[place].new.dtype} in the "
            "patch (make the patch on a model that is loaded in its checkpoint's dtype)."
        )
    expected = patch.base_sha256[place]
    if expected != actual:
        return f"{slot.tensor.key} has SHA-256 {actual[:12]} on disk, {expected[:12]} in the patch."
    return ""


def write_slot(slot: Slot, rows: PatchRows) -> None:
    """Writes the new rows over those in the file that the slot stands in."""
    slot.view(slot.tensor.bits("r+"))[rows.neurons.numpy()] = _bits(rows.new, slot)


def check_copied(slot: Slot, base: Slot, rows: Mapping[int, np.ndarray]) -> None:
    """Reads a matrix back: it holds the rows, and is the base's everywhere else.

    Args:
        slot: Where it was written.
        base: The same matrix of the base.
        rows: By neuron, as bits, what was to be written.

    Raises:
        TarsError: The disk doesn't hold what was written to it.
    """
    expected = base.view(base.tensor.bits("c"))
    expected[list(rows)] = list(rows.values())
    if not np.array_equal(slot.view(slot.tensor.bits()), expected):
        raise TarsError(
            f"{slot.tensor.key} doesn't read back from {str(slot.tensor.file)!r} as it was "
            "written: check the disk, and try again."
        )


def _bits(values: Float[Tensor, "rows d_model"], slot: Slot) -> np.ndarray:
    """Rows as unsigned integers, in the dtype of a slot."""
    cast = values.to(slot.dtype).contiguous()
    return cast.view(_INTEGERS[cast.itemsize]).numpy().view(f"<u{cast.itemsize}")


def _alike(a: StoredTensor, b: StoredTensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    ours, theirs = a.raw(), b.raw()
    starts = range(0, len(ours), _CHUNK)
    return all(np.array_equal(ours[i : i + _CHUNK], theirs[i : i + _CHUNK]) for i in starts)


def _compare(
    before: StoredTensor,
    after: StoredTensor,
    slots: dict[Place, Slot],
    patches: Sequence[Patch],
) -> tuple[int, bool, bool]:
    """Rows that changed in one tensor; whether its rest stays; whether old rows restore it."""
    old, new = before.bits(), after.bits()
    differs, undone = old != new, np.array(new)
    count, inside = 0, 0
    for place, slot in slots.items():
        if slot.tensor.key != before.key:
            continue
        final = final_bits(patches, place, slot, "new")
        cells, values = slot.view(differs), slot.view(new)
        count += int(cells.any(axis=1).sum())
        for neuron, row in final.items():
            inside += int(cells[neuron].sum())
            count -= bool(cells[neuron].any() and not np.array_equal(values[neuron], row))
        for neuron, row in final_bits(patches, place, slot, "old").items():
            slot.view(undone)[neuron] = row
    return count, int(differs.sum()) == inside, np.array_equal(undone, old)


def final_bits(
    patches: Sequence[Patch], place: Place, slot: Slot, part: str
) -> dict[int, np.ndarray]:
    """By neuron, the bits that patches leave in a matrix, or with `old` those that they found."""
    final: dict[int, np.ndarray] = {}
    for patch in patches:
        if place in patch.edits:
            rows = patch.edits[place]
            bits = _bits(getattr(rows, part), slot)
            final.update(zip(rows.neurons.tolist(), bits, strict=True))
    return final
