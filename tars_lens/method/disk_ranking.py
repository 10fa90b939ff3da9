"""Every weight vector of a checkpoint on disk against targeting vectors, with no model loaded.

The shards are read once, in the order of their bytes, through memory maps of one matrix at a time.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.cache import Advance, silent
from tars_lens.common.errors import TarsError
from tars_lens.method.norm_index import NormIndex
from tars_lens.method.ranking import Cosines, Targets, check_targets
from tars_lens.model.layout import Slot, checkpoint_slots
from tars_lens.model.lens import Role
from tars_lens.model.weights import Place

_BLOCK = 1 << 19
"""Weights that are widened to float32 at once: 2 MB, which a core's own cache about holds."""

_AHEAD = 2
"""Matrices that are read while one is being worked on."""

_SCRATCH = 1 << 23
"""Bytes that are read at once, ahead of the work."""


def rank_checkpoint(
    folder: Path | str,
    vectors: Targets,
    *,
    roles: Sequence[Role] | None = None,
    layers: Sequence[int] | None = None,
    top: int | None = None,
    advance: Advance | None = None,
) -> pd.DataFrame:
    """`rank`, of a Hugging Face folder instead of a loaded model.

    Args:
        folder: The checkpoint (safetensors, in float32, bfloat16 or float16).
        vectors: What to compare with.
        roles: Kinds of vectors; all that the checkpoint has where not given.
        layers: All where not given.
        top: How many to keep of each targeting vector; all where not given.
        advance: Told the progress.

    Returns:
        Sorted by cosine, highest first, for each targeting vector: columns target (its index),
        layer, role, neuron, label, cosine, norm.

    Raises:
        TarsError: As `checkpoint_cosines`, or a `top` below 1.
    """
    if top is not None and top < 1:
        raise TarsError(f"a ranking needs at least 1 row, got top={top}.")
    return checkpoint_cosines(folder, vectors, roles=roles, layers=layers, advance=advance).top(top)


@torch.no_grad()
def checkpoint_cosines(
    folder: Path | str,
    vectors: Targets,
    *,
    roles: Sequence[Role] | None = None,
    layers: Sequence[int] | None = None,
    advance: Advance | None = None,
) -> Cosines:
    """`cosines`, of a Hugging Face folder; all targets in one pass over its bytes.

    The rows' norms are kept in the user's cache for as long as the weight files stay as they are,
    which spares the next call their computation.

    Args:
        folder: The checkpoint.
        vectors: What to compare with.
        roles: Kinds of vectors; all that the checkpoint has where not given.
        layers: All where not given.
        advance: Told the progress.

    Raises:
        TarsError: Not a checkpoint that can be edited, a shard that isn't whole, a role or layer
            that it doesn't have, none at all, or targets that don't fit (see `check_targets`).
    """
    slots = checkpoint_slots(folder)
    name = Path(folder).resolve().name
    places = _places(slots, roles, layers, name)
    width, d_model = slots[places[0]].shape
    unit = torch.nn.functional.normalize(check_targets(vectors, d_model, name), dim=1)
    values = torch.empty(len(unit), len(places) * width)
    norms = torch.empty(len(places) * width)
    starts = {place: index * width for index, place in enumerate(places)}
    index, say = NormIndex.read(folder), advance or silent
    for done, (place, slot) in enumerate(_in_file_order(slots, places)):
        say("ranking matrices", done, len(places))
        part = slice(starts[place], starts[place] + width)
        products, found = _read(slot, unit, index.norms.get(place))
        values[:, part], norms[part] = products, found
    say("ranking matrices", len(places), len(places))
    if not index.norms.keys() >= set(places):
        index.keep({place: norms[start : start + width] for place, start in starts.items()})
    values /= norms.clamp_min(1e-12)
    return Cosines(tuple(places), values, norms)


def _read(
    slot: Slot, unit: Float[Tensor, "targets d_model"], norms: Float[Tensor, " d_mlp"] | None
) -> tuple[Float[Tensor, "targets d_mlp"], Float[Tensor, " d_mlp"]]:
    """Products with the rows of one matrix and their norms, in float32, block by block.

    The blocks run along the file whichever way the matrix is stored: whole neurons, or so many
    components of all neurons (`out` of most models), whose products are summed.
    """
    stored = torch.from_numpy(slot.view(slot.tensor.bits("c"))).view(slot.dtype)
    products = torch.zeros(len(unit), len(stored))
    sizes = torch.zeros(len(stored)) if norms is None else norms
    along = stored.T if slot.transposed else stored
    start = 0
    for block in along.split(max(1, _BLOCK // along.shape[1])):
        wide = block.float()
        part = slice(start, start + len(wide))
        start = part.stop
        if slot.transposed:
            products.addmm_(unit[:, part], wide)
            if norms is None:
                sizes += wide.square().sum(dim=0)
        else:
            products[:, part] = unit @ wide.T
            if norms is None:
                sizes[part] = torch.linalg.vector_norm(wide, dim=1)
    return products, sizes.sqrt() if slot.transposed and norms is None else sizes


def _in_file_order(
    slots: dict[Place, Slot], places: Sequence[Place]
) -> Iterator[tuple[Place, Slot]]:
    """The matrices in the order of their bytes, each once the system has it in memory.

    A thread of its own reads ahead: what is worked on then never waits for a page. (In the shape
    of Llama 3.1 8B about 1.3 times one read of the bytes, 1.5 where the system is only asked to.)
    """
    ordered = sorted(
        places, key=lambda p: (slots[p].tensor.file, slots[p].tensor.offset, slots[p].half or 0)
    )
    scratch = memoryview(bytearray(_SCRATCH))
    with ThreadPoolExecutor(max_workers=1) as reader:
        read = deque(reader.submit(_fetch, slots[place], scratch) for place in ordered[:_AHEAD])
        for index, place in enumerate(ordered):
            read.popleft().result()
            if index + _AHEAD < len(ordered):
                read.append(reader.submit(_fetch, slots[ordered[index + _AHEAD]], scratch))
            yield place, slots[place]


def _fetch(slot: Slot, scratch: memoryview) -> None:
    """Reads a matrix's bytes once and drops them: they stay in the system's cache."""
    with slot.tensor.file.open("rb", buffering=0) as file:
        file.seek(slot.tensor.offset)
        left = slot.tensor.nbytes
        while left > 0 and (count := file.readinto(scratch[:left])):
            left -= count


def _places(
    slots: dict[Place, Slot],
    roles: Sequence[Role] | None,
    layers: Sequence[int] | None,
    name: str,
) -> list[Place]:
    order: tuple[Role, ...] = ("gate", "in", "out")
    there = [role for role in order if any(found == role for _, found in slots)]
    depth = 1 + max(layer for layer, _ in slots)
    chosen = list(roles) if roles is not None else there
    numbers = list(layers) if layers is not None else list(range(depth))
    places: list[Place] = list(dict.fromkeys((la, role) for la in numbers for role in chosen))
    if not places:
        raise TarsError("there is nothing to rank: give at least one layer and one role.")
    for layer, role in places:
        if role not in there:
            raise TarsError(f"no role {role!r}: {name} has {', '.join(there)}.")
        if (layer, role) not in slots:
            raise TarsError(f"no layer {layer}: {name} has 0 to {depth - 1}.")
    return places
