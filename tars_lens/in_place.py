"""Patches written into a checkpoint's own files: no second copy, undone exactly, safe when killed.

The rows that stand in the files are first kept in a journal inside the folder. It goes when all is
written, checked and recorded; where it is still found, the next command puts them back.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tars_lens import cache
from tars_lens.checkpoint_stack import (
    RECORD,
    as_tensor,
    check_new,
    on_base,
    record_files,
    record_name,
    recorded_number,
    recorded_patches,
    without,
)
from tars_lens.checkpoints import JOURNAL
from tars_lens.errors import TarsError
from tars_lens.export import check_fits, final_bits, unread, write_slot
from tars_lens.files import user_path, whole_file
from tars_lens.folders import make_private
from tars_lens.layout import Slot, checkpoint_slots
from tars_lens.patch import Patch, PatchRows
from tars_lens.patch_tools import join_rows
from tars_lens.weights import Place

logger = logging.getLogger(__name__)

_KEY = "tars_lens.journal"


def export_in_place(
    patches: Patch | Sequence[Patch], folder: Path | str, *, force: bool = False
) -> None:
    """Writes patches into a checkpoint's own files, on top of those that it has.

    The patches, with the rows that they replace, are kept in the folder for `revert_in_place`. A
    file that has another name elsewhere (a link) is copied first, so that nothing else changes.

    Args:
        patches: One patch, or several; the later wins a shared row.
        folder: The checkpoint.
        force: Write even where it isn't the base that a patch was made for.

    Raises:
        TarsError: Another base, a patch that it has already, a folder that was changed since its
            patches were written, or files that can't be written.
    """
    chosen = (patches,) if isinstance(patches, Patch) else tuple(patches)
    folder = user_path(folder)
    with _alone(folder):
        _recover(folder)
        before = recorded_patches(folder)
        check_new(chosen, before, folder)
        _rewrite(folder, before, before, chosen, force=force)


def revert_in_place(patch: Patch, folder: Path | str) -> None:
    """Takes a patch out of the files that `export_in_place` has written it into.

    Raises:
        TarsError: The folder has no record of it, or its files were changed since.
    """
    folder = user_path(folder)
    with _alone(folder):
        _recover(folder)
        before = recorded_patches(folder)
        _rewrite(folder, before, without(patch, before, folder))


def recover(folder: Path | str) -> bool:
    """Puts back what an interrupted write has left half done; returns whether there was any.

    Raises:
        TarsError: The journal can't be read, or the files can't be written.
    """
    folder = user_path(folder)
    if not (folder / JOURNAL).is_file():
        return False
    with _alone(folder):
        return _recover(folder)


@dataclass(frozen=True, eq=False)
class Change:
    """New rows of one matrix, and what is known of its base."""

    rows: PatchRows  # its `old` is what stands in the file now
    base: np.ndarray
    digest: str


def _rewrite(
    folder: Path,
    before: list[Patch],
    left: list[Patch],
    chosen: Sequence[Patch] = (),
    *,
    force: bool = False,
) -> None:
    """Leaves those in the folder, of the patches it has, and puts the chosen ones on top."""
    slots = checkpoint_slots(folder)
    for patch in (*before, *chosen):
        for place, rows in patch.edits.items():
            check_fits(patch, slots, place, rows, folder)
    added = on_base(chosen, before, slots, folder, force=force)
    changes = _changes(slots, before, [*left, *added])
    if not changes:
        return
    recorded = record_files(folder)
    names, first = [file.name for file in recorded.values()], 1 + max(recorded, default=-1)
    new = {record_name(first + index, patch): patch for index, patch in enumerate(added)}
    kept = [name for name, patch in zip(names, before, strict=True) if patch in left]
    for file in {slots[place].tensor.file for place in changes}:
        make_private(file)
    _write_journal(folder, changes, names)
    try:
        for place, change in changes.items():
            write_slot(slots[place], change.rows, flush=True)
            check_written(slots[place], change)
        for name, patch in new.items():
            patch.save(folder / RECORD / name)
    except OSError as error:
        _recover(folder)
        reason = error.strerror or str(error)
        raise TarsError(f"cannot write to {str(folder)!r}: {reason}. It is as it was.") from error
    except BaseException:
        _recover(folder)
        raise
    _write_journal(folder, {}, [*kept, *new])  # from here on it is done, whatever happens
    _recover(folder)


def _changes(
    slots: dict[Place, Slot], before: list[Patch], after: list[Patch]
) -> dict[Place, Change]:
    """What is to be written where; every patch holds what it replaces in this base."""
    undo = [replace(p, edits={k: _undone(r) for k, r in p.edits.items()}) for p in before[::-1]]
    changes: dict[Place, Change] = {}
    for place in sorted({place for patch in (*before, *after) for place in patch.edits}):
        slot, here = slots[place], [p for p in (*before, *after) if place in p.edits]
        rows = join_rows([p.edits[place] for p in (*undo, *after) if place in p.edits])
        neurons = rows.neurons.tolist()
        now = as_tensor(slot.view(slot.tensor.bits())[neurons], slot)
        base = final_bits(here[::-1], place, slot, "old")
        changes[place] = Change(
            replace(rows, old=now),
            np.stack([base[neuron] for neuron in neurons]),
            here[0].base_sha256[place],
        )
    return changes


def check_written(slot: Slot, change: Change) -> None:
    """Reads a matrix back: it holds the new rows, and with the base's put back it is the base.

    Raises:
        TarsError: The disk doesn't hold what was written to it.
    """
    found, neurons = slot.matrix(), change.rows.neurons.tolist()
    as_written = all(
        np.array_equal(found[neuron], row) for neuron, row in _patch_bits(slot, change.rows).items()
    )
    found[neurons] = change.base
    if not as_written or hashlib.sha256(found.data).hexdigest() != change.digest:
        raise unread(slot)


def _undone(rows: PatchRows) -> PatchRows:
    return replace(rows, new=rows.old)


def _patch_bits(slot: Slot, rows: PatchRows) -> dict[int, np.ndarray]:
    kind = f"<u{torch.empty(0, dtype=slot.dtype).itemsize}"
    new = rows.new.to(slot.dtype).contiguous().view(torch.uint8).numpy().view(kind)
    return dict(zip(rows.neurons.tolist(), new, strict=True))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; a killed one's lock is free at once."""
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    with cache.locked(f"in-place-{key}"):
        yield


