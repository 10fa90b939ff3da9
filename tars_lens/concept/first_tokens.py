"""The probability of an answer's first token: one run a prompt, however many forms it has."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.model.lens import Lens

_ROWS = 32


def first_token_probability(
    lens: Lens, prompts: Sequence[str], tokens: Sequence[Sequence[int]]
) -> Float[Tensor, " prompts"]:
    """What the model as it stands gives, after each prompt, to any of the prompt's own tokens."""
    found = []
    for start in range(0, len(prompts), _ROWS):
        logits = lens.next_logits(lens.prompts(prompts[start : start + _ROWS]))
        probabilities = logits.softmax(dim=-1).cpu()
        own = tokens[start : start + _ROWS]
        found += [row[list(ids)].sum() for row, ids in zip(probabilities, own, strict=True)]
    return torch.stack(found) if found else torch.zeros(0)
