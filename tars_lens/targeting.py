"""The targeting vector: from a detailed prompt to a direction that triggers the concept's token.

Steps 1 and 2 of TARS (arXiv 2412.10257): the last layer's residual stream at the prompt's last
token approximates the concept; noise, scored by the unembedding, refines it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tars_lens.concept import Concept
from tars_lens.errors import TarsError
from tars_lens.files import whole_file
from tars_lens.forms import first_tokens
from tars_lens.lens import Lens
from tars_lens.unembedding import Unembedding

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

_RANK = 100
_LEAST = 0.001


@dataclass(frozen=True)
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
        values = {"vector": self.vector.cpu(), "start": self.start.cpu()}
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
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TarsError(f"{str(path)!r} is not a targeting vector: {error}.") from error
        return cls(
            vector=vector,
            start=start,
            tokens=tuple(about["tokens"]),
            probability=about["probability"],
            trajectory=pd.DataFrame(about["trajectory"]),
            settings=about["settings"],
        )


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

    Raises:
        TarsError: No prompt leads to the concept (says the rank that its token got).
    """
    texts = list(prompts) if prompts is not None else [concept.prompt]
    tokens = first_tokens(lens, concept)
    check_leads(lens, concept, texts, tokens)
    start = approximate(lens, texts)
    if variant == "refined":
        found = refine(
            lens, start, tokens, sigma=sigma, samples=samples, goal=goal, budget=budget, seed=seed
        )
    else:
        vector = _variant(lens, variant, start, tokens)
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


def check_leads(
    lens: Lens, concept: Concept, prompts: Sequence[str], tokens: Sequence[int]
) -> None:
    """Refuses prompts none of which leads to the concept.

    Raises:
        TarsError: The concept's likeliest token ranks below 100 with p < 0.001 at every prompt.
    """
    probabilities = lens.next_logits(lens.prompts(prompts)).softmax(dim=-1)
    own = probabilities[:, list(tokens)].max(dim=1).values
    ranks = (probabilities > own[:, None]).sum(dim=1) + 1
    best = int(ranks.argmin())
    if int(ranks[best]) > _RANK and float(own.max()) < _LEAST:
        instead = lens.string(int(probabilities[best].argmax()))
        raise TarsError(
            f"no prompt of {concept.name!r} leads {lens.name} to {concept.answer!r}: at best, "
            f"after {prompts[best]!r}, its token ranks {int(ranks[best])} (p = "
            f"{float(own[best]):.2g}), and the model says {instead!r} instead. Write a prompt "
            "whose next word is the answer."
        )


def _variant(
    lens: Lens, variant: Variant, start: Float[Tensor, " d_model"], tokens: Sequence[int]
) -> Float[Tensor, " d_model"]:
    if variant == "raw":
        return start
    if variant == "centred":
        return start - approximate(lens, PLAIN)
    if variant not in ("unembedding", "whitened"):
        raise TarsError(
            f"unknown variant {variant!r}. There is: centred, raw, refined, unembedding, whitened."
        )
    unembedding = Unembedding.fit(lens)
    if variant == "unembedding":
        direction = unembedding.vectors(tokens).mean(dim=0)
    else:
        direction = unembedding.write_target(tokens, unembedding.nearest_words(tokens, 24))
    return direction / direction.norm() * start.norm()


def _result(
    lens: Lens,
    vector: Float[Tensor, " d_model"],
    start: Float[Tensor, " d_model"],
    tokens: Sequence[int],
    steps: list[dict[str, float]],
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
) -> dict[str, float]:
    cosine = float(torch.cosine_similarity(vector, start, dim=0).clamp(-1, 1))
    angle = float(torch.rad2deg(torch.arccos(torch.tensor(cosine))))
    return {"step": step, "probability": probability, "cosine": cosine, "angle_degrees": angle}
