"""The propagation map: where a concept stands in the residual stream, before and after an edit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tars_lens.attribution.asked import (
    Question,
    Wanted,
    check_leads,
    edits_of,
    first_edited,
    question,
)
from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.method.targeting import TargetingVector
from tars_lens.model.lens import Lens, Point
from tars_lens.model.readings import read_tokens
from tars_lens.model.weights import Edits, written
from tars_lens.patch.patch import Patch

PRESENT = 0.05
"""A concept is in the stream where the logit lens gives it at least this probability."""


@dataclass(frozen=True)
class Propagation:
    """The logit lens on every layer and position, of the model as it stands and of the edited one.

    Attributes:
        frame: See `to_frame`.
        tokens: The ids that were looked for.
    """

    frame: pd.DataFrame
    tokens: tuple[int, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt, position and layer (-1: the embedding).

        Returns:
            Columns prompt, text, position, token, layer, p_before, p_after, difference,
            rank_before, rank_after, cosine_before, cosine_after. `p` is the probability that the
            final norm and unembedding give the tokens, `difference` is `p_after - p_before`, and
            `rank` that of the likeliest token, 1 being the top. `after` is NaN without a patch,
            the cosines without a vector.
        """
        return self.frame.copy()

    def summary(self) -> pd.DataFrame:
        """One row a prompt, read at its last token.

        Returns:
            Columns prompt, text, first_top_layer (where the concept first is the top token,
            before), largest_before, stopped_layer, largest_after (over layers). The concept is
            stopped at the first layer from which on, to the last one,
            `p_after < max(p_before / 2, 0.05)`, counted from where `p_before` first is 0.05 or
            more. NaN where there is no such layer.
        """
        rows = [
            _summed(prompt, layers[layers["position"] == layers["position"].max()])
            for prompt, layers in self.frame.groupby("prompt")
        ]
        return pd.DataFrame(rows)


@undisturbed
def propagation(
    lens: Lens,
    prompts: str | Sequence[str],
    wanted: Wanted,
    *,
    patch: Patch | None = None,
    vector: TargetingVector | Float[Tensor, " d_model"] | None = None,
) -> Propagation:
    """Follows some tokens through all layers and positions, in one base and one edited run.

    The edited run begins at the first edited layer, and a row of the stream that the edit leaves
    as it is isn't read again.

    Args:
        lens: The model as it stands before the edit.
        prompts: Texts that lead to the concept.
        wanted: The concept, or token ids.
        patch: The edit.
        vector: A direction to compare the stream with, such as the targeting vector.

    Raises:
        TarsError: An empty prompt or one that leads nowhere near the tokens, a patch for another
            model, or a vector of another width.
    """
    asked = question(lens, prompts, wanted)
    edits = edits_of(lens, patch)
    direction = _direction(lens, vector)
    before = _streams(lens, asked)
    check_leads(lens, asked, lens.read_out(before[-1, _last_rows(asked)]))
    after = _edited_streams(lens, asked, before, edits) if patch is not None else None
    frame = _positions(lens, asked, layers=len(before))
    for name, values in _read_both(lens, asked, before, after).items():
        frame[name] = values
    frame.insert(frame.columns.get_loc("p_after") + 1, "difference", np.nan)
    frame["difference"] = frame["p_after"] - frame["p_before"]
    frame["cosine_before"] = _cosines(before, direction)
    frame["cosine_after"] = _cosines(after, direction)
    return Propagation(frame, asked.tokens)


def _streams(lens: Lens, asked: Question) -> Float[Tensor, "layers rows d_model"]:
    """The embedding and the stream after each layer, at every position that is text."""
    points = [Point("resid_pre", 0), *_after(range(lens.n_layers))]
    seen = lens.capture(asked.batch.ids, points)
    return torch.stack([seen[point][asked.real] for point in points])


def _edited_streams(
    lens: Lens, asked: Question, before: Float[Tensor, "layers rows d_model"], edits: Edits
) -> Float[Tensor, "layers rows d_model"]:
    first = first_edited(lens, edits)
    after = before.clone()
    if first == lens.n_layers:
        return after
    points = _after(range(first, lens.n_layers))
    shape = (*asked.batch.ids.shape, lens.d_model)
    start = torch.zeros(shape, dtype=before.dtype, device=before.device)
    start[asked.real] = before[first]  # padding on the right is never looked at
    with written(lens, edits):
        seen = lens.capture(asked.batch.ids, points, resume=(first, start))
    for point in points:
        after[point.layer + 1] = seen[point][asked.real]
    return after


