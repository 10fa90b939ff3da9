"""Every neuron's weight vectors against targeting vectors, in one pass over the weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.method.targeting import TargetingVector
from tars_lens.model.lens import Lens, Role
from tars_lens.model.weights import Place

Targets = TargetingVector | Float[Tensor, "targets d_model"] | Float[Tensor, " d_model"]
"""One targeting vector, or many as the rows of a tensor."""

LEVELS = (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)
"""The quantiles that a distribution of cosines is told by; 1.0 is the largest."""

_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Cosines:
    """Weight vectors against targets, all of them.

    Attributes:
        places: The matrices that were read; their neurons follow one another in `values`.
        values: Cosine of each target with each weight vector, in float32.
        norms: Norm of each weight vector, in float32.
    """

    places: tuple[Place, ...]
    values: Float[Tensor, "targets vectors"]
    norms: Float[Tensor, " vectors"]

    def above(self, threshold: float) -> list[int]:
        """For each target the number of weight vectors whose cosine exceeds `threshold`."""
        return [int(count) for count in (self.values > threshold).sum(dim=1)]

    def quantiles(self) -> pd.DataFrame:
        """How the cosines are spread, one row a target and level: target, quantile, cosine."""
        ordered = self.values.sort(dim=1).values
        last = ordered.shape[1] - 1
        rows = [
            {"target": target, "quantile": level, "cosine": float(row[int(level * last)])}
            for target, row in enumerate(ordered)
            for level in LEVELS
        ]
        return pd.DataFrame(rows)

    def top(self, count: int | None = None) -> pd.DataFrame:
        """The highest cosines of each target, as `rank` gives them."""
        keep = self.values.shape[1] if count is None else min(count, self.values.shape[1])
        values, order = (found.cpu() for found in self.values.topk(keep, dim=1))
        target = torch.arange(len(values)).repeat_interleave(keep)
        index = order.flatten()
        width = len(self.norms) // len(self.places)
        place = (index // width).numpy()
        frame = pd.DataFrame({"target": target.numpy()})
        frame["layer"] = np.array([layer for layer, _ in self.places])[place]
        frame["role"] = np.array([role for _, role in self.places], dtype=object)[place]
        frame["neuron"] = (index % width).numpy()
        frame["label"] = "L" + frame["layer"].astype(str) + "N" + frame["neuron"].astype(str)
        frame["cosine"] = values.flatten().numpy()
        frame["norm"] = self.norms.cpu()[index].numpy()
        return frame


@dataclass(frozen=True, eq=False)
class Null:
    """The cosines that random directions have with a model's weight vectors.

    Attributes:
        threshold: The largest cosine to be expected by chance: the mean over random directions of
            the largest over all vectors.
        largest: The largest that any random direction had.
        quantiles: Of a direction's cosines, on average over directions; columns quantile, cosine.
        vectors: How many weight vectors there are.
        directions: How many random directions were tried.
    """

    threshold: float
    largest: float
    quantiles: pd.DataFrame
    vectors: int
    directions: int

    def to_frame(self) -> pd.DataFrame:
        """The quantiles, the last of which (1.0) is the threshold."""
        return self.quantiles.copy()


def rank(
    lens: Lens,
    vectors: Targets,
    *,
    roles: Sequence[Role] | None = None,
    layers: Sequence[int] | None = None,
    top: int | None = None,
) -> pd.DataFrame:
    """Ranks the MLP's weight vectors by their cosine with one or many targeting vectors.

    Args:
        lens: The model.
        vectors: What to compare with.
        roles: Kinds of vectors; all that the model has where not given.
        layers: All where not given.
        top: How many to keep of each targeting vector; all where not given.

    Returns:
        Sorted by cosine, highest first, for each targeting vector: columns target (its index),
        layer, role, neuron, label, cosine, norm.

    Raises:
        TarsError: As `cosines`, or a `top` below 1.
    """
    if top is not None and top < 1:
        raise TarsError(f"a ranking needs at least 1 row, got top={top}.")
    return cosines(lens, vectors, roles=roles, layers=layers).top(top)


@torch.no_grad()
def cosines(
    lens: Lens,
    vectors: Targets,
    *,
    roles: Sequence[Role] | None = None,
    layers: Sequence[int] | None = None,
) -> Cosines:
    """Cosines of one or many targets with every weight vector, in one pass over the weights.

    Args:
        lens: The model.
        vectors: What to compare with.
        roles: Kinds of vectors; all that the model has where not given.
        layers: All where not given.

    Raises:
        TarsError: A role or layer that the model doesn't have, none at all, or targets that have
            another width, no direction, or values that are not finite.
    """
    targets = check_targets(vectors, lens.d_model, lens.name).to(lens.device)
    places = _places(lens, roles, layers)
    unit = torch.nn.functional.normalize(targets, dim=1)
    count = len(places) * lens.d_mlp
    values = torch.empty(len(targets), count, device=lens.device)
    norms = torch.empty(count, device=lens.device)
    start = 0
    for place in places:
        # Precision: half-precision weights are read as they are stored, and widened a block at a
        # time. A product in bfloat16 would be rounded to 8 bits on its way out, which ties cosines
        # that are 0.001 apart; here products and sums are float32 and only the weights are not.
        for block in lens.vectors(*place).split(max(1, _BLOCK // lens.d_model)):
            rows = block.float()
            stop = start + len(rows)
            values[:, start:stop] = (rows @ unit.T).T
            norms[start:stop] = _norms(rows)
            start = stop
    values /= norms.clamp_min(1e-12)
    return Cosines(tuple(places), values, norms)


def null_distribution(
    lens: Lens,
    *,
    roles: Sequence[Role] | None = None,
    layers: Sequence[int] | None = None,
    directions: int = 16,
    seed: int = 0,
) -> Null:
    """What chance gives: the cosines of random directions with the weight vectors.

    Args:
        lens: The model.
        roles: Kinds of vectors, as in the ranking that the null stands beside.
        layers: Likewise.
        directions: How many Gaussian directions to try.
        seed: Of the directions.

    Raises:
        TarsError: Fewer than 1 direction, or as `cosines`.
    """
    if directions < 1:
        raise TarsError(f"a null distribution needs at least 1 direction, got {directions}.")
    random = random_directions(directions, lens.d_model, seed=seed)
    return null_of(cosines(lens, random, roles=roles, layers=layers))


def random_directions(
    count: int, width: int, *, seed: int = 0
) -> Float[Tensor, "directions d_model"]:
    """Gaussian directions, as a null distribution is made of."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def null_of(found: Cosines) -> Null:
    """The null distribution that the cosines of random directions make."""
    largest = found.values.max(dim=1).values
    return Null(
        threshold=float(largest.mean()),
        largest=float(largest.max()),
        quantiles=found.quantiles().groupby("quantile", as_index=False)["cosine"].mean(),
        vectors=len(found.norms),
        directions=len(found.values),
    )


