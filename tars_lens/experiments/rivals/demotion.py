"""REVS-style rank demotion (Ashuach et al., arXiv 2406.09325): rank editing in the vocabulary."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.experiments.rivals.base import Edit, recorded
from tars_lens.experiments.rivals.choosing import gentlest
from tars_lens.experiments.rivals.value_vectors import firing, token_scores
from tars_lens.model.lens import Lens
from tars_lens.text.windows import Windows

_COUNTS = (10, 30, 100)
_ROUNDS = 50


def demotion(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """The concept's tokens demoted to the middle of the vocabulary in what some neurons say.

    The neurons are those that write the tokens most at prompts that lead to the concept: by
    activation times the tokens' score. One that fires below zero writes its vector's reverse, in
    which the tokens are then demoted.
    """
    active = firing(lens, concept)
    written = active * token_scores(lens, concept)
    order = written.flatten().argsort(descending=True).tolist()
    tokens = first_tokens(lens, concept)
    return gentlest(lens, concept, _edits(lens, tokens, order, active))


def _edits(
    lens: Lens, tokens: Sequence[int], order: Sequence[int], active: Float[Tensor, "layers d_mlp"]
) -> Iterator[Edit]:
    back = pulled_back(lens, tokens)
    for count in _COUNTS:

        def change(count: int = count) -> None:
            for index in order[:count]:
                layer, neuron = divmod(index, lens.d_mlp)
                row = lens.vectors(layer, "out")[neuron]
                sign = 1.0 if active[layer, neuron] >= 0 else -1.0
                row.copy_(sign * demoted(lens, sign * row.float(), tokens, back))

        yield recorded(lens, change)


def pulled_back(lens: Lens, tokens: Sequence[int]) -> Float[Tensor, "tokens d_model"]:
    """Rows of the unembedding's pseudo-inverse: `(U U^T)^-1 U_t`.

    The change of a vector that lowers a token's logit and all others, squared and summed, least.
    """
    columns = lens.unembedding.float()
    gram = columns @ columns.T
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    return torch.linalg.solve(gram, columns[:, list(tokens)]).T


def demoted(
    lens: Lens,
    row: Float[Tensor, " d_model"],
    tokens: Sequence[int],
    back: Float[Tensor, "tokens d_model"],
) -> Float[Tensor, " d_model"]:
    """A vector in whose logits each token ranks in the lower half of the vocabulary.

    A token's logit is set to the median, and the logits are mapped back to a vector; as that
    moves others too, it is done again until the rank is reached.
    """
    columns = lens.unembedding.float()
    for _ in range(_ROUNDS):
        logits = row @ columns
        above = logits[list(tokens)] - logits.median()
        if not (above > 0).any():
            break
        for token, over, towards in zip(tokens, above, back, strict=True):
            if over > 0:
                # a little below it, so that the rounds come to an end
                step = 1.05 * over + 1e-4 * logits.std()
                row = row - step / (towards @ columns[:, token]) * towards
    return row
