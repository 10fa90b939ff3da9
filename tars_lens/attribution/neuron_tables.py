"""The tables of a neuron's card, each made from the base model's weights or from a scan."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.attribution.concept_directions import KINDS, ConceptDirections
from tars_lens.attribution.neuron_index import NeuronIndex
from tars_lens.model.lens import Lens, Point, Role
from tars_lens.patch.patch import Patch

ENDS = ("highest", "lowest")

Vectors = dict[Role, Float[Tensor, " d_model"]]
"""One neuron's weight vectors by role."""

_BEFORE, _AFTER = 24, 8
_EDIT_TOKENS = 5


def norms_table(lens: Lens, layer: int, rows: Vectors) -> pd.DataFrame:
    """The length of each vector beside the median of its layer and role."""
    lines = [
        (role, float(row.norm()), float(lens.vectors(layer, role).float().norm(dim=1).median()))
        for role, row in rows.items()
    ]
    return pd.DataFrame(lines, columns=["role", "norm", "layer_median"])


def tokens_table(lens: Lens, layer: int, rows: Vectors, top: int) -> pd.DataFrame:
    """What each vector says: its largest and smallest logits."""
    lines = []
    for role, row in rows.items():
        logits = _logits(lens, layer, role, row[None])[0]
        for end in ("top", "bottom"):
            best = logits.topk(min(top, len(logits)), largest=end == "top")
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            for rank, (token, logit) in enumerate(pairs, start=1):
                lines.append((role, end, rank, lens.string(token), token, logit))
    return pd.DataFrame(lines, columns=["role", "end", "rank", "token", "id", "logit"])


def firing_table(index: NeuronIndex, layer: int, neuron: int) -> pd.DataFrame:
    """How often and how strongly the neuron fires on the scanned text: one row."""
    values = index.values[:, layer, neuron, 0].tolist()
    shares = {n: float(getattr(index, n)[layer, neuron]) for n in ("rms", "mean")}
    shares |= {"largest": values[0], "smallest": values[1]}
    shares |= {n: float(getattr(index, n)[layer, neuron]) for n in ("loud", "positive")}
    windows, width = index.ids.shape
    positions = windows * (width - 1)
    return pd.DataFrame([{"windows": windows, "positions": positions, **shares}])


def examples_table(
    lens: Lens,
    index: NeuronIndex,
    layer: int,
    neuron: int,
    count: int,
) -> pd.DataFrame:
    """The text about each peak; the model reads each window once more, as far as it is shown."""
    columns = ["end", "example", "window", "position", "token", "activation", "peak"]
    where = [
        (end, example, *place)
        for end in range(len(ENDS))
        for example, place in enumerate(
            zip(
                index.windows[end, layer, neuron, :count].tolist(),
                index.positions[end, layer, neuron, :count].tolist(),
                strict=True,
            )
        )
    ]
    if not where:
        return pd.DataFrame(columns=columns)
    width = min(index.ids.shape[1], max(position for *_, position in where) + _AFTER + 1)
    windows = sorted({window for _, _, window, _ in where})
    point = Point("mlp_post", layer)
    ids = index.ids[windows, :width].long()
    seen = lens.capture(ids.to(lens.device), [point])[point][..., neuron].float()
    lines = []
    for end, example, window, position in where:
        for at in range(max(0, position - _BEFORE), min(width, position + _AFTER + 1)):
            row = windows.index(window)
            activation, token = float(seen[row, at]), lens.string(int(ids[row, at]))
            lines.append((ENDS[end], example, window, at, token, activation, at == position))
    return pd.DataFrame(lines, columns=columns)


def concepts_table(
    lens: Lens,
    layer: int,
    rows: Vectors,
    known: ConceptDirections,
    threshold: float,
) -> pd.DataFrame:
    """The cosine of each vector with each direction of each concept."""
    lines = []
    for role, row in rows.items():
        direction = written_direction(lens, layer, role, row).cpu()
        cosines = torch.cosine_similarity(known.vectors, direction[None, None], dim=2).tolist()
        for concept, values in zip(known.names, cosines, strict=True):
            for kind, cosine in zip(KINDS, values, strict=True):
                lines.append((role, concept, kind, cosine, abs(cosine) > threshold))
    columns = ["role", "concept", "vector", "cosine", "beyond_chance"]
    return pd.DataFrame(lines, columns=columns)


def edits_table(lens: Lens, layer: int, neuron: int, patches: Sequence[Patch]) -> pd.DataFrame:
    """What patches make of the neuron's vectors."""
    lines = []
    for patch in patches:
        for role in lens.roles:
            rows = patch.edits.get((layer, role))
            if rows is None or neuron not in rows.neurons.tolist():
                continue
            at = rows.neurons.tolist().index(neuron)
            pair = torch.stack([rows.old[at], rows.new[at]]).float()
            best = _logits(lens, layer, role, pair).topk(_EDIT_TOKENS, dim=1).indices.tolist()
            said = [[lens.string(token) for token in tokens] for tokens in best]
            cosine = float(torch.cosine_similarity(pair[0], pair[1], dim=0))
            lines.append((patch.label, role, cosine, *pair.norm(dim=1).tolist(), *said))
    columns = ["patch", "role", "cosine", "old_norm", "new_norm", "old_tokens", "new_tokens"]
    return pd.DataFrame(lines, columns=columns)


def written_direction(
    lens: Lens, layer: int, role: Role, row: Float[Tensor, "... d_model"]
) -> Float[Tensor, "... d_model"]:
    """A weight vector as the residual stream sees it.

    What an `out` vector writes passes the norm after the MLP, where there is one (Gemma), and so
    is scaled by its gain; that norm's division changes its length alone.
    """
    gain = lens.post_norm_gain(layer) if role == "out" else None
    return row.float() if gain is None else row.float() * gain.float()


def _logits(
    lens: Lens, layer: int, role: Role, rows: Float[Tensor, "rows d_model"]
) -> Float[Tensor, "rows d_vocab"]:
    """What vectors say: through the final norm's gain (and centring) and the unembedding."""
    directions = written_direction(lens, layer, role, rows.to(lens.device))
    if lens.centres:
        directions = directions - directions.mean(dim=1, keepdim=True)
    return ((directions * lens.final_gain.float()).to(lens.dtype) @ lens.unembedding).float()