def _write_journal(folder: Path, changes: dict[Place, Change], record: list[str]) -> None:
    """Writes the rows as they stand, and the record's files as they are to be, down to the disk."""
    tensors: dict[str, Tensor] = {}
    for (layer, role), change in changes.items():
        tensors[f"L{layer}.{role}.neurons"] = change.rows.neurons
        tensors[f"L{layer}.{role}.rows"] = change.rows.old.contiguous()
    with whole_file(folder / JOURNAL) as temporary:
        with temporary.open("wb") as file:
            file.write(safetensors.torch.save(tensors, {_KEY: json.dumps(record)}))
            file.flush()
            os.fsync(file.fileno())
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(handle)  # else the name might reach the disk after the rows do
        os.close(handle)


def _recover(folder: Path) -> bool:
    """Brings files and record to what the journal says, and takes it away."""
    journal = folder / JOURNAL
    if not journal.is_file():
        return False
    slots = checkpoint_slots(folder)
    try:
        old, record = _read_journal(journal, slots)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise TarsError(
            f"{str(journal)!r} can't be read ({error}): put the base's weight files back by hand, "
            "and remove it."
        ) from error
    for place, rows in old.items():
        write_slot(slots[place], rows, flush=True)
    if old:
        logger.warning("an interrupted write to %s is undone.", folder)
    for file in (folder / RECORD).glob("*.safetensors"):
        if file.name not in record and recorded_number(file.name) is not None:
            file.unlink()  # a file of the user's own stays
    journal.unlink()
    return True


def _read_journal(
    journal: Path, slots: dict[Place, Slot]
) -> tuple[dict[Place, PatchRows], list[str]]:
    """The rows that were kept and the record's files, all proven to fit before any is written."""
    with safe_open(journal, "pt") as file:
        record = json.loads(file.metadata()[_KEY])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    if not isinstance(record, list) or not all(isinstance(name, str) for name in record):
        raise ValueError("its list of patches is none")
    old: dict[Place, PatchRows] = {}
    for place, slot in slots.items():
        key = f"L{place[0]}.{place[1]}"
        neurons, rows = tensors.pop(f"{key}.neurons", None), tensors.pop(f"{key}.rows", None)
        if neurons is None and rows is None:
            continue
        if neurons is None or rows is None or not _fits(slot, neurons, rows):
            raise ValueError(f"its rows of {key} don't fit the checkpoint")
        old[place] = PatchRows(neurons, rows, rows, torch.full((len(rows),), torch.nan))
    if tensors:
        raise ValueError(f"the checkpoint has no place for {min(tensors)[:60]!r}")
    return old, record


def _fits(slot: Slot, neurons: Shaped[Tensor, "..."], rows: Shaped[Tensor, "..."]) -> bool:
    count, width = slot.shape
    return (
        neurons.dtype == torch.int64
        and neurons.ndim == 1
        and rows.dtype == slot.dtype
        and rows.shape == (len(neurons), width)
        and bool(((neurons >= 0) & (neurons < count)).all())
    )
