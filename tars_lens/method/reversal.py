"""Angular reversal: a weight vector replaced by the reversed targeting vector, at its own norm."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.method.ranking import rank
from tars_lens.method.targeting import TargetingVector
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Edits, Place, Rows
from tars_lens.patch.patch import Patch


@undisturbed
def reverse(
    lens: Lens,
    vector: TargetingVector | Float[Tensor, " d_model"],
    neurons: pd.DataFrame,
    *,
    scale: float = 1.0,
    concept: Concept | None = None,
) -> Patch:
    """A patch that replaces the given weight vectors by the reversed targeting vector.

    Args:
        lens: The model.
        vector: The targeting vector.
        neurons: Rows with layer, role and neuron, as `rank` gives them; a column cosine is kept
            in the patch.
        scale: Norm of each new row, in units of the row that it replaces.
        concept: The card, kept in the patch.

    Raises:
        TarsError: There are no rows, some the model doesn't have or one twice, a scale that isn't
            positive, or a vector of another width or without a direction.
    """
    edits = reversed_rows(lens, vector, neurons, scale=scale)
    cosines = {}
    if "cosine" in neurons:
        for (layer, role), rows in neurons.groupby(["layer", "role"], sort=False):
            cosines[(int(layer), role)] = torch.tensor(rows["cosine"].to_numpy())
    settings = vector.settings if isinstance(vector, TargetingVector) else {}
    return Patch.build(
        lens,
        edits,
        concepts=[concept] if concept else [],
        method={"name": "reverse", "scale": scale, "target": settings},
        seed=int(settings.get("seed", 0)),
        cosines=cosines,
    )


def reversed_rows(
    lens: Lens,
    vector: TargetingVector | Float[Tensor, " d_model"],
    neurons: pd.DataFrame,
    *,
    scale: float = 1.0,
) -> Edits:
    """`-vector / |vector| * |replaced row| * scale` for each row of a ranking.

    Raises:
        TarsError: As `reverse`.
    """
    unit = _unit(lens, vector)
    _check(neurons, scale)
    edits: dict[Place, Rows] = {}
    for (layer, role), rows in neurons.groupby(["layer", "role"], sort=False):
        index = torch.tensor(rows["neuron"].to_numpy(), device=lens.device)
        old = lens.vectors(int(layer), role)[index]
        norms = torch.linalg.vector_norm(old, dim=1, dtype=torch.float32)
        values = -scale * norms[:, None] * unit
        edits[(int(layer), role)] = Rows(index, values.to(lens.dtype))
    return edits


def paper_edits(lens: Lens, vector: TargetingVector, count: int) -> tuple[Edits, pd.DataFrame]:
    """The literal step 3 and 4: the `count` highest cosines of all layers and roles, reversed."""
    neurons = rank(lens, vector, top=count)
    return reversed_rows(lens, vector, neurons), neurons


def _unit(
    lens: Lens, vector: TargetingVector | Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    direction = vector.vector if isinstance(vector, TargetingVector) else vector
    if len(direction) != lens.d_model:
        raise TarsError(
            f"{lens.name} has residual streams of width {lens.d_model}; got a vector of width "
            f"{len(direction)}."
        )
    norm = float(direction.float().norm())
    if not 0 < norm < float("inf"):
        raise TarsError("a vector to reverse must have a direction; got zeros, NaN or infinity.")
    return direction.float().to(lens.device) / norm


def _check(neurons: pd.DataFrame, scale: float) -> None:
    missing = [name for name in ("layer", "role", "neuron") if name not in neurons]
    if missing:
        raise TarsError(
            f"neurons to reverse are named by layer, role and neuron; there is no column "
            f"{missing[0]!r}. tars_lens.rank gives them."
        )
    if not len(neurons):
        raise TarsError("there are no neurons to reverse: the ranking is empty.")
    if not 0 < scale < float("inf"):
        raise TarsError(f"a reversed row's scale must be a positive number, got {scale}.")
