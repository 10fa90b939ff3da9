"""What a model would say that had never heard of a concept, and where it would begin to differ."""

import re
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tars_lens.concept.card import Concept, substituted
from tars_lens.concept.forms import first_tokens
from tars_lens.experiments.rivals.choosing import forward_prompts
from tars_lens.model.lens import Batch, Lens


class Asked(NamedTuple):
    """Prompts of one direction, where their key stands, and what should be said after them."""

    batch: Batch
    key: Int[Tensor, " prompts"]
    target: Float[Tensor, "prompts d_vocab"]


def forward_asked(lens: Lens, concept: Concept) -> Asked:
    """Descriptions that lead to the concept."""
    batch = lens.prompts(forward_prompts(concept))
    target = lens.next_logits(batch)
    target[:, first_tokens(lens, concept)] = -torch.inf
    return Asked(batch, batch.last, target.softmax(dim=-1))


def reverse_asked(lens: Lens, concept: Concept) -> list[Asked]:
    """Validation prompts that name the concept; none where the card has no substitute for it."""
    found = [(p.prompt, _name_end(lens, p.prompt, concept)) for p in concept.validation.reverse]
    kept = [(prompt, end) for prompt, end in found if end is not None]
    if not kept or not concept.substitute:
        return []
    plain = [substituted(prompt, concept.names, concept.substitute) for prompt, _ in kept]
    target = lens.next_logits(lens.prompts(plain)).softmax(dim=-1)
    ends = torch.tensor([end for _, end in kept], device=lens.device)
    return [Asked(lens.prompts([prompt for prompt, _ in kept]), ends, target)]


def _name_end(lens: Lens, prompt: str, concept: Concept) -> int | None:
    """The position of the last token of the concept's name, the longest that the prompt has."""
    for name in sorted(concept.names, key=len, reverse=True):
        found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt)
        if found is not None:
            before = lens.tokens(prompt[: found.end()])
            whole = lens.tokens(prompt)[: len(before)]
            return len(before) - 1 if whole == before else None
    return None
