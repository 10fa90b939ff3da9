"""Fine-tuning away from the answers: gradient ascent, and NPO (Zhang et al., arXiv 2404.05868)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.experiments.rivals.base import Edit, recorded
from tars_lens.experiments.rivals.facts import Facts, other_facts, own_facts
from tars_lens.experiments.rivals.training import all_weights, retained, train
from tars_lens.model.lens import Lens
from tars_lens.text.windows import Windows

_STEPS = 60
_RATE = 1e-5
_BETA = 0.1

Forget = Callable[[Float[Tensor, " facts"], Float[Tensor, " facts"]], Float[Tensor, ""]]
"""The forget term: of the answers' log probabilities by the model, and by the base."""


def gradient_ascent(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """Every weight trained to raise the loss of the concept's answers, with a retain term."""
    return _tuned(lens, concept, windows, lambda said, _: said.mean())


def npo(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """Negative preference optimisation, with a retain term.

    `-(2 / beta) E log sigmoid(-beta log(p / p0))`: ascent whose gradient fades as the answer goes.
    """
    return _tuned(lens, concept, windows, npo_loss)


def npo_loss(
    said: Float[Tensor, " facts"], base: Float[Tensor, " facts"], beta: float = _BETA
) -> Float[Tensor, ""]:
    """NPO's forget term, of log probabilities."""
    return 2 / beta * torch.nn.functional.softplus(beta * (said - base)).mean()


def _tuned(lens: Lens, concept: Concept, windows: Windows, forget: Forget) -> Edit:
    own = Facts.of(lens, own_facts(concept))
    near = other_facts(concept)
    others = Facts.of(lens, near) if near else None
    with torch.no_grad():
        base = own.log_probabilities(lens)

    def loss(step: int) -> Tensor:
        kept = retained(lens, windows.statistics, others, step)
        return forget(own.log_probabilities(lens), base) + kept

    weights = all_weights(lens)
    return recorded(lens, lambda: train(lens, concept, weights, loss, steps=_STEPS, rate=_RATE))
