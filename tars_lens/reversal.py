"""Angular reversal: a weight vector replaced by the reversed targeting vector, at its own norm."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept import Concept
from tars_lens.errors import TarsError
from tars_lens.lens import Lens
from tars_lens.patch import Patch
from tars_lens.ranking import rank
from tars_lens.targeting import TargetingVector
from tars_lens.weights import Edits, Rows


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
        neurons: Rows with layer, role and neuron, as `rank` gives them.
        scale: Norm of each new row, in units of the row that it replaces.
        concept: The card, kept in the patch.

    Raises:
        TarsError: There are no rows, or some the model doesn't have.
    """
    edits = reversed_rows(lens, vector, neurons, scale=scale)
    places = zip(neurons["layer"], neurons["role"], strict=True)
    grouped = neurons.groupby([pd.Series(list(places), index=neurons.index)])["cosine"]
    return Patch.build(
        lens,
        edits,
        concepts=[concept] if concept else [],
        method={"name": "reverse", "scale": scale},
        cosines={place: torch.tensor(values.to_numpy()) for place, values in grouped},
    )


def reversed_rows(
    lens: Lens,
    vector: TargetingVector | Float[Tensor, " d_model"],
    neurons: pd.DataFrame,
    *,
    scale: float = 1.0,
) -> Edits:
    """`-vector / |vector| * |replaced row| * scale` for each row of a ranking."""
    if not len(neurons):
        raise TarsError("there are no neurons to reverse: the ranking is empty.")
    direction = vector.vector if isinstance(vector, TargetingVector) else vector
    unit = direction.float() / direction.float().norm()
    edits = {}
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
