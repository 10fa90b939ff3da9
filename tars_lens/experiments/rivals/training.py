"""What the rivals that train share: the retain term, and a loop that stops in time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept, substituted
from tars_lens.concept.first_tokens import first_token_probability
from tars_lens.evaluation.probes import ERASED
from tars_lens.experiments.rivals.choosing import left
from tars_lens.experiments.rivals.facts import Facts
from tars_lens.model.lens import Lens
from tars_lens.model.model_state import model_state, span

RETAINED_TOKENS = 128
"""Of a window of plain text that a step is to leave as it is."""

_REVERSE_LEFT = 0.1


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
    """AdamW on some weights, in place, until the concept is gone on validation prompts, both ways.

    Forward, its largest probability must be at most 0.005; reverse, a tenth may be left of what
    the model says of it more than of its substitute, set phrases apart.

    Args:
        lens: The model.
        concept: Whose validation prompts are looked at.
        weights: What is trained.
        loss: Of a step, by its number.
        steps: The most there are.
        rate: The learning rate.
        every: Steps between two looks.
    """
    reverse = _Reverse(lens, concept)
    with trainable(weights):
        optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
        for step in range(steps):
            look = step % every == 0
            if look and left(lens, concept) <= ERASED and reverse.left() <= _REVERSE_LEFT:
                break
            with torch.enable_grad():
                # not backward(), which would leave gradients on all other weights too
                slopes = torch.autograd.grad(loss(step), weights, allow_unused=True)
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = None if slope is None else slope.contiguous()  # may be a view
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()


class _Reverse:
    """What is left of a card's reverse validation facts, as a share of what there was."""

    def __init__(self, lens: Lens, concept: Concept) -> None:
        self.lens, facts = lens, concept.validation.reverse
        self.prompts = [probe.prompt for probe in facts]
        self.tokens = [(lens.pieces(f" {probe.answer.strip()}")[0],) for probe in facts]
        plain = [substituted(p, concept.names, concept.substitute) for p in self.prompts]
        before = self._said(self.prompts)
        self.floor = self._said(plain) if concept.substitute else torch.zeros_like(before)
        self.counts = self.floor <= before / 2  # what is said as much without it is a set phrase
        self.span = float((before - self.floor)[self.counts].sum())

    def left(self) -> float:
        """From 0 on; 0 where the model never said more of the concept than of its substitute."""
        more = (self._said(self.prompts) - self.floor).clamp(min=0)[self.counts]
        return float(more.sum()) / self.span if self.span > 0 else 0.0

    def _said(self, prompts: list[str]) -> Float[Tensor, " facts"]:
        return first_token_probability(self.lens, prompts, self.tokens)


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