def check_targets(
    vectors: TargetingVector | Float[Tensor, "..."], width: int, name: str
) -> Float[Tensor, "targets d_model"]:
    """Targeting vectors as the rows of a float32 matrix.

    Raises:
        TarsError: Another width than the model's, no direction, or values that are not finite.
    """
    values = vectors.vector if isinstance(vectors, TargetingVector) else vectors
    values = values[None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] != width or not len(values):
        raise TarsError(
            f"{name} has residual streams of width {width}; got vectors of shape "
            f"{tuple(values.shape)}."
        )
    values = values.float()
    if not torch.isfinite(values).all() or (values == 0).all(dim=1).any():
        raise TarsError("a targeting vector must have a direction; got zeros, or NaN or infinity.")
    return values


def _norms(rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, " rows"]:
    """Norms along whichever way the rows are stored.

    torch.linalg.vector_norm is the fastest where they are contiguous, and 6 times slower than the
    squares' sum by a product where the stored matrix is the transpose (`out` of most models).
    """
    if rows.stride(1) == 1:
        return torch.linalg.vector_norm(rows, dim=1)
    return (rows.square() @ torch.ones_like(rows[0])).sqrt()


def _places(lens: Lens, roles: Sequence[Role] | None, layers: Sequence[int] | None) -> list[Place]:
    chosen = list(roles) if roles is not None else list(lens.roles)
    numbers = list(layers) if layers is not None else list(range(lens.n_layers))
    places: list[Place] = list(dict.fromkeys((la, role) for la in numbers for role in chosen))
    if not places:
        raise TarsError("there is nothing to rank: give at least one layer and one role.")
    for place in places:
        lens.vectors(*place)
    return places
