"""What can be seen of a concept before anything is changed: its vector, the ranking, the null."""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.cache import Advance, silent
from tars_lens.common.errors import TarsError
from tars_lens.common.files import write_text
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.concept.leading import leads
from tars_lens.method.describing import describe, describe_model
from tars_lens.method.ranking import Cosines, Null, cosines, null_distribution
from tars_lens.method.targeting import (
    PLAIN,
    TargetingVector,
    Variant,
    approximate,
    check_variant,
    target,
)
from tars_lens.model.lens import Lens
from tars_lens.model.unembedding import Unembedding

NULL = "null"
PLAIN_TEXT = "plain text"
"""The mean of unrelated prompts, which stands beside the variants as what isn't the concept."""

_SAID = 5


@dataclass(frozen=True, eq=False)
class Inspection:
    """A concept in a model, unchanged.

    Attributes:
        concept: The card's name.
        answer: What the model is led to say.
        model: Its name, layers, d_model, d_mlp, roles and dtype.
        variant: Whose ranking it is.
        seed: Of the refinement and of the null.
        prompts: Which prompts lead to the concept, as `leads` has it; `used` tells the one that the
            vector is made from.
        vectors: One row a variant, and one for plain text: vector, probability (of the concept's
            tokens through the read-out), cosine_plain (with the mean of unrelated prompts), says
            (top tokens, each quoted), above_null (weight vectors whose cosine exceeds the null's
            threshold), largest_cosine, shared_with_plain (how many of the `top` highest are among
            the `top` highest of plain text as well).
        angles: Between each pair of variants, in degrees: a, b, angle_degrees.
        trajectory: Of the refinement: step, probability, cosine, angle_degrees.
        ranking: The highest cosines, described; above_null tells which exceed the threshold.
        spread: Cosines of all weight vectors by quantile: vector (a variant, plain text or null),
            quantile, cosine; 1.0 is the largest.
        null: What chance gives.
        vector: The targeting vector that was ranked.
    """

    concept: str
    answer: str
    model: dict[str, Any]
    variant: Variant
    seed: int
    prompts: pd.DataFrame
    vectors: pd.DataFrame
    angles: pd.DataFrame
    trajectory: pd.DataFrame
    ranking: pd.DataFrame
    spread: pd.DataFrame
    null: Null
    vector: TargetingVector

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by name, as `save` writes them."""
        return {
            "prompts": self.prompts,
            "vectors": self.vectors,
            "angles": self.angles,
            "trajectory": self.trajectory,
            "ranking": self.ranking,
            "null": self.spread,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the vectors' components, as JSON values."""
        null = {k: v for k, v in vars(self.null).items() if k != "quantiles"}
        return {
            "concept": self.concept,
            "answer": self.answer,
            "model": self.model,
            "variant": self.variant,
            "seed": self.seed,
            **{name: table.to_dict("records") for name, table in self.tables.items()},
            "null": {**null, "spread": self.spread.to_dict("records")},
        }

    def save(self, folder: Path | str) -> tuple[str, ...]:
        """Writes each table as CSV and the ranked vector; returns the files' names.

        Raises:
            TarsError: The folder can't be written.
        """
        folder = Path(folder)
        for name, table in self.tables.items():
            write_text(folder / f"{name}.csv", table.to_csv(index=False))
        self.vector.save(folder / "targeting_vector.safetensors")
        return (*(f"{name}.csv" for name in self.tables), "targeting_vector.safetensors")


