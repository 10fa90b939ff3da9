"""Needle (Hong et al., arXiv 2406.11614): the one vector that holds a concept, destroyed."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.evaluation.probes import ERASED
from tars_lens.experiments.rivals.base import Edit, recorded
from tars_lens.experiments.rivals.choosing import gentlest, left
from tars_lens.experiments.rivals.facts import Facts, own_facts
from tars_lens.experiments.rivals.training import out_weight, trainable
from tars_lens.experiments.rivals.value_vectors import token_scores
from tars_lens.model.lens import Lens
from tars_lens.text.windows import Windows

_NOISES = (1.0, 3.0)
_STEPS = 20


def needle(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """Noise on the out vector that says the concept most, then gradient ascent on it alone.

    The noise is Gaussian, in units of the vector's root mean square; each step of the ascent on
    the loss of the card's facts moves the vector by a quarter of its norm.
    """
    scores = token_scores(lens, concept)
    layer, neuron = divmod(int(scores.argmax()), scores.shape[1])
    return gentlest(lens, concept, _edits(lens, concept, layer, neuron, seed))


def _edits(lens: Lens, concept: Concept, layer: int, neuron: int, seed: int) -> Iterator[Edit]:
    for noise in _NOISES:

        def change(noise: float = noise) -> None:
            generator = torch.Generator().manual_seed(seed)
            row = lens.vectors(layer, "out")[neuron]
            drawn = torch.randn(row.shape, generator=generator).to(row)
            size = row.float().norm()
            row += noise * size / len(row) ** 0.5 * drawn
            _ascend(lens, concept, layer, neuron, size / 4)

        yield recorded(lens, change)


def _ascend(lens: Lens, concept: Concept, layer: int, neuron: int, length: Tensor) -> None:
    """Moves one vector to where the card's facts are less likely."""
    facts = Facts.of(lens, own_facts(concept))
    row = lens.vectors(layer, "out")[neuron]
    for _ in range(_STEPS):
        if left(lens, concept) <= ERASED:
            break
        slope = _slope(lens, facts, layer)[neuron].float()
        if not slope.norm() > 0:
            break
        row -= (length * slope / slope.norm()).to(row)


def _slope(lens: Lens, facts: Facts, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """The gradient of the facts' mean log probability by the out vectors of a layer."""
    weight, rows = out_weight(lens, layer), lens.vectors(layer, "out")
    with trainable([weight]), torch.enable_grad():
        (found,) = torch.autograd.grad(facts.log_probabilities(lens).mean(), [weight])
    return found.contiguous().as_strided(rows.shape, rows.stride())
