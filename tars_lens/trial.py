"""Trying edits on material they may be chosen on: what they remove, and what they disturb."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from tars_lens.lens import Batch, Lens, Point
from tars_lens.weights import Edits, written

_ENOUGH = 0.99
_MOST = 0.9
_LEAST = 1e-2
_LOGITS = 1 << 23
ROWS_IN_CACHE = 16
"""Rows of logits that are reduced at a time, so that they stay in the processor's caches."""


@dataclass(frozen=True)
class Bench:
    """Texts run up to a layer by the model as it stood, to be run on from there under edits.

    Attributes:
        lens: The model.
        layer: The first layer that the edits on trial touch.
        batch: The texts' ids.
        prefix: The residual stream before that layer.
        before: The final residual stream before the edits.
        kept: The residual stream before some of the layers from `layer` on, by layer, all of the
            model as it stood: what a trial further on begins with.
    """

    lens: Lens
    layer: int
    batch: Batch
    prefix: Float[Tensor, "batch pos d_model"]
    before: Float[Tensor, "batch pos d_model"]
    kept: dict[int, Float[Tensor, "batch pos d_model"]] = field(default_factory=dict)

    @classmethod
    def of(cls, lens: Lens, batch: Batch, layer: int, later: Collection[int] = ()) -> "Bench":
        """Runs the texts once; each trial then costs the layers from `layer` on.

        Args:
            lens: The model as it stands.
            batch: The texts' ids.
            layer: The first that will be edited.
            later: Layers that trials begin at afterwards (see `onward`).
        """
        layers, last = {layer, *later}, Point("resid_post", lens.n_layers - 1)
        points = {at: Point("resid_pre", at) for at in layers if at < lens.n_layers}
        seen = lens.capture(batch.ids, [*points.values(), last], last=batch.last)
        kept = {at: seen[point] for at, point in points.items()}
        return cls(lens, layer, batch, kept[layer], seen[last], kept)

    def onward(self, layer: int) -> "Bench":
        """The same bench for edits of a later layer; the model stands as when it was made."""
        if layer in self.kept:
            prefix = self.kept[layer]
        else:
            point, resume = Point("resid_pre", layer), (self.layer, self.prefix)
            ids, last = self.batch
            prefix = self.lens.capture(ids, [point], last=last, resume=resume)[point]
        return replace(self, layer=layer, prefix=prefix)

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
        ids, last, prefix = (x[:count] for x in (*self.batch, self.prefix))
        with written(self.lens, edits):
            resume = (self.layer, prefix)
            seen = self.lens.capture(ids, points, positions=last, resume=resume)
        stream = torch.cat([seen[point] for point in points])
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

    def mean_kl(self, edits: Edits, *, small: float = 0.0) -> float:
        """Mean KL over every position but the first of full windows, for choosing settings.

        Windows in which no position changes by more than a hundredth of its norm at the edited
        layer are not run on. Of the others only the positions that carry 99 % of the squared
        relative change are read out, as KL grows with its square; the rest counts as undisturbed.
        (27 trials of Saturn and Paris, SmolLM2-135M and Gemma-3-270M: 2 % less KL on the whole
        than with 99.9 %, a third of the rows.) Where 90 % of it already tell that the KL is small,
        the rest is taken at their rate.

        Args:
            edits: What is tried.
            small: Of a KL below that it's enough to know as much.
        """
        rows, stream = self._disturbed(edits)
        if not len(rows):
            return 0.0
        old, new = self.before[rows][:, 1:].flatten(0, 1), stream[:, 1:].flatten(0, 1)
        index, share = _carriers(_relative(old, new).square())
        count, total = len(self.before[:, 1:].flatten(0, 1)), 0.0
        slices = [s.split(rows_at_once(self.lens)) for s in (index, share)]
        for rows, shares in zip(*slices, strict=True) if len(index) else ():
            pair = self.lens.read_out(old[rows]), self.lens.read_out(new[rows])
            total += float(kl_divergence(*pair).sum())
            read = float(shares[-1])
            if read >= _MOST and total / read < small * count:
                return total / read / count
        return total / count

    def _disturbed(
        self, edits: Edits
    ) -> tuple[Int[Tensor, " rows"], Float[Tensor, "rows pos d_model"]]:
        """The windows that the edits disturb, and the final stream of those with the edits."""
        layer = max((layer for layer, _ in edits), default=self.layer)
        old, whole = self._passed(layer), (self.layer, self.prefix)
        with written(self.lens, edits):
            new = self.lens.residual(self.batch.ids, layer, resume=whole)
            rows = (_relative(old, new)[:, 1:] > _LEAST).any(dim=1).nonzero()[:, 0]
            if layer == self.lens.n_layers - 1 or not len(rows):
                return rows, new[rows]
            return rows, self.lens.residual(self.batch.ids[rows], -1, resume=(layer + 1, new[rows]))

    def _passed(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after a layer, before the edits."""
        if layer == self.lens.n_layers - 1:
            return self.before
        if layer + 1 in self.kept:
            return self.kept[layer + 1]
        return self.lens.residual(self.batch.ids, layer, resume=(self.layer, self.prefix))

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
    for few_old, few_new in zip(old.split(ROWS_IN_CACHE), new.split(ROWS_IN_CACHE), strict=True):
        before, after = (few.float().log_softmax(dim=-1) for few in (few_old, few_new))
        found.append(kl_of_log_probabilities(before, after))
    return torch.cat(found)


def kl_of_log_probabilities(
    before: Float32[Tensor, "rows d_vocab"], after: Float32[Tensor, "rows d_vocab"]
) -> Float32[Tensor, " rows"]:
    """`KL(before || after)` of each row, in place: both are lost."""
    left_out = before.isneginf()
    torch.sub(before, after, out=after)
    terms = after.mul_(before.exp_()).masked_fill_(left_out, 0)
    return terms.sum(dim=-1).clamp_min(0)


def _mass(logits: Float[Tensor, "rows d_vocab"], tokens: Sequence[int]) -> Float[Tensor, " rows"]:
    """The probability of some tokens; the whole softmax is never written."""
    return (logits[:, list(tokens)].logsumexp(dim=1) - logits.logsumexp(dim=1)).exp()


def _relative(
    old: Float[Tensor, "... d_model"], new: Float[Tensor, "... d_model"]
) -> Float[Tensor, "..."]:
    """How far each residual moved, in units of its norm."""
    return (new - old).norm(dim=-1) / old.norm(dim=-1)


def _carriers(
    change: Float[Tensor, " rows"],
) -> tuple[Int[Tensor, " carriers"], Float[Tensor, " carriers"]]:
    """The rows that change most, and the share of the change that each and those before carry."""
    order = change.argsort(descending=True)
    cumulative = change[order].cumsum(0)
    if not cumulative[-1] > 0:
        return order[:0], cumulative[:0]
    count = int((cumulative < _ENOUGH * cumulative[-1]).sum()) + 1
    return order[:count], cumulative[:count] / cumulative[-1]
