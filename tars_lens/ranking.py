"""Every neuron's weight vectors against targeting vectors, in one pass over the weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept import Concept
from tars_lens.errors import TarsError
from tars_lens.lens import Lens, Point, Role
from tars_lens.targeting import PLAIN, TargetingVector

_TOP_TOKENS = 5


@dataclass(frozen=True)
class Null:
    """The cosines that random directions have with a model's weight vectors.

    Attributes:
        threshold: The largest cosine to be expected by chance: the mean over random directions of
            the largest over all vectors.
        largest: The largest that any random direction had.
        quantiles: Of single cosines; columns quantile and cosine.
        vectors: How many weight vectors there are.
        directions: How many random directions were tried.
    """

    threshold: float
    largest: float
    quantiles: pd.DataFrame
    vectors: int
    directions: int


def rank(
    lens: Lens,
    vectors: TargetingVector | Float[Tensor, "targets d_model"] | Float[Tensor, " d_model"],
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
        TarsError: A role or layer that the model doesn't have, or vectors of another width.
    """
    targets = _targets(lens, vectors)
    places = _places(lens, roles, layers)
    cosines, norms = _cosines(lens, targets, places)
    keep = cosines.shape[0] if top is None else min(top, cosines.shape[0])
    values, order = cosines.topk(keep, dim=0)
    frames = [
        _frame(lens, places, order[:, index], values[:, index], norms, index)
        for index in range(len(targets))
    ]
    return pd.concat(frames, ignore_index=True)


def null_distribution(lens: Lens, *, directions: int = 16, seed: int = 0) -> Null:
    """What chance gives: the cosines of random Gaussian directions with all weight vectors."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(directions, lens.d_model, generator=generator).to(lens.device)
    cosines, _ = _cosines(lens, random, _places(lens, None, None))
    largest = cosines.max(dim=0).values
    levels = (0.5, 0.9, 0.99, 0.999, 0.9999)
    ordered = cosines.flatten().sort().values
    at = [float(ordered[min(len(ordered) - 1, int(q * len(ordered)))]) for q in levels]
    return Null(
        threshold=float(largest.mean()),
        largest=float(largest.max()),
        quantiles=pd.DataFrame({"quantile": levels, "cosine": at}),
        vectors=len(cosines),
        directions=directions,
    )


def describe(
    lens: Lens,
    neurons: pd.DataFrame,
    *,
    concept: Concept | None = None,
    plain: Sequence[str] = PLAIN,
) -> pd.DataFrame:
    """Adds what each neuron's own vector says, and how it fires on the concept and elsewhere.

    Args:
        lens: The model.
        neurons: Rows of `rank`.
        concept: Whose prompts the activation is taken at.
        plain: Unrelated texts.

    Returns:
        The rows with columns top_tokens (through the unembedding), activation_plain (root mean
        square over the positions of the plain texts but the first) and, with a concept,
        activation_concept (mean at the prompts' last token).
    """
    found = neurons.copy()
    found["top_tokens"] = _top_tokens(lens, neurons)
    layers = sorted({int(layer) for layer in neurons["layer"]})
    points = [Point("mlp_post", layer) for layer in layers]
    batch = lens.prompts(list(plain))
    seen = lens.capture(batch.ids, points)
    real = torch.arange(batch.ids.shape[1], device=lens.device) <= batch.last[:, None]
    real[:, 0] = False
    rms = {p.layer: seen[p][real].float().square().mean(0).sqrt() for p in points}
    found["activation_plain"] = _pick(neurons, rms)
    if concept is not None:
        own = lens.prompts(concept.concept_prompts)
        ends = lens.capture(own.ids, points, positions=own.last)
        found["activation_concept"] = _pick(neurons, {p.layer: ends[p].mean(0) for p in points})
    return found


def _targets(
    lens: Lens,
    vectors: TargetingVector | Float[Tensor, "..."],
) -> Float[Tensor, "targets d_model"]:
    values = vectors.vector if isinstance(vectors, TargetingVector) else vectors
    values = values[None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] != lens.d_model:
        raise TarsError(
            f"{lens.name} has residual streams of width {lens.d_model}; got vectors of shape "
            f"{tuple(values.shape)}."
        )
    return values.to(lens.device)


def _places(
    lens: Lens, roles: Sequence[Role] | None, layers: Sequence[int] | None
) -> list[tuple[int, Role]]:
    chosen = list(roles) if roles is not None else list(lens.roles)
    numbers = list(layers) if layers is not None else list(range(lens.n_layers))
    places = [(layer, role) for layer in numbers for role in chosen]
    if not places:
        raise TarsError("there is nothing to rank: give at least one layer and one role.")
    for place in places:
        lens.vectors(*place)
    return places


@torch.no_grad()
def _cosines(
    lens: Lens, targets: Float[Tensor, "targets d_model"], places: list[tuple[int, Role]]
) -> tuple[Float[Tensor, "vectors targets"], Float[Tensor, " vectors"]]:
    """Cosines and norms of all vectors of the places, each matrix read while it is in cache."""
    unit = torch.nn.functional.normalize(targets.float(), dim=1).to(lens.dtype)
    dots, norms = [], []
    for place in places:
        # a stored matrix may be the transpose of the view: products run along what is stored
        vectors = lens.vectors(*place)
        dots.append((vectors @ unit.T).float())
        norms.append(torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32))
    norm = torch.cat(norms)
    return torch.cat(dots) / norm.clamp_min(1e-12)[:, None], norm


def _frame(
    lens: Lens,
    places: list[tuple[int, Role]],
    order: Tensor,
    cosines: Tensor,
    norms: Tensor,
    index: int,
) -> pd.DataFrame:
    rows = order.cpu()
    place = (rows // lens.d_mlp).numpy()
    layer = pd.Series([p[0] for p in places]).to_numpy()[place]
    neuron = (rows % lens.d_mlp).numpy()
    frame = pd.DataFrame(
        {
            "target": index,
            "layer": layer,
            "role": pd.Series([p[1] for p in places]).to_numpy()[place],
            "neuron": neuron,
            "cosine": cosines.float().cpu().numpy(),
            "norm": norms.cpu()[rows].numpy(),
        }
    )
    label = "L" + frame["layer"].astype(str) + "N" + frame["neuron"].astype(str)
    frame.insert(4, "label", label)
    return frame


def _top_tokens(lens: Lens, neurons: pd.DataFrame) -> list[str]:
    """What each neuron's own vector says: its largest logits by gain and unembedding."""
    if not len(neurons):
        return []
    places = zip(neurons["layer"], neurons["role"], neurons["neuron"], strict=True)
    rows = torch.stack([lens.vectors(int(la), ro)[int(ne)] for la, ro, ne in places])
    logits = (rows * lens.final_gain) @ lens.unembedding
    best = logits.topk(_TOP_TOKENS, dim=1).indices.tolist()
    return [" ".join(repr(lens.string(token)) for token in tokens) for tokens in best]


def _pick(neurons: pd.DataFrame, values: dict[int, Tensor]) -> list[float]:
    pairs = zip(neurons["layer"], neurons["neuron"], strict=True)
    return [float(values[int(layer)][int(neuron)]) for layer, neuron in pairs]
