"""Every neuron's weight vectors against targeting vectors, in one pass over the weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.method.targeting import TargetingVector
from tars_lens.model.lens import Lens, Role
from tars_lens.model.weights import Place

Targets = TargetingVector | Float[Tensor, "targets d_model"] | Float[Tensor, " d_model"]
"""One targeting vector, or many as the rows of a tensor."""

LEVELS = (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)
"""The quantiles that a distribution of cosines is told by; 1.0 is the largest."""

_BLOCK = 1 << 19
"""Weights that are widened to float32 at once: 2 MB, which a core's own cache about holds."""


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


@undisturbed
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
    places = chosen_places(lens.roles if roles is None else roles, layers, lens.n_layers)
    return products(((place, lens.vectors(*place)) for place in places), places, targets)


def products(
    matrices: Iterable[tuple[Place, Float[Tensor, "d_mlp d_model"]]],
    places: Sequence[Place],
    targets: Float[Tensor, "targets d_model"],
) -> Cosines:
    """Cosines of targets with matrices, each of which is read once, in whatever order they come.

    Args:
        matrices: As they are stored, in any dtype.
        places: Their order in the result.
        targets: What to compare with, in float32.
    """
    unit = torch.nn.functional.normalize(targets, dim=1)
    found = {place: _products(rows, unit) for place, rows in matrices}
    norms = torch.cat([found[place][1] for place in places])
    values = torch.cat([found[place][0] for place in places], dim=1)
    return Cosines(tuple(places), values.div_(norms.clamp_min(1e-12)), norms)


def _products(
    rows: Float[Tensor, "d_mlp d_model"], unit: Float[Tensor, "targets d_model"]
) -> tuple[Float[Tensor, "targets d_mlp"], Float[Tensor, " d_mlp"]]:
    """Products with the rows of one matrix and the rows' norms, in float32, block by block.

    Half-precision weights are read as they are stored and widened a block at a time: products in
    bfloat16 would be rounded to 8 bits, which ties cosines that are 0.001 apart. A block runs along
    the memory whichever way the matrix is stored: whole neurons, or some components of all neurons
    (`out` of most models), whose products are summed.
    """
    whole_neurons = rows.stride(1) == 1
    stored = rows if whole_neurons else rows.T
    values = torch.zeros(len(unit), len(rows), device=unit.device)
    norms = torch.zeros(len(rows), device=unit.device)
    size = max(1, _BLOCK // stored.shape[1])
    for start in range(0, len(stored), size):
        part = slice(start, start + size)
        block = stored[part].to(unit.device).float()
        if whole_neurons:
            values[:, part] = unit @ block.T
            norms[part] = torch.linalg.vector_norm(block, dim=1)
        else:
            values.addmm_(unit[:, part], block)
            norms += block.square().sum(dim=0)
    return values, norms if whole_neurons else norms.sqrt_()


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


def chosen_places(
    roles: Sequence[Role], layers: Sequence[int] | None, n_layers: int
) -> list[Place]:
    """The matrices that are asked for, each once: layer by layer, in the order of the roles.

    Raises:
        TarsError: None at all.
    """
    numbers = range(n_layers) if layers is None else layers
    places: list[Place] = list(dict.fromkeys((la, role) for la in numbers for role in roles))
    if not places:
        raise TarsError("there is nothing to rank: give at least one layer and one role.")
    return places
