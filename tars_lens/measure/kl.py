"""Damage on plain text: KL between base and edited model at every position, in one paired pass."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from tars_lens.concept import forms_in
from tars_lens.errors import TarsError
from tars_lens.lens import Lens, Point
from tars_lens.measure.base_stream import keep_stream, read_stream, stream_path, worth_keeping
from tars_lens.measure.spread import kl_histogram
from tars_lens.surroundings import undisturbed
from tars_lens.weights import Edits, written
from tars_lens.windows import Windows

_BATCH = 4
_CONTEXT = 24
_LOGITS = 1 << 23

ROWS_IN_CACHE = 16
"""Rows of logits that are reduced at a time, so that they stay in the processor's caches."""


@dataclass(frozen=True)
class Divergence:
    """`KL(base || edited)` of the next token at every position of the reported windows, in nats.

    Attributes:
        values: One figure a position.
        windows: What was read.
    """

    values: Float[Tensor, "windows pos"]
    windows: Windows

    def figures(self, forms: Iterable[str] = ()) -> dict[str, Any]:
        """The five figures over all windows, and `elsewhere`: over those that name no form."""
        forms = tuple(forms)
        elsewhere = [not forms_in(text, forms) for text in self.windows.texts]
        mask = torch.tensor(elsewhere, device=self.values.device)
        return {
            "corpus": self.windows.corpus,
            "windows": len(self.values),
            **five(self.values.flatten()),
            "elsewhere": {
                "windows": int(mask.sum()),
                **five(self.values[mask].flatten()),
            },
        }

    def histogram(self, forms: Iterable[str] = ()) -> pd.DataFrame:
        """Counts of the values: bin_low, bin_high (nats), count, elsewhere_count."""
        forms = tuple(forms)
        elsewhere = [not forms_in(text, forms) for text in self.windows.texts]
        flat = pd.Series(self.values.flatten().cpu().numpy())
        return kl_histogram(flat, pd.Series(elsewhere).repeat(self.values.shape[1]).to_numpy())

    def worst(self, lens: Lens, forms: Iterable[str] = (), count: int = 40) -> pd.DataFrame:
        """The most damaged positions with the text before them, worst first.

        Returns:
            Columns window, position, kl (nats), names_concept, context, token (the one after
            which the predictions moved), next (what the text goes on with).
        """
        forms = tuple(forms)
        flat = self.values.flatten()
        index = flat.topk(min(count, len(flat))).indices.tolist()
        rows = []
        for where in index:
            window, position = divmod(where, self.values.shape[1])
            ids = self.windows.reported[window].tolist()
            rows.append(
                {
                    "window": window,
                    "position": position,
                    "kl": float(flat[where]),
                    "names_concept": bool(forms_in(self.windows.texts[window], forms)),
                    "context": lens.tokenizer.decode(ids[max(0, position - _CONTEXT) : position]),
                    "token": lens.string(ids[position]),
                    "next": lens.string(ids[position + 1]) if position + 1 < len(ids) else "",
                }
            )
        return pd.DataFrame(rows)


@undisturbed
def paired_kl(
    lens: Lens,
    edits: Edits,
    windows: Windows,
    *,
    advance: Callable[[int], None] | None = None,
    remember: bool = True,
) -> Divergence:
    """Runs base and edited model over the reported windows side by side.

    The layers below the first edited one run once for both, and no logits are kept: each slice
    is read out of both final residual streams and reduced at once.

    Args:
        lens: The base model, the edits not in it.
        edits: What the edited model has in place of the base's rows.
        windows: A corpus, cut.
        advance: Told the number of windows done after each batch.
        remember: Keep the base's final residual stream in the user's cache, and take it from
            there: the figures are the same bits. Only for a model that came from a checkpoint
            and runs on the processor (`worth_keeping`).

    Raises:
        TarsError: There is nothing to compare.
    """
    if not edits:
        raise TarsError("no edits were given, so there is no divergence to measure.")
    first = min(layer for layer, _ in edits)
    enter, leave = Point("resid_pre", first), Point("resid_post", lens.n_layers - 1)
    reported = windows.reported
    path = stream_path(lens, reported, _BATCH) if remember and worth_keeping(lens) else None
    known = read_stream(path, lens, reported) if path else None
    values, stream = [], None
    for index, ids in enumerate(reported.split(_BATCH)):
        seen = lens.capture(ids, [enter] if known is not None else [enter, leave])
        before = seen[leave] if known is None else known[index * _BATCH :][: len(ids)]
        with written(lens, edits):
            after = lens.residual(ids, -1, resume=(first, seen[enter]))
        values.append(_divergence(lens, before, after))
        if path and known is None:
            if stream is None:  # filled in place: parts would be held twice while they are joined
                stream = before.new_empty(*reported.shape, lens.d_model)
            stream[index * _BATCH :][: len(ids)] = before
        if advance is not None:
            advance(len(ids))
    if path and stream is not None:
        keep_stream(path, stream)
    return Divergence(torch.cat(values), windows)


def five(values: Float[Tensor, " positions"]) -> dict[str, Any]:
    """Tokens, and the median, mean, 95th and 99th percentile and maximum; `None` of nothing."""
    names = ("median", "mean", "p95", "p99", "max")
    if not len(values):
        return {"tokens": 0, **dict.fromkeys(names)}
    quantiles = [float(values.double().quantile(q)) for q in (0.5, 0.95, 0.99)]
    found = (quantiles[0], float(values.double().mean()), *quantiles[1:], float(values.max()))
    return {"tokens": len(values), **dict(zip(names, found, strict=True))}


def _divergence(
    lens: Lens, base: Float[Tensor, "batch pos d_model"], edited: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos"]:
    """KL of each position; where the final residual streams are the same bits, exactly 0."""
    values = torch.zeros(base.shape[:2], device=base.device)
    changed = (base != edited).any(dim=-1)
    if changed.any():
        rows = rows_at_once(lens)
        pairs = zip(base[changed].split(rows), edited[changed].split(rows), strict=True)
        found = [kl_divergence(lens.read_out(old), lens.read_out(new)) for old, new in pairs]
        values[changed] = torch.cat(found)
    return values


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
