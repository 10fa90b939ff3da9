"""What is to be forgotten and what is to stay, as sequences with their answers marked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tars_lens.concept.card import Concept, Probe
from tars_lens.model.lens import Lens


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
        logits = lens.model(self.ids, return_type="logits")[:, :-1].float()
        said = logits.log_softmax(dim=-1).gather(2, self.ids[:, 1:, None])[..., 0]
        return (said * self.answer[:, 1:]).sum(dim=1)


def own_facts(concept: Concept) -> list[Probe]:
    """What is to be forgotten: the vector's prompts and the validation facts, both ways."""
    forward = [Probe(prompt, concept.answer) for prompt in concept.concept_prompts]
    forward += [Probe(probe.prompt, concept.answer) for probe in concept.validation.forward]
    return [*forward, *concept.validation.reverse]


def other_facts(concept: Concept) -> list[Probe]:
    """What is to stay: the card's near things."""
    return [*concept.contrast, *concept.validation.neighbour]
