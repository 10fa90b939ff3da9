"""Baselines that train: gradient ascent and NPO on every weight, RMU on three layers."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tars_lens.concept.card import Concept, substituted
from tars_lens.concept.first_tokens import first_token_probability
from tars_lens.evaluation.probes import ERASED
from tars_lens.experiments.baselines.edits import Edit, recorded
from tars_lens.experiments.baselines.facts import Facts, depths, left, other_facts, own_facts
from tars_lens.model.lens import Lens
from tars_lens.model.parameters import (
    logits,
    out_parameter,
    parameters,
    stream_after,
    trainable,
)
from tars_lens.text.windows import Windows

_RETAINED_TOKENS = 128  # of a window of plain text that a step is to leave as it is
_REVERSE_LEFT = 0.1
_LOOK_EVERY = 5  # steps

_ASCENT_STEPS = 60
_ASCENT_RATE = 1e-5
_NPO_BETA = 0.1

_RMU_DEPTH = 0.5
_RMU_STEPS = 80
_RMU_RATE = 5e-4
_RMU_TIMES = 2.0
_RMU_RETAIN = 10.0

Forget = Callable[[Float[Tensor, " facts"], Float[Tensor, " facts"]], Float[Tensor, ""]]
"""The forget term: of the answers' log probabilities by the model, and by the base."""


def gradient_ascent(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """Every weight trained to raise the loss of the concept's answers, with a retain term."""
    return _tuned(lens, concept, windows, lambda said, _: said.mean())


def npo(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """Negative preference optimisation (Zhang et al., arXiv 2404.05868), with a retain term.

    `-(2 / beta) E log sigmoid(-beta log(p / p0))`: ascent whose gradient fades as the answer goes.
    """
    return _tuned(lens, concept, windows, npo_loss)


def npo_loss(
    said: Float[Tensor, " facts"], base: Float[Tensor, " facts"], beta: float = _NPO_BETA
) -> Float[Tensor, ""]:
    """NPO's forget term, of log probabilities."""
    return 2 / beta * nn.functional.softplus(beta * (said - base)).mean()


def rmu(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """Representation misdirection for unlearning (Li et al., arXiv 2403.03218).

    `|h(x_f) - c u|^2 + alpha |h(x_r) - h0(x_r)|^2` on the out vectors of three layers: `h` is the
    stream after the last of them, `u` a random direction, `x_f` the card's facts and `x_r` plain
    text, both without padding and without the first token. Both terms are in units of the square
    of the stream's mean norm, and `c` is twice that norm.
    """
    layer = depths(lens, _RMU_DEPTH)[0]
    facts = Facts.of(lens, own_facts(concept))
    text = windows.statistics[:, :_RETAINED_TOKENS]
    with torch.no_grad():
        kept = [stream_after(lens, layer, window[None]) for window in text]
        size = stream_after(lens, layer, facts.ids)[facts.read].norm(dim=-1).mean()
    towards = _RMU_TIMES * size * control(lens, seed)

    def loss(step: int) -> Tensor:
        here = step % len(text)
        away = (stream_after(lens, layer, facts.ids)[facts.read] - towards).square().sum(dim=-1)
        moved = (stream_after(lens, layer, text[here][None]) - kept[here])[:, 1:]
        return (away.mean() + _RMU_RETAIN * moved.square().sum(dim=-1).mean()) / size.square()

    weights = [out_parameter(lens, k) for k in range(max(0, layer - 2), layer + 1)]
    return recorded(
        lens, lambda: train(lens, concept, weights, loss, steps=_RMU_STEPS, rate=_RMU_RATE)
    )


def control(lens: Lens, seed: int) -> Float[Tensor, " d_model"]:
    """The random direction that RMU sends the stream of what is to be forgotten to."""
    drawn = torch.rand(lens.d_model, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(drawn.to(lens.device), dim=0)


def train(
    lens: Lens,
    concept: Concept,
    weights: Sequence[nn.Parameter],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
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
    """
    reverse = _Reverse(lens, concept)
    with trainable(weights):
        optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
        for step in range(steps):
            look = step % _LOOK_EVERY == 0
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


def _tuned(lens: Lens, concept: Concept, windows: Windows, forget: Forget) -> Edit:
    own = Facts.of(lens, own_facts(concept))
    near = other_facts(concept)
    others = Facts.of(lens, near) if near else None
    with torch.no_grad():
        base = own.log_probabilities(lens)

    def loss(step: int) -> Tensor:
        kept = _text_loss(lens, windows.statistics[step % len(windows.statistics)])
        if others is not None:
            kept = kept - others.log_probabilities(lens).mean()
        return forget(own.log_probabilities(lens), base) + kept

    weights = parameters(lens)
    return recorded(
        lens, lambda: train(lens, concept, weights, loss, steps=_ASCENT_STEPS, rate=_ASCENT_RATE)
    )


def _text_loss(lens: Lens, window: Int[Tensor, " pos"]) -> Float[Tensor, ""]:
    """The mean loss of the next token of plain text."""
    ids = window[:_RETAINED_TOKENS]
    said = logits(lens, ids[None])[0, :-1].float()
    return nn.functional.cross_entropy(said, ids[1:])
