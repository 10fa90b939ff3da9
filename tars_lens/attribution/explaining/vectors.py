"""The targeting vectors of the method `paper`: how they were refined, and what chance gives."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from tars_lens.concept.card import Concept
from tars_lens.evaluation.spread import cosine_frame
from tars_lens.method.paper import targeting_vector
from tars_lens.method.ranking import cosines, null_distribution
from tars_lens.method.targeting import TargetingVector
from tars_lens.model.lens import Lens
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch


def targeting_tables(
    lens: Lens, concepts: Sequence[Concept], patches: Sequence[Patch], seed: int
) -> dict[str, pd.DataFrame]:
    """`trajectory` and `null` of the vectors that the patches reverse, where the method is `paper`.

    Each vector is made again as it was: with the patch's settings, and the earlier patches in.
    """
    vectors = {}
    for index, (concept, patch) in enumerate(zip(concepts, patches, strict=True)):
        if patch.method.get("name") == "paper":
            with stack.holding(lens, patches[:index]):
                vectors[concept.name] = targeting_vector(lens, concept, patch.method)
    if not vectors:
        return {}
    return {"trajectory": trajectory_table(vectors), "null": null_table(lens, vectors, seed)}


def trajectory_table(vectors: Mapping[str, TargetingVector]) -> pd.DataFrame:
    """How the noise refined each vector: concept, step, probability, cosine, angle_degrees."""
    frames = [vector.to_frame().assign(concept=name) for name, vector in vectors.items()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def null_table(lens: Lens, vectors: Mapping[str, TargetingVector], seed: int) -> pd.DataFrame:
    """How all weight vectors' cosines are spread, beside those of random directions.

    Returns:
        Columns source (a concept, or chance), quantile, cosine, vectors, threshold (the largest
        cosine to be expected by chance).
    """
    if not vectors:
        return pd.DataFrame()
    found = cosines(lens, torch.stack([vector.vector for vector in vectors.values()]))
    null = null_distribution(lens, seed=seed)
    frames = [
        cosine_frame(pd.DataFrame({"cosine": values.cpu()}), null.to_frame(), source=name)
        for name, values in zip(vectors, found.values, strict=True)
    ]
    table = pd.concat(frames, ignore_index=True).drop_duplicates(ignore_index=True)
    return table.assign(threshold=null.threshold)