def _after(layers: range) -> list[Point]:
    return [Point("resid_post", layer) for layer in layers]


def _read_both(
    lens: Lens,
    asked: Question,
    before: Float[Tensor, "layers rows d_model"],
    after: Float[Tensor, "layers rows d_model"] | None,
) -> dict[str, np.ndarray]:
    """Probabilities and ranks, in the frame's order; rows that are the same are read once."""
    rows = before.flatten(0, 1)
    if after is None:
        read = read_tokens(lens, rows, asked.tokens)
        nothing = torch.full((len(rows),), torch.nan)
        columns = {"p_before": read.probability, "p_after": nothing}
        columns |= {"rank_before": read.rank, "rank_after": nothing}
    else:
        other = after.flatten(0, 1)
        changed = (other != rows).any(dim=-1)
        read = read_tokens(lens, torch.cat([rows, other[changed]]), asked.tokens)
        p, rank = read.probability, read.rank
        p_after, rank_after = p[: len(rows)].clone(), rank[: len(rows)].clone()
        p_after[changed], rank_after[changed] = p[len(rows) :], rank[len(rows) :]
        columns = {"p_before": p[: len(rows)], "p_after": p_after}
        columns |= {"rank_before": rank[: len(rows)], "rank_after": rank_after}
    return {name: _ordered(values.reshape(len(before), -1)) for name, values in columns.items()}


def _ordered(values: Float[Tensor, "layers rows"] | Int64[Tensor, "layers rows"]) -> np.ndarray:
    """From layers first to the frame's order, where they come last."""
    return values.T.flatten().cpu().numpy()


def _cosines(
    streams: Float[Tensor, "layers rows d_model"] | None,
    direction: Float[Tensor, " d_model"] | None,
) -> np.ndarray | float:
    if streams is None or direction is None:
        return np.nan
    return _ordered(torch.cosine_similarity(streams.float(), direction, dim=-1))


def _direction(
    lens: Lens, vector: TargetingVector | Float[Tensor, " d_model"] | None
) -> Float[Tensor, " d_model"] | None:
    if vector is None:
        return None
    values = vector.vector if isinstance(vector, TargetingVector) else vector
    if values.shape != (lens.d_model,):
        raise TarsError(
            f"{lens.name} needs a vector of width {lens.d_model}, got shape {tuple(values.shape)}: "
            "make one for this model with tars_lens.target."
        )
    return values.detach().float().to(lens.device)


def _positions(lens: Lens, asked: Question, *, layers: int) -> pd.DataFrame:
    """Which row is which: prompt, text, position, token and layer."""
    prompt, position = (index.cpu() for index in asked.real.nonzero(as_tuple=True))
    tokens = [lens.string(int(t)) for t in asked.batch.ids[asked.real]]
    frame = pd.DataFrame({"prompt": prompt.numpy()})
    frame["text"] = [asked.texts[index] for index in prompt.tolist()]
    frame["position"], frame["token"] = position.numpy(), tokens
    frame = frame.loc[frame.index.repeat(layers)].reset_index(drop=True)
    frame["layer"] = np.tile(np.arange(-1, layers - 1), len(tokens))
    return frame


def _last_rows(asked: Question) -> Int64[Tensor, " batch"]:
    """Where each prompt's last token stands among the rows that are text."""
    return (asked.batch.last + 1).cumsum(dim=0) - 1


def _summed(prompt: int, layers: pd.DataFrame) -> dict[str, object]:
    before, after = layers["p_before"].to_numpy(), layers["p_after"].to_numpy()
    layer = layers["layer"].to_numpy()
    top = np.flatnonzero(layers["rank_before"].to_numpy() == 1)
    blocked = after < np.maximum(before / 2, PRESENT)  # NaN is never less
    stays = np.logical_and.accumulate(blocked[::-1])[::-1]
    stopped = np.flatnonzero(stays & (np.maximum.accumulate(before) >= PRESENT))
    return {
        "prompt": prompt,
        "text": layers["text"].iloc[0],
        "first_top_layer": layer[top[0]] if len(top) else np.nan,
        "largest_before": before.max(),
        "stopped_layer": layer[stopped[0]] if len(stopped) else np.nan,
        "largest_after": after.max(),
    }
