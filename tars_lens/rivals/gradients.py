"""What the rivals that train share: facts as sequences, losses on them, and a loop that stops."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tars_lens.concept import Concept, Probe
from tars_lens.errors import TarsError
from tars_lens.lens import Lens
from tars_lens.measure.probes import ERASED
from tars_lens.model_state import model_state, span
from tars_lens.rivals.choosing import left

RETAINED_TOKENS = 128
"""Of a window of plain text that a step is to leave as it is."""


@dataclass(frozen=True, eq=False)
class Facts:
    """Prompts with their answers.

    Attributes:
        ids: Token ids, padded on the right.
        answer: Where the answer's tokens stand.
    """

    ids: Int[Tensor, "facts pos"]
    answer: Tensor

    @classmethod
    def of(cls, lens: Lens, probes: Sequence[Probe]) -> "Facts":
        """Each probe's prompt, and its answer as the text after it."""
        pairs = [(lens.tokens(p.prompt), lens.pieces(f" {p.answer.strip()}")) for p in probes]
        ids = lens.batch([[*prompt, *answer] for prompt, answer in pairs]).ids
        marked = torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(pairs):
            marked[row, len(prompt) : len(prompt) + len(answer)] = True
        return cls(ids, marked)

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


def text_loss(lens: Lens, ids: Int[Tensor, "windows pos"]) -> Float[Tensor, ""]:
    """The mean loss of the next token of plain text."""
    logits = lens.model(ids, return_type="logits")[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def retained(
    lens: Lens, text: Int[Tensor, "windows pos"], others: Facts | None, step: int
) -> Float[Tensor, ""]:
    """The retain term of a step: the loss of one window of plain text, and of the near facts."""
    window = text[step % len(text)][None, :RETAINED_TOKENS]
    loss = text_loss(lens, window)
    if others is not None:
        loss = loss - others.log_probabilities(lens).mean()
    return loss


def train(
    lens: Lens,
    concept: Concept,
    weights: Sequence[nn.Parameter],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    every: int = 5,
) -> None:
    """AdamW on some weights, in place, until the concept is gone on validation prompts.

    Args:
        lens: The model.
        concept: Whose validation prompts are looked at.
        weights: What is trained.
        loss: Of a step, by its number.
        steps: The most there are.
        rate: The learning rate.
        every: Steps between two looks.
    """
    with trainable(weights):
        optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
        for step in range(steps):
            if step % every == 0 and left(lens, concept) <= ERASED:
                break
            with torch.enable_grad():
                value = loss(step)
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()


@contextmanager
def trainable(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Asks for gradients of some weights, and leaves them afterwards as they were."""
    wanted = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, want in zip(weights, wanted, strict=True):
            weight.grad = None
            weight.requires_grad_(want)


def all_weights(lens: Lens) -> list[nn.Parameter]:
    """Every parameter, each once."""
    named = dict(lens.model.named_parameters())
    return [named[name] for name, _ in model_state(lens.model) if name in named]


def out_weight(lens: Lens, layer: int) -> nn.Parameter:
    """The parameter behind `lens.vectors(layer, "out")`.

    Raises:
        TarsError: The architecture keeps them in no weight of their own.
    """
    wanted = span(lens.vectors(layer, "out"))
    for weight in all_weights(lens):
        if span(weight) == wanted:
            return weight
    raise TarsError(
        f"{lens.name} doesn't show the out vectors of layer {layer} as one weight, so they can't "
        "be trained. Name rivals that don't train (--rivals)."
    )
