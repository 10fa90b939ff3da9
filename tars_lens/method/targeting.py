"""The targeting vector: from a detailed prompt to a direction that triggers the concept's token.

Steps 1 and 2 of TARS (arXiv 2412.10257): the last layer's residual stream at the prompt's last
token approximates the concept; noise, scored by the unembedding, refines it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tars_lens.common.errors import TarsError, unknown
from tars_lens.common.files import whole_file
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.concept.leading import check_leads
from tars_lens.model.lens import Lens
from tars_lens.model.unembedding import Unembedding

Variant = Literal["refined", "raw", "centred", "unembedding", "whitened"]
"""`raw`: the approximate vector. `refined`: after noise. `centred`: raw, less unrelated prompts.
`unembedding`: the concept's own centred unembedding vectors. `whitened`: these, whitened."""

PLAIN = (
    "The meeting was moved to the following week because",
    "She opened the window and looked at the",
    "In the second half of the year, sales",
    "He walked along the road until he came to",
    "The recipe calls for two cups of",
    "According to the new rules, every member must",
    "It was late in the evening when the",
    "Children often ask their parents why",
    "The report describes how the company plans to",
    "On the left side of the page you will find",
    "After the rain had stopped, they decided to",
    "A good example of this kind of problem is",
)
"""Unrelated prompts, whose mean the residual streams of all prompts share."""

_NEIGHBOURS = 24


@dataclass(frozen=True, eq=False)
class TargetingVector:
    """A direction in the residual stream that stands for a concept.

    Attributes:
        vector: The direction, at the size of the stream.
        start: The approximate vector that it was refined from.
        tokens: The concept's first tokens.
        probability: Of these tokens, after the final norm and unembedding of `vector`.
        trajectory: Of the refinement; columns step, probability, cosine, angle_degrees (with the
            start).
        settings: How it was made.
    """

    vector: Float[Tensor, " d_model"]
    start: Float[Tensor, " d_model"]
    tokens: tuple[int, ...]
    probability: float
    trajectory: pd.DataFrame
    settings: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """The trajectory: one row a step."""
        return self.trajectory.copy()

    def save(self, path: Path | str) -> None:
        """Writes one safetensors file, whole or not at all.

        Raises:
            TarsError: It can't be written.
        """
        about = {
            "tokens": list(self.tokens),
            "probability": self.probability,
            "trajectory": self.trajectory.to_dict("list"),
            "settings": self.settings,
        }
        # a raw vector is its start, and safetensors writes no tensor twice
        values = {"vector": self.vector.cpu().clone(), "start": self.start.cpu()}
        with whole_file(path) as temporary:
            save_file(values, temporary, metadata={"targeting_vector": json.dumps(about)})

    @classmethod
    def load(cls, path: Path | str) -> "TargetingVector":
        """Reads what `save` wrote.

        Raises:
            TarsError: No such file, or another kind of file.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["targeting_vector"])
                vector, start = file.get_tensor("vector"), file.get_tensor("start")
            return cls(
                vector=vector,
                start=start,
                tokens=tuple(about["tokens"]),
                probability=about["probability"],
                trajectory=pd.DataFrame(about["trajectory"]),
                settings=about["settings"],
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TarsError(
                f"{str(path)!r} is not a targeting vector that TargetingVector.save has written: "
                f"{error}."
            ) from error


@undisturbed
def target(
    lens: Lens,
    concept: Concept,
    *,
    variant: Variant = "refined",
    prompts: Sequence[str] | None = None,
    sigma: float = 0.1,
    samples: int = 64,
    goal: float = 0.999,
    budget: int = 200,
    seed: int = 0,
    unembedding: Unembedding | None = None,
) -> TargetingVector:
    """The targeting vector of a concept.

    Args:
        lens: The model.
        concept: The card.
        variant: How the vector is made.
        prompts: In place of the card's detailed prompt; several are averaged.
        sigma: Noise of the refinement, relative to the vector's norm.
        samples: Perturbations tried in each step.
        goal: The probability at which the refinement is done.
        budget: Steps after which it gives up.
        seed: Of the noise.
        unembedding: Its statistics, where they are known already.

    Raises:
        TarsError: No prompt leads to the concept (says the rank that its token got), or a setting
            that makes no sense.
    """
    check_variant(variant)
    texts = list(prompts) if prompts is not None else [concept.prompt]
    tokens = first_tokens(lens, concept)
    check_leads(lens, concept, texts, tokens)
    start = approximate(lens, texts)
    if variant == "refined":
        found = refine(
            lens, start, tokens, sigma=sigma, samples=samples, goal=goal, budget=budget, seed=seed
        )
    else:
        vector = _variant(lens, variant, start, tokens, unembedding)
        found = _result(lens, vector, start, tokens, [])
    return replace(found, settings={**found.settings, "variant": variant, "prompts": texts})


def approximate(lens: Lens, prompts: Sequence[str]) -> Float[Tensor, " d_model"]:
    """The mean over prompts of the last layer's residual stream at the last token, in float32."""
    batch = lens.prompts(prompts)
    return lens.residual(batch.ids, -1, positions=batch.last).float().mean(dim=0)