@undisturbed
def inspect(
    lens: Lens,
    concept: Concept,
    *,
    variant: Variant = "refined",
    top: int = 20,
    seed: int = 0,
    advance: Advance | None = None,
) -> Inspection:
    """Shows how a concept can be targeted in a model; changes nothing.

    Args:
        lens: The model.
        concept: The card.
        variant: Which vector the weight vectors are ranked against.
        top: How many of them to describe.
        seed: Of the refinement and of the null.
        advance: Told the progress.

    Raises:
        TarsError: The detailed prompt doesn't lead to the concept (says the rank it got), an
            unknown variant, or a `top` below 1.
    """
    check_choices(variant, top)
    say = advance or silent
    say("making the vectors", 0, 3)
    # the cheapest first: it refuses a prompt that doesn't lead before the unembedding is read
    refined = target(lens, concept, variant="refined", seed=seed)
    variants = _variants(lens, concept, refined)
    plain = approximate(lens, PLAIN)
    say("ranking all weight vectors", 1, 3)
    found = cosines(lens, torch.stack([*(v.vector for v in variants.values()), plain]))
    null = null_distribution(lens, seed=seed)
    say("reading the neurons", 2, 3)
    ranking = found.top(top)
    names = [*variants, PLAIN_TEXT]
    ranked = ranking[ranking["target"] == names.index(variant)].drop(columns="target")
    ranked["above_null"] = ranked["cosine"] > null.threshold
    inspection = Inspection(
        concept=concept.name,
        answer=concept.answer,
        model=describe_model(lens),
        variant=variant,
        seed=seed,
        prompts=_prompts(lens, concept, refined),
        vectors=_vectors(lens, variants, plain, found, null, ranking),
        angles=_angles(variants),
        trajectory=refined.to_frame(),
        ranking=describe(lens, ranked.reset_index(drop=True), concept=concept),
        spread=_spread(found, names, null),
        null=null,
        vector=variants[variant],
    )
    say("reading the neurons", 3, 3)
    return inspection


def check_choices(variant: str, top: int) -> None:
    """Refuses what needs no model to be refused.

    Raises:
        TarsError: An unknown variant, or a `top` below 1.
    """
    check_variant(variant)
    if top < 1:
        raise TarsError(f"--top must be at least 1, got {top}.")


def _variants(
    lens: Lens, concept: Concept, refined: TargetingVector
) -> dict[Variant, TargetingVector]:
    unembedding = Unembedding.fit(lens)
    order: tuple[Variant, ...] = ("raw", "refined", "centred", "unembedding", "whitened")
    return {
        name: refined
        if name == "refined"
        else target(lens, concept, variant=name, unembedding=unembedding)
        for name in order
    }


def _prompts(lens: Lens, concept: Concept, refined: TargetingVector) -> pd.DataFrame:
    found = leads(lens, concept.concept_prompts, refined.tokens)
    found.insert(2, "used", found["text"].isin(refined.settings["prompts"]))
    return found


def _vectors(
    lens: Lens,
    variants: dict[Variant, TargetingVector],
    plain: Float[Tensor, " d_model"],
    found: Cosines,
    null: Null,
    ranking: pd.DataFrame,
) -> pd.DataFrame:
    rows = torch.stack([*(v.vector for v in variants.values()), plain])
    probabilities = lens.read_out(rows).softmax(dim=-1)
    tokens = list(variants["refined"].tokens)
    best = probabilities.topk(_SAID).indices.tolist()
    keys = ["layer", "role", "neuron"]
    highest = [set(map(tuple, part[keys].values)) for _, part in ranking.groupby("target")]
    return pd.DataFrame(
        {
            "vector": [*variants, PLAIN_TEXT],
            "probability": probabilities[:, tokens].sum(dim=1).tolist(),
            "cosine_plain": torch.cosine_similarity(rows, plain[None]).tolist(),
            "says": [" ".join(repr(lens.string(t)) for t in row) for row in best],
            "above_null": found.above(null.threshold),
            "largest_cosine": found.values.max(dim=1).values.tolist(),
            "shared_with_plain": [len(own & highest[-1]) for own in highest],
        }
    )


def _angles(variants: dict[Variant, TargetingVector]) -> pd.DataFrame:
    rows = []
    for a, b in combinations(variants, 2):
        cosine = torch.cosine_similarity(variants[a].vector, variants[b].vector, dim=0)
        angle = float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))
        rows.append({"a": a, "b": b, "angle_degrees": angle})
    return pd.DataFrame(rows)


def _spread(found: Cosines, names: list[str], null: Null) -> pd.DataFrame:
    own = found.quantiles()
    own.insert(0, "vector", [names[target] for target in own.pop("target")])
    chance = null.to_frame()
    chance.insert(0, "vector", NULL)
    return pd.concat([own, chance], ignore_index=True)
