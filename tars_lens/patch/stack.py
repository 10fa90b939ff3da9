"""The patches on a model: applied in order, taken out in any order, exactly.

A model is its base's rows, overwritten by the applied patches in their order. The base's rows are
kept from the first touch, so that what remains after a removal is what it would have been, had
the removed patch never been applied.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.model.lens import Lens, tensor_sha256
from tars_lens.model.weights import Edits, Place, Rows, check_edits, read_rows, write_rows
from tars_lens.patch.edit import Edit

logger = logging.getLogger(__name__)

_Table = dict[Place, dict[int, Tensor]]
"""One row of weights by its matrix and neuron."""


@dataclass
class _Stack:
    applied: tuple[Edit, ...] = ()
    base: _Table = field(default_factory=dict)


# By model, not by lens: two lenses over one model see the same weights.
_STACKS: WeakKeyDictionary[Any, _Stack] = WeakKeyDictionary()


def applied_patches(lens: Lens) -> tuple[Edit, ...]:
    """The patches that are on a model now, the first applied first."""
    return _stack(lens).applied


def apply(lens: Lens, patch: Edit, *, force: bool = False) -> None:
    """Puts a patch on top; see `Patch.apply`."""
    applied = applied_patches(lens)
    if is_applied(lens, patch):
        raise TarsError(f"{patch.label!r} is applied already: revert it first.")
    check(lens, patch, force=force)
    for other in applied:
        if shared := _shared_rows(patch, other):
            logger.info(
                "%s and %s share %d rows; the later wins.", other.label, patch.label, shared
            )
    _switch(lens, (*applied, patch))


def revert(lens: Lens, patch: Edit) -> None:
    """Takes a patch out from any height of the stack; see `Patch.revert`."""
    applied = applied_patches(lens)
    remaining = tuple(other for other in applied if other.sha256 != patch.sha256)
    if len(remaining) == len(applied):
        there = ", ".join(repr(other.label) for other in applied) or "none"
        raise TarsError(f"{patch.label!r} is not applied to {lens.name}. Applied: {there}.")
    _switch(lens, remaining)


@contextmanager
def holding(lens: Lens, patches: Sequence[Edit]) -> Iterator[None]:
    """Makes the model its base with just these patches while the block runs.

    No patch is checked against the base: call `check` before.
    """
    found = applied_patches(lens)
    try:
        _switch(lens, tuple(patches))
        yield
    finally:
        _switch(lens, found)


def is_applied(lens: Lens, patch: Edit) -> bool:
    """Whether the patch, or another copy of it, is on the model."""
    return any(other.sha256 == patch.sha256 for other in applied_patches(lens))


def check(lens: Lens, patch: Edit, *, force: bool = False) -> None:
    """Refuses a patch that was made for another base; writes nothing.

    Args:
        lens: The model; patches that are on it don't count.
        patch: The patch.
        force: Warn of another base instead.

    Raises:
        TarsError: Rows that don't fit the model; another dtype or other weights than the patch was
            made for, unless forced.
    """
    check_edits(lens, patch.new_rows)
    for place, rows in patch.edits.items():
        problem = _mismatch(lens, patch, place, rows.new.dtype)
        if problem and not force:
            raise TarsError(
                f"{patch.label!r} was made for another base ({patch.base_name}): {problem} Load "
                "that base, or apply it all the same with force=True (--force)."
            )
        if problem:
            logger.warning("%s is forced onto another base: %s", patch.label, problem)


def base_rows(lens: Lens, place: Place, neurons: Int[Tensor, " rows"]) -> Rows:
    """A copy of some rows as the base has them, whatever patches are applied."""
    kept = _stack(lens).base.get(place, {})
    values = read_rows(lens, place, neurons).values
    for i, neuron in enumerate(neurons.tolist()):
        if neuron in kept:
            values[i] = kept[neuron]
    return Rows(neurons, values)


def base_sha256(lens: Lens, place: Place) -> str:
    """`Lens.tensor_sha256` of one matrix of the base, whatever patches are applied."""
    kept = _edits(_stack(lens).base).get(place)
    if kept is None:
        return lens.tensor_sha256(*place)
    vectors = lens.vectors(*place).clone(memory_format=torch.contiguous_format)
    vectors[kept.neurons] = kept.values
    return tensor_sha256(vectors)


def _stack(lens: Lens) -> _Stack:
    return _STACKS.setdefault(lens.model, _Stack())


@undisturbed
def _switch(lens: Lens, patches: tuple[Edit, ...]) -> None:
    """Makes the model its base with just these patches, or leaves it as it was."""
    stack = _stack(lens)
    touched = _neurons((*stack.applied, *patches))
    before = {place: read_rows(lens, place, neurons) for place, neurons in touched.items()}
    base = {place: base_rows(lens, place, neurons) for place, neurons in touched.items()}
    kept = _table({place: base[place] for place in touched})
    target = _table(base)
    for patch in patches:
        _overwrite(target, patch)
    found = stack.applied, stack.base
    try:
        write_rows(lens, _edits(target))
        stack.applied, stack.base = patches, _only(kept, _neurons(patches))
    except BaseException:  # Ctrl-C too: a model is never left half edited
        stack.applied, stack.base = found
        write_rows(lens, before)
        raise


def _mismatch(lens: Lens, patch: Edit, place: Place, dtype: torch.dtype) -> str:
    """What of one matrix isn't as the patch expects, or `""`."""
    where = f"layer {place[0]}, role {place[1]!r}"
    if dtype != lens.dtype:
        return f"{where} is {_name(lens.dtype)} in {lens.name}, {_name(dtype)} in the patch."
    expected, actual = patch.base_sha256[place], base_sha256(lens, place)
    if expected != actual:
        return f"{where} has SHA-256 {actual[:12]} in {lens.name}, {expected[:12]} in the patch."
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shared_rows(a: Edit, b: Edit) -> int:
    ours, theirs = _neurons((a,)), _neurons((b,))
    return sum(
        len(set(ours[place].tolist()) & set(theirs[place].tolist()))
        for place in ours.keys() & theirs.keys()
    )


def _neurons(patches: Iterable[Edit]) -> dict[Place, Int[Tensor, " rows"]]:
    """Every row that any of the patches touches, each once."""
    found: dict[Place, dict[int, None]] = {}
    for patch in patches:
        for place, rows in patch.edits.items():
            found.setdefault(place, {}).update(dict.fromkeys(rows.neurons.tolist()))
    return {place: torch.tensor(list(neurons)) for place, neurons in found.items()}


def _table(edits: Edits) -> _Table:
    return {
        place: dict(zip(rows.neurons.tolist(), rows.values, strict=True))
        for place, rows in edits.items()
    }


def _overwrite(table: _Table, patch: Edit) -> None:
    for place, rows in patch.edits.items():
        kept = table[place]
        for neuron, new in zip(rows.neurons.tolist(), rows.new, strict=True):
            kept[neuron] = new.to(kept[neuron])


def _edits(table: _Table) -> dict[Place, Rows]:
    return {
        place: Rows(torch.tensor(list(rows)), torch.stack(list(rows.values())))
        for place, rows in table.items()
        if rows
    }


def _only(table: _Table, touched: dict[Place, Int[Tensor, " rows"]]) -> _Table:
    """The rows that some patch still touches: the rest of the model is its own."""
    return {
        place: {neuron: table[place][neuron] for neuron in neurons.tolist()}
        for place, neurons in touched.items()
    }