def refine(
    lens: Lens,
    vector: Float[Tensor, " d_model"],
    tokens: Sequence[int],
    *,
    sigma: float = 0.1,
    samples: int = 64,
    goal: float = 0.999,
    budget: int = 200,
    seed: int = 0,
) -> TargetingVector:
    """Keeps the best of many Gaussian perturbations, again and again, until it says the token.

    Scored by the softmax probability of the concept's tokens after the model's own final norm and
    unembedding; a step that betters nothing keeps the vector.

    Raises:
        TarsError: A setting that makes no sense.
    """
    if not (sigma > 0 and samples > 0 and budget >= 0 and 0 < goal <= 1):
        raise TarsError(
            "refinement needs sigma > 0, samples > 0, budget >= 0 and 0 < goal <= 1, got "
            f"sigma={sigma}, samples={samples}, budget={budget}, goal={goal}."
        )
    generator = torch.Generator(device="cpu").manual_seed(seed)
    best = vector.float()
    probability = float(_probability(lens, best[None], tokens)[0])
    steps = [_step(0, probability, best, vector)]
    for step in range(1, budget + 1):
        if probability >= goal:
            break
        noise = torch.randn(samples, len(best), generator=generator).to(best.device)
        tried = best + noise * (sigma * best.norm() / len(best) ** 0.5)
        scores = _probability(lens, tried, tokens)
        if float(scores.max()) > probability:
            probability, best = float(scores.max()), tried[int(scores.argmax())]
        steps.append(_step(step, probability, best, vector))
    settings = {"sigma": sigma, "samples": samples, "goal": goal, "budget": budget, "seed": seed}
    return replace(_result(lens, best, vector, tokens, steps), settings=settings)


def check_variant(variant: str) -> None:
    """Refuses a variant that there isn't.

    Raises:
        TarsError: With the variants that there are.
    """
    if variant not in get_args(Variant):
        raise unknown("variant", variant, get_args(Variant))


def _variant(
    lens: Lens,
    variant: Variant,
    start: Float[Tensor, " d_model"],
    tokens: Sequence[int],
    unembedding: Unembedding | None,
) -> Float[Tensor, " d_model"]:
    if variant == "raw":
        return start
    if variant == "centred":
        return start - approximate(lens, PLAIN)
    known = unembedding or Unembedding.fit(lens)
    if variant == "unembedding":
        direction = known.vectors(tokens).mean(dim=0)
    else:
        direction = known.write_target(tokens, known.nearest_words(tokens, _NEIGHBOURS))
    return direction / direction.norm() * start.norm()


def _result(
    lens: Lens,
    vector: Float[Tensor, " d_model"],
    start: Float[Tensor, " d_model"],
    tokens: Sequence[int],
    steps: list[dict[str, float | int]],
) -> TargetingVector:
    probability = float(_probability(lens, vector[None], tokens)[0])
    steps = steps or [_step(0, probability, vector, start)]
    return TargetingVector(vector, start, tuple(tokens), probability, pd.DataFrame(steps))


def _probability(
    lens: Lens, vectors: Float[Tensor, "samples d_model"], tokens: Sequence[int]
) -> Float[Tensor, " samples"]:
    logits = lens.read_out(vectors)
    return logits.softmax(dim=-1)[:, list(tokens)].sum(dim=1)


def _step(
    step: int,
    probability: float,
    vector: Float[Tensor, " d_model"],
    start: Float[Tensor, " d_model"],
) -> dict[str, float | int]:
    # in float32 the angle of two equal vectors comes out as up to 0.03 degrees
    cosine = float(torch.cosine_similarity(vector.double(), start.double(), dim=0).clamp(-1, 1))
    angle = math.degrees(math.acos(cosine))
    return {"step": step, "probability": probability, "cosine": cosine, "angle_degrees": angle}
