"""Causal tracing: activations of the base put into the edited run, and the reverse."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.attribution.asked import Question, Wanted, check_leads, edits_of, question
from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.model.lens import Lens, Point
from tars_lens.model.readings import read_tokens
from tars_lens.model.weights import written
from tars_lens.patch.patch import Patch

TracedSite = Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]

_CELLS = 64


@dataclass(frozen=True)
class CausalTrace:
    """What one activation at a time carries of the concept from one run into the other.

    Attributes:
        frame: See `to_frame`.
        p_base: The tokens' probability after the prompt.
        p_edited: The same with the edit.
    """

    frame: pd.DataFrame
    p_base: float
    p_edited: float

    def to_frame(self) -> pd.DataFrame:
        """One row for each direction, layer and position.

        Returns:
            Columns direction (base_into_edited or edited_into_base), site, layer, position, token,
            p (of the run that was patched), restored (the share of the way from the patched run's
            own probability to that of the run that the activation came from; NaN where the two
            are equal).
        """
        return self.frame.copy()


@undisturbed
def causal_trace(
    lens: Lens,
    prompt: str,
    wanted: Wanted,
    patch: Patch,
    *,
    site: TracedSite = "resid_post",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> CausalTrace:
    """Patches one layer and position after another, all positions of a layer in one batch.

    The layers before the patched one aren't run again, and where the two runs agree there is
    nothing to carry and nothing is run.

    Args:
        lens: The model as it stands before the edit.
        prompt: A text that leads to the concept.
        wanted: The concept, or token ids.
        patch: The edit.
        site: What is carried over: the stream before or after a layer, or what its attention or
            MLP adds to it.
        layers: Which; all where not given.
        positions: Which; all where not given. The last one is -1 too.

    Raises:
        TarsError: An empty prompt or one that leads nowhere near the tokens, a patch for another
            model, or no such site, layer or position.
    """
    asked = question(lens, [prompt], wanted)
    if site not in get_args(TracedSite):
        raise TarsError(f"no site {site!r}: choose one of {', '.join(get_args(TracedSite))}.")
    length = asked.batch.ids.shape[1]
    depth = _chosen(layers, lens.n_layers, "layer", lens.name)
    where = _chosen(positions, length, "position", "the prompt")
    edits = edits_of(lens, patch)
    base = _run(lens, asked, site)
    check_leads(lens, asked, lens.read_out(base.stream[-1][-1:]))
    with written(lens, edits):
        edited = _run(lens, asked, site)
    ends = read_tokens(
        lens, torch.stack([base.stream[-1][-1], edited.stream[-1][-1]]), asked.tokens
    )
    p_base, p_edited = ends.probability.tolist()
    frames = []
    for direction, into, source, held in (
        ("base_into_edited", edited, base, edits),
        ("edited_into_base", base, edited, {}),
    ):
        with written(lens, held) if held else nullcontext():
            finals = [_patched(lens, asked, site, k, where, into, source) for k in depth]
        p = read_tokens(lens, torch.cat(finals), asked.tokens).probability.cpu().numpy()
        own, other = (p_edited, p_base) if into is edited else (p_base, p_edited)
        frames.append(_frame(lens, asked, direction, site, depth, where, p, own, other))
    return CausalTrace(pd.concat(frames, ignore_index=True), p_base, p_edited)


class _Run(NamedTuple):
    """One prompt's run: the stream before each layer and after the last, and the site."""

    stream: Float[Tensor, "edges pos d_model"]
    site: Float[Tensor, "layers pos d_model"]


def _run(lens: Lens, asked: Question, site: TracedSite) -> _Run:
    layers = range(lens.n_layers)
    edges = [Point("resid_pre", 0), *(Point("resid_post", layer) for layer in layers)]
    places = [Point(site, layer) for layer in layers]
    seen = lens.capture(asked.batch.ids, [*edges, *places])
    return _Run(
        torch.stack([seen[point][0] for point in edges]),
        torch.stack([seen[point][0] for point in places]),
    )


def _patched(
    lens: Lens,
    asked: Question,
    site: TracedSite,
    layer: int,
    where: Sequence[int],
    into: _Run,
    source: _Run,
) -> Float[Tensor, "cells d_model"]:
    """The last stream at the last position, for each position that is patched at this layer."""
    finals = into.stream[-1][-1].repeat(len(where), 1)
    index = torch.tensor(list(where), device=finals.device)
    differs = (into.site[layer][index] != source.site[layer][index]).any(dim=-1)
    for cells in differs.nonzero()[:, 0].split(_CELLS):
        if len(cells):
            at = index[cells]
            values = into.site[layer].repeat(len(cells), 1, 1)
            values[torch.arange(len(cells)), at] = source.site[layer][at]
            finals[cells] = _onward(lens, asked, Point(site, layer), values, into)
    return finals


def _onward(
    lens: Lens,
    asked: Question,
    point: Point,
    values: Float[Tensor, "cells pos d_model"],
    into: _Run,
) -> Float[Tensor, "cells d_model"]:
    count, length = values.shape[:2]
    start = point.layer + (point.site == "resid_post")
    if start == lens.n_layers:
        return values[:, -1]
    in_stream = point.site in ("resid_pre", "resid_post")
    before = values if in_stream else into.stream[start].repeat(count, 1, 1)
    end = Point("resid_post", lens.n_layers - 1)
    return lens.capture(
        asked.batch.ids.expand(count, -1),
        [end],
        positions=torch.full((count,), length - 1, device=values.device),
        resume=(start, before),
        replace={} if in_stream else {point: values},
    )[end]


def _chosen(given: Sequence[int] | None, count: int, what: str, whose: str) -> list[int]:
    if given is None:
        return list(range(count))
    wrong = next((index for index in given if not -count <= index < count), None)
    if wrong is not None or not given:
        raise TarsError(f"no {what} {wrong}: {whose} has 0 to {count - 1}.")
    return [index % count for index in given]


def _frame(
    lens: Lens,
    asked: Question,
    direction: str,
    site: str,
    depth: Sequence[int],
    where: Sequence[int],
    p: np.ndarray,
    own: float,
    other: float,
) -> pd.DataFrame:
    tokens = [lens.string(int(asked.batch.ids[0, position])) for position in where]
    return pd.DataFrame(
        {
            "direction": direction,
            "site": site,
            "layer": np.repeat(depth, len(where)),
            "position": np.tile(where, len(depth)),
            "token": tokens * len(depth),
            "p": p,
            "restored": (p - own) / (other - own) if other != own else np.nan,
        }
    )
