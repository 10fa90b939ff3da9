"""Patches put into a checkpoint on disk, with no model in memory."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.errors import TarsError
from tars_lens.layout import Slot, StoredTensor, checkpoint_slots, stored_tensors, weight_files
from tars_lens.patch import Patch, PatchRows
from tars_lens.verification import Verification, planned_rows
from tars_lens.weights import Place

logger = logging.getLogger(__name__)

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"}
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 24


def export(
    patches: Patch | Sequence[Patch],
    source: Path | str,
    out: Path | str,
    *,
    force: bool = False,
) -> Path:
    """Copies an HF checkpoint with patches put in: a folder for `from_pretrained`.

    The weight files are copied and the rows written over in place, so that memory holds one matrix
    at a time, whatever the model's size. The folder appears whole or not at all.

    Args:
        patches: One patch, or several; the later wins a shared row.
        source: The checkpoint's folder (safetensors).
        out: The new folder; it mustn't hold anything yet.
        force: Write even where the checkpoint isn't the base that a patch was made for.

    Returns:
        The new folder.

    Raises:
        TarsError: Another base, a checkpoint that can't be edited, or a folder that can't be
            written or isn't empty.
    """
    chosen = (patches,) if isinstance(patches, Patch) else tuple(patches)
    source, out = Path(source), Path(out)
    slots = checkpoint_slots(source)
    for patch in chosen:
        _check(patch, slots, source, force)
    with whole_folder(out) as folder:
        copy_checkpoint(source, folder)
        copied = checkpoint_slots(folder)
        for patch in chosen:
            for place, rows in patch.edits.items():
                write_slot(copied[place], rows)
    return out


def verify_checkpoint(
    patches: Patch | Sequence[Patch], source: Path | str, edited: Path | str
) -> Verification:
    """Compares an edited checkpoint with its base, tensor by tensor and bit by bit.

    `restored_identical` says that the patches' old rows, put back, give the base's tensors.

    Raises:
        TarsError: A folder that isn't a checkpoint, or patches for another layout.
    """
    chosen = (patches,) if isinstance(patches, Patch) else tuple(patches)
    before, after = stored_tensors(source), stored_tensors(edited)
    slots = checkpoint_slots(source)
    for patch in chosen:
        for place, rows in patch.edits.items():
            _check_fits(patch, slots, place, rows, Path(source))
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
    return Verification(changed, planned_rows(chosen), others, others and restored)


def _check(patch: Patch, slots: dict[Place, Slot], source: Path, force: bool) -> None:
    for place, rows in patch.edits.items():
        _check_fits(patch, slots, place, rows, source)
        problem = _mismatch(patch, place, slots[place])
        if problem and not force:
            raise TarsError(
                f"{patch.label!r} was made for another base ({patch.base_name}): {problem} Choose "
                "that base's folder, or export all the same with force=True (--force)."
            )
        if problem:
            logger.warning("%s is forced onto another base: %s", patch.label, problem)


def _check_fits(
    patch: Patch, slots: dict[Place, Slot], place: Place, rows: PatchRows, source: Path
) -> None:
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


def _mismatch(patch: Patch, place: Place, slot: Slot) -> str:
    """What of one matrix isn't as the patch expects, or `""`."""
    if slot.dtype != patch.edits[place].new.dtype:
        return (
            f"{slot.tensor.key} is {slot.dtype} on disk and {patch.edits[place].new.dtype} in the "
            "patch (make the patch on a model that is loaded in its checkpoint's dtype)."
        )
    expected, actual = patch.base_sha256[place], slot.sha256()
    if expected != actual:
        return f"{slot.tensor.key} has SHA-256 {actual[:12]} on disk, {expected[:12]} in the patch."
    return ""


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out`, and renames it to `out` if the block succeeds."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TarsError(f"{str(out)!r} exists and is not empty: choose another folder.")
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        folder.chmod(0o755)
        yield folder
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TarsError(
            f"cannot write {str(out)!r}: {reason}. Choose another folder, or free space."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def copy_checkpoint(source: Path, folder: Path) -> None:
    """The checkpoint's own weight files and everything that isn't weights."""
    weights = set(weight_files(source))
    sharded = source / "model.safetensors" not in weights
    kept = weights | {source / "model.safetensors.index.json"} if sharded else weights
    for file in sorted(source.iterdir()):
        is_weights = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
        if not file.is_file() or (is_weights and file not in kept):
            logger.info("%s is not copied: it is no part of the edited checkpoint.", file.name)
            continue
        shutil.copyfile(file, folder / file.name)
        (folder / file.name).chmod(0o644)


def write_slot(slot: Slot, rows: PatchRows) -> None:
    """Writes the new rows over those in the file that the slot stands in."""
    whole = slot.tensor.bits("r+")
    slot.view(whole)[rows.neurons.numpy()] = _bits(rows.new, slot)
    whole.flush()


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
        final = _final_bits(patches, place, slot, "new")
        cells, values = slot.view(differs), slot.view(new)
        count += int(cells.any(axis=1).sum())
        for neuron, row in final.items():
            inside += int(cells[neuron].sum())
            count -= bool(cells[neuron].any() and not np.array_equal(values[neuron], row))
        for neuron, row in _final_bits(patches, place, slot, "old").items():
            slot.view(undone)[neuron] = row
    return count, int(differs.sum()) == inside, np.array_equal(undone, old)


def _final_bits(
    patches: Sequence[Patch], place: Place, slot: Slot, part: str
) -> dict[int, np.ndarray]:
    final: dict[int, np.ndarray] = {}
    for patch in patches:
        if place in patch.edits:
            rows = patch.edits[place]
            bits = _bits(getattr(rows, part), slot)
            final.update(zip(rows.neurons.tolist(), bits, strict=True))
    return final
