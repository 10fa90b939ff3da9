"""Whether a prompt leads the model to the concept: nothing can be gathered where none does."""

from collections.abc import Sequence

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.model.lens import Lens

_RANK = 100
_LEAST = 0.001


def leads(lens: Lens, prompts: Sequence[str], tokens: Sequence[int]) -> pd.DataFrame:
    """How far each prompt leads to a concept.

    Args:
        lens: The model.
        prompts: Texts.
        tokens: The concept's first tokens.

    Returns:
        One row a prompt: prompt (its index), text, probability (of the concept's tokens together),
        rank (of the likeliest of them, from 1), says (the model's likeliest token), says_p, leads
        (the rank is at most 100, or the likeliest token's probability at least 0.001).
    """
    return _told(lens, prompts, tokens, _said(lens, prompts))


def _said(lens: Lens, prompts: Sequence[str]) -> Float[Tensor, "prompts d_vocab"]:
    return lens.next_logits(lens.prompts(prompts)).softmax(dim=-1)


def _told(
    lens: Lens,
    prompts: Sequence[str],
    tokens: Sequence[int],
    probabilities: Float[Tensor, "prompts d_vocab"],
) -> pd.DataFrame:
    own = probabilities[:, list(tokens)]
    best, first = own.max(dim=1).values, probabilities.max(dim=1)
    ranks = (probabilities > best[:, None]).sum(dim=1) + 1
    return pd.DataFrame(
        {
            "prompt": range(len(prompts)),
            "text": list(prompts),
            "probability": own.sum(dim=1).tolist(),
            "rank": ranks.tolist(),
            "says": [lens.string(token) for token in first.indices.tolist()],
            "says_p": first.values.tolist(),
            "leads": ((ranks <= _RANK) | (best >= _LEAST)).tolist(),
        }
    )


def check_leads(
    lens: Lens, concept: Concept, prompts: Sequence[str], tokens: Sequence[int]
) -> Float[Tensor, "prompts d_vocab"]:
    """Refuses prompts none of which leads to the concept.

    Returns:
        The probability of each next token after each prompt.

    Raises:
        TarsError: The concept's likeliest token ranks below 100 with p < 0.001 at every prompt.
    """
    said = _said(lens, prompts)
    found = _told(lens, prompts, tokens, said)
    if not found["leads"].any():
        best = found.loc[found["rank"].idxmin()]
        raise TarsError(
            f"no prompt of {concept.name!r} leads {lens.name} to {concept.answer!r}: at best, "
            f"after {best['text']!r}, its token ranks {best['rank']} (p = "
            f"{best['probability']:.2g}), and the model says {best['says']!r} instead. Write a "
            "prompt whose next word is the answer, or choose a model that knows it."
        )
    return said
