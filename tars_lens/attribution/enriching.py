"""The read side: at the concept's own name, which layers enrich it with its attributes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.attribution.asked import edits_of
from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.method.name import FRAMES
from tars_lens.model.lens import Batch, Lens, Point
from tars_lens.model.readings import Readings, read_tokens
from tars_lens.model.weights import written
from tars_lens.patch.patch import Patch


@dataclass(frozen=True)
class Enrichment:
    """What the stream at a concept's name says of its attributes, layer by layer.

    Attributes:
        frame: See `to_frame`.
        tokens: The first token of each attribute, which is what is looked for.
    """

    frame: pd.DataFrame
    tokens: dict[str, str]

    def to_frame(self) -> pd.DataFrame:
        """One row for each name, attribute and layer (-1: the embedding).

        Returns:
            Columns name, attribute, layer, p_before, p_after (means over the contexts of the
            probability that the final norm and unembedding give the attribute's first token),
            rank_before, rank_after (medians; 1 is the top token). `after` is NaN without a patch.
        """
        return self.frame.copy()


@undisturbed
def enrichment(
    lens: Lens,
    concept: Concept,
    attributes: Sequence[str] | None = None,
    *,
    patch: Patch | None = None,
    names: Sequence[str] | None = None,
) -> Enrichment:
    """Reads the attributes out of the stream at the last token of the name, in neutral contexts.

    Args:
        lens: The model as it stands before the edit.
        concept: The card.
        attributes: What it is known for; the answers of its reported reverse probes where not
            given.
        patch: The edit.
        names: How the concept is named; the first of the card's names where not given.

    Raises:
        TarsError: No attribute or name, an empty one, or a patch for another model.
    """
    asked = list(dict.fromkeys(attributes or [p.answer for p in concept.probes.reverse]))
    called = list(names) if names is not None else [concept.names[0]]
    if not asked or not called or not all(text.strip() for text in (*asked, *called)):
        raise TarsError(
            f"enrichment of {concept.name!r} needs attributes and names, none of them empty, got "
            f"attributes {asked} and names {called}."
        )
    edits = edits_of(lens, patch)
    texts = [frame.format(name.strip()) for name in called for frame in FRAMES]
    batch = lens.prompts(texts)
    tokens = [lens.pieces(f" {attribute.strip()}")[0] for attribute in asked]
    before = _read(lens, _streams(lens, batch), tokens)
    after = None
    if patch is not None:
        with written(lens, edits):
            streams = _streams(lens, batch)
        after = _read(lens, streams, tokens)
    frame = _frame(lens, called, asked, before, after)
    return Enrichment(frame, dict(zip(asked, map(lens.string, tokens), strict=True)))


def _streams(lens: Lens, batch: Batch) -> Float[Tensor, "layers texts d_model"]:
    points = [Point("resid_pre", 0), *(Point("resid_post", k) for k in range(lens.n_layers))]
    seen = lens.capture(batch.ids, points, positions=batch.last)
    return torch.stack([seen[point] for point in points])


def _read(
    lens: Lens, streams: Float[Tensor, "layers texts d_model"], tokens: Sequence[int]
) -> Readings:
    """`[names, attributes, layers]`: means and medians over the contexts."""
    read = read_tokens(lens, streams.flatten(0, 1), tokens, each=True)
    shape = (len(streams), -1, len(FRAMES), len(tokens))
    probability = read.probability.reshape(shape).mean(dim=2)
    rank = read.rank.reshape(shape).median(dim=2).values
    return Readings(probability.permute(1, 2, 0), rank.permute(1, 2, 0))


def _frame(
    lens: Lens,
    names: Sequence[str],
    attributes: Sequence[str],
    before: Readings,
    after: Readings | None,
) -> pd.DataFrame:
    layers = range(-1, lens.n_layers)
    index = pd.MultiIndex.from_product(
        [names, attributes, layers], names=["name", "attribute", "layer"]
    )
    frame = index.to_frame(index=False)
    for column, kind in (("p", "probability"), ("rank", "rank")):
        frame[f"{column}_before"] = getattr(before, kind).flatten().cpu().numpy()
        frame[f"{column}_after"] = (
            np.nan if after is None else getattr(after, kind).flatten().cpu().numpy()
        )
    return frame
