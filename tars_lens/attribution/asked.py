"""What every attribution asks: which tokens, after which prompts, of which edit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.model.lens import Batch, Lens
from tars_lens.model.weights import Edits
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch

Wanted = Concept | Sequence[int]
"""The tokens that are looked for: ids, or a card for the first tokens of its surface forms."""

LOWEST_RANK = 100
LEAST = 0.001
"""A prompt leads to a token that ranks at least this high, or is at least this likely."""


@dataclass(frozen=True)
class Question:
    """Prompts, and the tokens that are looked for after them.

    Attributes:
        texts: The prompts.
        batch: Their ids, padded.
        tokens: The ids that are looked for.
    """

    texts: tuple[str, ...]
    batch: Batch
    tokens: tuple[int, ...]

    @property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """Which positions are text and no padding."""
        width = torch.arange(self.batch.ids.shape[1], device=self.batch.ids.device)
        return width[None] <= self.batch.last[:, None]


def question(lens: Lens, prompts: str | Sequence[str], wanted: Wanted) -> Question:
    """Checks and tokenises what is asked.

    Raises:
        TarsError: No prompt or an empty one, no token, or one that the model doesn't have.
    """
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not texts or not all(text.strip() for text in texts):
        raise TarsError("an empty prompt gives the model nothing to read: write some text.")
    return Question(texts, lens.prompts(texts), wanted_tokens(lens, wanted))


def wanted_tokens(lens: Lens, wanted: Wanted) -> tuple[int, ...]:
    """The ids that are looked for, each once.

    Raises:
        TarsError: There are none, or one that the model doesn't have.
    """
    given = first_tokens(lens, wanted) if isinstance(wanted, Concept) else list(wanted)
    tokens = tuple(dict.fromkeys(given))
    if not tokens:
        raise TarsError("no token was given: pass ids, or a concept's card.")
    strange = next((t for t in tokens if not 0 <= t < lens.d_vocab), None)
    if strange is not None:
        raise TarsError(f"no token {strange}: {lens.name} has 0 to {lens.d_vocab - 1}.")
    return tokens


def edits_of(lens: Lens, patch: Patch | None) -> Edits:
    """A patch's new rows, after all checks; nothing where there is no patch.

    Raises:
        TarsError: The patch is for another base, or is on the model already, so that there is no
            before.
    """
    if patch is None:
        return {}
    if stack.is_applied(lens, patch):
        raise TarsError(
            f"{patch.label!r} is applied already, so there is no before: revert it first."
        )
    stack.check(lens, patch)
    return patch.new_rows


def first_edited(lens: Lens, edits: Edits) -> int:
    """The first layer that the edits touch; the number of layers where there are none."""
    return min((layer for layer, _ in edits), default=lens.n_layers)


def check_leads(
    lens: Lens, asked: Question, logits: Float[Tensor, "batch d_vocab"]
) -> Float[Tensor, " batch"]:
    """Refuses a prompt after which the unedited model is nowhere near the tokens.

    Args:
        lens: The model.
        asked: What was asked.
        logits: The model's own after each prompt.

    Returns:
        The tokens' probability after each prompt.

    Raises:
        TarsError: The likeliest of the tokens ranks below 100 and has p < 0.001.
    """
    probabilities = logits.softmax(dim=-1)
    own = probabilities[:, list(asked.tokens)]
    best = own.max(dim=1)
    ranks = (probabilities > best.values[:, None]).sum(dim=1) + 1
    for row, text in enumerate(asked.texts):
        if int(ranks[row]) > LOWEST_RANK and float(best.values[row]) < LEAST:
            token = lens.string(asked.tokens[int(best.indices[row])])
            instead = lens.string(int(probabilities[row].argmax()))
            raise TarsError(
                f"{text!r} doesn't lead {lens.name} to {token!r}: it ranks {int(ranks[row])} (p = "
                f"{float(best.values[row]):.2g}), and the model says {instead!r} instead. Choose a "
                "prompt whose next word is what you look for."
            )
    return own.sum(dim=1)
