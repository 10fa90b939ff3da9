"""The proof of an edit: what changed is what was planned, and nothing else did."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from tars_lens.common.surroundings import undisturbed
from tars_lens.model.lens import Lens
from tars_lens.model.model_state import flat, span
from tars_lens.model.weights import Place
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch

logger = logging.getLogger(__name__)

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Verification:
    """What patches change, compared bit by bit.

    Attributes:
        rows_changed: Rows of weights that differ from the base and hold what was planned for them,
            and any that differ unplanned. A planned row that equals the base's isn't counted.
        rows_planned: Rows that the patches name, each once.
        others_identical: Every other weight and buffer of the model is the base's, bit by bit.
        restored_identical: With the patches taken out, the whole model is the base, bit by bit.
    """

    rows_changed: int
    rows_planned: int
    others_identical: bool
    restored_identical: bool

    @property
    def ok(self) -> bool:
        """Whether exactly the planned rows changed, and can be put back exactly."""
        planned = self.rows_changed == self.rows_planned
        return planned and self.others_identical and self.restored_identical

    def to_frame(self) -> pd.DataFrame:
        """One line, with `ok` beside the attributes."""
        return pd.DataFrame([{**asdict(self), "ok": self.ok}])


@undisturbed
def verify(lens: Lens, patches: Patch | Sequence[Patch], *, force: bool = False) -> Verification:
    """Puts patches on the base, in order, compares the whole model, and takes them out again.

    The model is left as it was found, with whatever patches it had. No second copy of it is made:
    tensors that aren't to change are hashed, the others are copied one at a time.

    Args:
        lens: The model.
        patches: One patch, or several that are stacked.
        force: See `Patch.apply`.

    Raises:
        TarsError: A patch that was made for another base.
    """
    chosen = (patches,) if isinstance(patches, Patch) else tuple(patches)
    base_changed(chosen, lens.sha256)
    for patch in chosen:
        if not stack.is_applied(lens, patch):
            stack.check(lens, patch, force=force)
    places = {place for patch in chosen for place in patch.edits}
    with stack.holding(lens, ()):
        before = lens.hashes()
        touched = holding_tensors(lens, places)
        with stack.holding(lens, chosen):
            during = lens.hashes(without=touched)
        others = all(before[name] == digest for name, digest in during.items())
        others &= during.keys() | touched.keys() == before.keys()
        changed = 0
        for name in touched:
            rows, alone = _compare(lens, name, places, chosen)
            changed, others = changed + rows, others and alone
        restored = lens.hashes() == before
    return Verification(changed, planned_rows(chosen), others, restored)


def base_changed(patches: Iterable[Patch], sha256: str) -> bool:
    """Whether a base's weight files are others than a patch was made on; warns where they are.

    Args:
        patches: The patches; one that doesn't know its base's files says nothing.
        sha256: The hash of the base's weight files, or `""` where it isn't known.
    """
    known = [patch for patch in patches if patch.weights_sha256 and sha256]
    changed = [patch for patch in known if patch.weights_sha256 != sha256]
    for patch in changed:
        logger.warning(
            "the base's weight files have changed since %s was made on %s (SHA-256 %s then, %s "
            "now): get the base again.",
            *(patch.label, patch.base_name, patch.weights_sha256[:12], sha256[:12]),
        )
    return bool(changed)


def planned_rows(patches: Iterable[Patch]) -> int:
    """The rows that patches name, each once."""
    return len(
        {
            (place, neuron)
            for patch in patches
            for place, rows in patch.edits.items()
            for neuron in rows.neurons.tolist()
        }
    )


def final_rows(patches: Iterable[Patch], place: Place) -> dict[int, Tensor]:
    """What the patches leave in each row of a place that they touch: the last one wins."""
    final: dict[int, Tensor] = {}
    for patch in patches:
        if place in patch.edits:
            rows = patch.edits[place]
            final.update(zip(rows.neurons.tolist(), rows.new, strict=True))
    return final


def holding_tensors(lens: Lens, places: set[Place]) -> dict[str, Tensor]:
    """The tensors of the model that hold the rows of any of the places."""
    return {
        name: tensor
        for name, tensor in lens.state()
        if any(_holds(tensor, lens.vectors(*place)) for place in places)
    }


def _holds(tensor: Shaped[Tensor, "..."], part: Shaped[Tensor, "..."]) -> bool:
    (start, stop), (first, last) = span(tensor), span(part)
    return tensor.device == part.device and start <= first and last <= stop


def _compare(
    lens: Lens, name: str, places: set[Place], patches: Sequence[Patch]
) -> tuple[int, bool]:
    """How many rows of one tensor change, and whether all the rest of it stays."""
    tensor = dict(lens.state())[name]
    memory = flat(tensor)
    base = memory.clone()
    count, inside = 0, 0
    with stack.holding(lens, patches):
        changed = _bits(memory) != _bits(base)
        for place in places:
            view = lens.vectors(*place)
            if _holds(tensor, view):
                offset = (span(view)[0] - span(tensor)[0]) // tensor.itemsize
                cells = changed.as_strided(view.shape, view.stride(), offset)
                rows, planned_cells = _count_rows(cells, view, final_rows(patches, place))
                count, inside = count + rows, inside + planned_cells
    return count, int(changed.sum()) == inside


def _count_rows(
    changed: Bool[Tensor, "d_mlp d_model"],
    values: Shaped[Tensor, "d_mlp d_model"],
    planned: dict[int, Tensor],
) -> tuple[int, int]:
    """Changed rows that are as planned or weren't planned at all; changed cells of planned rows."""
    rows = changed.any(dim=1)
    count, inside = int(rows.sum()), 0
    for neuron, new in planned.items():
        inside += int(changed[neuron].sum())
        as_planned = torch.equal(values[neuron], new.to(values))
        count -= int(rows[neuron] and not as_planned)
    return count, inside


def _bits(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    return values.view(_BITS[values.itemsize])
