"""How strong a rival is made: the gentlest setting that does it on what settings are chosen on."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.concept.first_tokens import first_token_probability
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation.probes import ERASED
from tars_lens.experiments.rivals.base import Edit
from tars_lens.method.targeting import PLAIN
from tars_lens.model.lens import Lens, Point


def gentlest(lens: Lens, concept: Concept, edits: Iterable[Edit]) -> Edit:
    """The first edit that erases the concept on its validation prompts, or what leaves least.

    Args:
        lens: The model.
        concept: The card.
        edits: The gentlest first; a later one is made only where those before it don't do.

    Raises:
        TarsError: There is none.
    """
    best: tuple[float, Edit] | None = None
    for edit in edits:
        with edit(lens):
            remains = left(lens, concept)
        if best is None or remains < best[0]:
            best = remains, edit
        if remains <= ERASED:
            break
    if best is None:
        raise TarsError(f"no setting was given to choose from for {concept.name!r}.")
    return best[1]


def left(lens: Lens, concept: Concept) -> float:
    """The concept's largest probability on the prompts that it is chosen on, as it stands."""
    prompts = forward_prompts(concept)
    tokens = first_tokens(lens, concept)
    return float(first_token_probability(lens, prompts, [tokens] * len(prompts)).max())


def forward_prompts(concept: Concept) -> list[str]:
    """Descriptions that lead to the concept: the vector's prompts and the validation ones."""
    return [*concept.concept_prompts, *(probe.prompt for probe in concept.validation.forward)]


def other_prompts(concept: Concept) -> list[str]:
    """Prompts that lead elsewhere: the card's near things, then unrelated ones."""
    near = (*concept.contrast, *concept.validation.neighbour)
    return [*(probe.prompt for probe in near), *PLAIN]


def at_last(lens: Lens, prompts: list[str], point: Point) -> Float[Tensor, "prompts width"]:
    """What passes a point at each prompt's last token, in float32."""
    batch = lens.prompts(prompts)
    return lens.capture(batch.ids, [point], positions=batch.last)[point].float()


def depths(lens: Lens, *shares: float) -> list[int]:
    """The layers at some depths, given as shares of the number of layers; each once."""
    return sorted({min(lens.n_layers - 1, int(share * lens.n_layers)) for share in shares})


def unit(vector: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
    """A vector's direction, in float32."""
    return torch.nn.functional.normalize(vector.float(), dim=0)
