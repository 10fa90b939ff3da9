"""What a model is, what its neurons say and when they fire."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.method.targeting import PLAIN
from tars_lens.model.lens import Lens, Point

_TOP_TOKENS = 5
_CHUNK = 16_384


def describe_model(lens: Lens) -> dict[str, Any]:
    """What reports say of a model."""
    return {
        "name": lens.name,
        "sha256": lens.sha256,
        "layers": lens.n_layers,
        "d_model": lens.d_model,
        "d_mlp": lens.d_mlp,
        "roles": list(lens.roles),
        "dtype": str(lens.dtype).removeprefix("torch."),
    }


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
        The rows with columns top_tokens (through gain and unembedding; each quoted),
        activation_concept (mean at the prompts' last token; with a concept only) and
        activation_plain (root mean square over the positions of the plain texts but the first).
        An activation is what the neuron's `out` vector is multiplied by, whatever the row's role.
    """
    found = neurons.copy()
    if not len(neurons):
        return found.assign(top_tokens="", activation_concept=0.0, activation_plain=0.0)
    places = zip(neurons["layer"], neurons["role"], neurons["neuron"], strict=True)
    rows = torch.stack([lens.vectors(int(la), role)[int(n)].float() for la, role, n in places])
    found["top_tokens"] = [
        " ".join(repr(lens.string(token)) for token in tokens)
        for tokens in top_tokens(lens, rows, _TOP_TOKENS)
    ]
    points = [Point("mlp_post", layer) for layer in sorted({int(la) for la in neurons["layer"]})]
    if concept is not None:
        own = lens.prompts(concept.concept_prompts)
        ends = lens.capture(own.ids, points, positions=own.last)
        means = {point.layer: ends[point].float().mean(0) for point in points}
        found["activation_concept"] = _pick(neurons, means)
    found["activation_plain"] = _pick(neurons, _root_mean_square(lens, plain, points))
    return found


@torch.no_grad()
def top_tokens(
    lens: Lens, directions: Float[Tensor, "rows d_model"], count: int
) -> list[list[int]]:
    """The tokens that each direction raises most through the final gain and the unembedding.

    The final norm's size and the model's biases, which are no property of a direction, are left
    out. The unembedding is widened a chunk of tokens at a time.
    """
    rows = directions.float()
    if lens.centres:
        rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows * lens.final_gain.float()
    chunks = lens.unembedding.split(_CHUNK, dim=1)
    logits = torch.cat([rows @ chunk.float() for chunk in chunks], dim=1)
    best: list[list[int]] = logits.topk(min(count, lens.d_vocab), dim=1).indices.tolist()
    return best


def _root_mean_square(
    lens: Lens, texts: Sequence[str], points: Sequence[Point]
) -> dict[int, Float[Tensor, " d_mlp"]]:
    """By layer; the first position, where many models' streams are outliers, is left out."""
    batch = lens.prompts(list(texts))
    seen = lens.capture(batch.ids, points)
    real = torch.arange(batch.ids.shape[1], device=lens.device) <= batch.last[:, None]
    real[:, 0] = False
    return {p.layer: seen[p][real].float().square().mean(0).sqrt() for p in points}


def _pick(neurons: pd.DataFrame, values: dict[int, Tensor]) -> list[float]:
    pairs = zip(neurons["layer"], neurons["neuron"], strict=True)
    return [float(values[int(layer)][int(neuron)]) for layer, neuron in pairs]
