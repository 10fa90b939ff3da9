"""The method `paper`: the abstract of arXiv 2412.10257 taken literally."""

from collections.abc import Mapping, Sequence
from typing import Any

from tars_lens.concept.card import Concept
from tars_lens.method.recipe import build_patch
from tars_lens.method.reversal import paper_edits
from tars_lens.method.settings import Settings
from tars_lens.method.targeting import TargetingVector, target
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Edits, written
from tars_lens.patch.patch import Patch


def reverse_literally(lens: Lens, concept: Concept, settings: Settings) -> Patch:
    """Replaces the weight vectors of highest cosine by the reversed targeting vector.

    The paper doesn't say how many; the smallest of `settings.paper_counts` that reaches the goal
    on validation text is taken, or the one that leaves least, unless `settings.edits` fixes it.
    Edits of several concepts may share a row: the literal method knows no hosts.

    Args:
        lens: The model as it stands, with earlier concepts removed.
        concept: The card; its reported probes are not looked at.
        settings: Of the refinement, and how many edits are tried.

    Raises:
        TarsError: No prompt of the card leads to the concept.
    """
    vector = targeting_vector(lens, concept, settings.to_dict())
    prompts = (*concept.concept_prompts, *(p.prompt for p in concept.validation.forward))
    counts = settings.paper_counts if settings.edits is None else (settings.edits,)
    tried: list[tuple[float, Edits, dict[str, Any]]] = []
    for count in sorted(counts):
        edits, ranked = paper_edits(lens, vector, count)
        left = _left(lens, edits, prompts, vector.tokens)
        about = {
            "kind": "paper",
            "layer": int(ranked["layer"].iloc[0]),
            "neurons": [int(ranked["neuron"].iloc[0])],
            "count": count,
            "targeting_probability": vector.probability,
            "left_on_validation": left,
        }
        tried.append((left, edits, about))
        if left <= settings.goal:
            break
    _, edits, about = min(tried, key=lambda one: one[0])
    return build_patch(lens, edits, concept, settings, [about])


def targeting_vector(lens: Lens, concept: Concept, settings: Mapping[str, Any]) -> TargetingVector:
    """The vector that the method reverses.

    Args:
        lens: The model as it stands, with earlier concepts removed.
        concept: The card.
        settings: As `Settings.to_dict` has them, and a patch's `method` keeps them.

    Raises:
        TarsError: No prompt of the card leads to the concept.
    """
    return target(
        lens,
        concept,
        sigma=settings["sigma"],
        samples=settings["samples"],
        budget=settings["refine_steps"],
        seed=settings["seed"],
    )


def _left(lens: Lens, edits: Edits, prompts: Sequence[str], tokens: Sequence[int]) -> float:
    """The concept's largest probability after any of the prompts with the edits in the model."""
    with written(lens, edits):
        said = lens.next_logits(lens.prompts(prompts)).softmax(dim=-1)
    return float(said[:, list(tokens)].sum(dim=1).max())
