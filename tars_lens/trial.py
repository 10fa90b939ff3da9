"""Trying edits on material they may be chosen on: what they remove, and what they disturb."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tars_lens.lens import Batch, Lens, Point
from tars_lens.weights import Edits, written

_ENOUGH = 0.999
_LEAST = 1e-2
_LOGITS = 1 << 23
_SLICE = 16


@dataclass(frozen=True)
class Bench:
    """Texts run up to a layer by the model as it stood, to be run on from there under edits.

    Attributes:
        lens: The model.
        layer: The first layer that the edits on trial touch.
        batch: The texts' ids.
        prefix: The residual stream before that layer.
        before: The final residual stream before the edits.
    """

    lens: Lens
    layer: int
    batch: Batch
    prefix: Float[Tensor, "batch pos d_model"]
    before: Float[Tensor, "batch pos d_model"]

    @classmethod
    def of(cls, lens: Lens, batch: Batch, layer: int) -> "Bench":
        """Runs the texts once; each trial then costs the layers from `layer` on."""
        first, last = Point("resid_pre", layer), Point("resid_post", lens.n_layers - 1)
        seen = lens.capture(batch.ids, [first, last])
        return cls(lens, layer, batch, seen[first], seen[last])

    def onward(self, layer: int) -> "Bench":
        """The same texts run on to a later layer by the model as it stands now."""
        point = Point("resid_pre", layer)
        resume = (self.layer, self.prefix)
        seen = self.lens.capture(self.batch.ids, [point], resume=resume)
        return replace(self, layer=layer, prefix=seen[point])

    def after(self, edits: Edits) -> Float[Tensor, "batch pos d_model"]:
        """The final residual stream with the edits in the model."""
        with written(self.lens, edits):
            return self.lens.residual(self.batch.ids, -1, resume=(self.layer, self.prefix))

    def mass(self, edits: Edits, tokens: Sequence[int]) -> Float[Tensor, " batch"]:
        """The probability after each text that the next token is one of `tokens`."""
        with written(self.lens, edits):
            ends = self.lens.residual(self.batch.ids, -1, **self._at_ends)
        return _mass(self.lens.read_out(ends), tokens)

    def lens_mass(
        self, edits: Edits, tokens: Sequence[int], count: int | None = None
    ) -> Float[Tensor, "layers count"]:
        """`mass`, read out after each layer from the bench's own on (the logit lens).

        Args:
            edits: What is tried.
            tokens: Whose probability is asked for.
            count: Of how many of the texts, the first ones; all where not given.
        """
        points = [Point("resid_post", layer) for layer in range(self.layer, self.lens.n_layers)]
        with written(self.lens, edits):
            seen = self.lens.capture(self.batch.ids, points, **self._at_ends)
        stream = torch.cat([seen[point][:count] for point in points])
        found = [
            _mass(self.lens.read_out(few), tokens) for few in stream.split(rows_at_once(self.lens))
        ]
        return torch.cat(found).reshape(len(points), -1)

    def end_effects(
        self, edits: Edits, without: Sequence[int]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """What the edits do after each text, some tokens left out of both distributions.

        Returns:
            KL of the next token, and the share (at most 1) that the likeliest token keeps.
        """
        with written(self.lens, edits):
            ends = self.lens.residual(self.batch.ids, -1, **self._at_ends)
        old, new = self._end_logits.clone(), self.lens.read_out(ends)
        for logits in (old, new):
            logits[:, list(without)] = -torch.inf
        before, after = old.log_softmax(dim=-1), new.log_softmax(dim=-1)
        top = before.max(dim=-1)
        kept = (after.gather(1, top.indices[:, None])[:, 0] - top.values).exp().clamp_max(1)
        return kl_divergence(old, new), kept

    def mean_kl(self, edits: Edits) -> float:
        """Mean KL over every position but the first of full windows, for choosing settings.

        Windows in which no position changes by more than a hundredth of its norm at the edited
        layer are not run on. Of the others only the positions that carry 99.9 % of the squared
        relative change are read out, as KL grows with its square; the rest counts as undisturbed.
        """
        rows, stream = self._disturbed(edits)
        if not len(rows):
            return 0.0
        old, new = self.before[rows][:, 1:].flatten(0, 1), stream[:, 1:].flatten(0, 1)
        changed = _carriers(_relative(old, new).square())
        total = 0.0
        for index in changed.split(rows_at_once(self.lens)) if len(changed) else ():
            pair = self.lens.read_out(old[index]), self.lens.read_out(new[index])
            total += float(kl_divergence(*pair).sum())
        return total / self.before[:, 1:].flatten(0, 1).shape[0]

    def _disturbed(
        self, edits: Edits
    ) -> tuple[Int[Tensor, " rows"], Float[Tensor, "rows pos d_model"]]:
        """The windows that the edits disturb, and the final stream of those with the edits."""
        layer = max((layer for layer, _ in edits), default=self.layer)
        point, whole = Point("resid_post", layer), (self.layer, self.prefix)
        old = self.lens.capture(self.batch.ids, [point], resume=whole)[point]
        with written(self.lens, edits):
            new = self.lens.capture(self.batch.ids, [point], resume=whole)[point]
            rows = (_relative(old, new)[:, 1:] > _LEAST).any(dim=1).nonzero()[:, 0]
            if layer == self.lens.n_layers - 1 or not len(rows):
                return rows, new[rows]
            return rows, self.lens.residual(self.batch.ids[rows], -1, resume=(layer + 1, new[rows]))

    @property
    def _at_ends(self) -> dict[str, Any]:
        """How the lens is asked for what passes at the last token of each text."""
        return {"positions": self.batch.last, "resume": (self.layer, self.prefix)}

    @cached_property
    def _end_logits(self) -> Float[Tensor, "batch d_vocab"]:
        """What the model said after each text before the edits."""
        return self.lens.read_out(self._ends(self.before))

    def _ends(self, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
        return stream[torch.arange(len(stream), device=stream.device), self.batch.last]


def rows_at_once(lens: Lens) -> int:
    """How many rows of logits to hold at a time: 32 MB of them in float32."""
    return max(16, _LOGITS // lens.d_vocab)


def kl_divergence(
    old: Float[Tensor, "rows d_vocab"], new: Float[Tensor, "rows d_vocab"]
) -> Float[Tensor, " rows"]:
    """`KL(old || new)` of each row of logits, in float32; tokens at minus infinity are left out.

    A few rows at a time and in place: the time goes into memory, and with what is in use small
    enough for the processor's caches it is a third (SmolLM2).
    """
    found = []
    for few_old, few_new in zip(old.split(_SLICE), new.split(_SLICE), strict=True):
        before = few_old.float().log_softmax(dim=-1)
        after = few_new.float().log_softmax(dim=-1)
        left_out = before.isneginf()
        torch.sub(before, after, out=after)
        terms = after.mul_(before.exp_()).masked_fill_(left_out, 0)
        found.append(terms.sum(dim=-1).clamp_min(0))
    return torch.cat(found)


def _mass(logits: Float[Tensor, "rows d_vocab"], tokens: Sequence[int]) -> Float[Tensor, " rows"]:
    """The probability of some tokens; the whole softmax is never written."""
    return (logits[:, list(tokens)].logsumexp(dim=1) - logits.logsumexp(dim=1)).exp()


def _relative(
    old: Float[Tensor, "... d_model"], new: Float[Tensor, "... d_model"]
) -> Float[Tensor, "..."]:
    """How far each residual moved, in units of its norm."""
    return (new - old).norm(dim=-1) / old.norm(dim=-1)


def _carriers(change: Float[Tensor, " rows"]) -> Int[Tensor, " carriers"]:
    order = change.argsort(descending=True)
    cumulative = change[order].cumsum(0)
    if not cumulative[-1] > 0:
        return order[:0]
    count = int((cumulative < _ENOUGH * cumulative[-1]).sum()) + 1
    return order[:count]
