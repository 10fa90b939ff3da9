"""What a baseline reads of a card: prompts that lead to the concept, others, and facts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tars_lens.concept.card import Concept, Probe
from tars_lens.concept.first_tokens import first_token_probability
from tars_lens.concept.forms import first_tokens
from tars_lens.method.targeting import PLAIN
from tars_lens.model.lens import Lens
from tars_lens.model.parameters import logits


def forward_prompts(concept: Concept) -> list[str]:
    """Descriptions that lead to the concept: the vector's prompts and the validation ones."""
    return [*concept.concept_prompts, *(probe.prompt for probe in concept.validation.forward)]


def other_prompts(concept: Concept) -> list[str]:
    """Prompts that lead elsewhere: the card's near things, then unrelated ones."""
    return [*(probe.prompt for probe in other_facts(concept)), *PLAIN]


def own_facts(concept: Concept) -> list[Probe]:
    """What is to be forgotten: the vector's prompts and the validation facts, both ways."""
    forward = [Probe(prompt, concept.answer) for prompt in forward_prompts(concept)]
    return [*forward, *concept.validation.reverse]


def other_facts(concept: Concept) -> list[Probe]:
    """What is to stay: the card's near things."""
    return [*concept.contrast, *concept.validation.neighbour]


def left(lens: Lens, concept: Concept) -> float:
    """The concept's largest probability on the prompts that it is chosen on, as it stands."""
    prompts = forward_prompts(concept)
    tokens = first_tokens(lens, concept)
    return float(first_token_probability(lens, prompts, [tokens] * len(prompts)).max())


def depths(lens: Lens, *shares: float) -> list[int]:
    """The layers at some depths, given as shares of the number of layers; each once."""
    return sorted({min(lens.n_layers - 1, int(share * lens.n_layers)) for share in shares})


@dataclass(frozen=True, eq=False)
class Facts:
    """Prompts with their answers.

    Attributes:
        ids: Token ids, padded on the right.
        answer: Where the answer's tokens stand.
        read: Where a token of the text stands, but for the first: attention rests on that one, and
            its stream is a hundred times as large as any other.
    """

    ids: Int[Tensor, "facts pos"]
    answer: Bool[Tensor, "facts pos"]
    read: Bool[Tensor, "facts pos"]

    @classmethod
    def of(cls, lens: Lens, probes: Sequence[Probe]) -> "Facts":
        """Each probe's prompt, and its answer as the text after it."""
        pairs = [(lens.tokens(p.prompt), lens.pieces(f" {p.answer.strip()}")) for p in probes]
        batch = lens.batch([[*prompt, *answer] for prompt, answer in pairs])
        marked = torch.zeros_like(batch.ids, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(pairs):
            marked[row, len(prompt) : len(prompt) + len(answer)] = True
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        return cls(batch.ids, marked, (place > 0) & (place <= batch.last[:, None]))

    def log_probabilities(self, lens: Lens) -> Float[Tensor, " facts"]:
        """Of each answer after its prompt, with gradients where they are enabled."""
        said = logits(lens, self.ids)[:, :-1].float().log_softmax(dim=-1)
        own = said.gather(2, self.ids[:, 1:, None])[..., 0]
        return (own * self.answer[:, 1:]).sum(dim=1)
