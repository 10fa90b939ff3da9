"""Damage on plain text: KL between base and edited model at every position, in one paired pass."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import forms_in
from tars_lens.evaluation.base_stream import keep_stream, read_stream, stream_path, worth_keeping
from tars_lens.evaluation.spread import kl_histogram
from tars_lens.model.lens import Lens, Point
from tars_lens.model.weights import Edits, Place, Rows, written
from tars_lens.text.windows import Windows

_BATCH = 4
_CONTEXT = 24
_LOGITS = 1 << 23

ROWS_IN_CACHE = 16
"""Rows of logits that are reduced at a time, so that they stay in the processor's caches."""


@dataclass(frozen=True)
class Divergence:
    """Base, edited model and silenced base at every position of the reported windows.

    The silenced base is the base with the `out` rows of the edited neurons at zero: what an edit
    does where its planted neurons say nothing.

    Attributes:
        values: `KL(base || edited)` of the next token, in nats.
        windows: What was read.
        unchanged: Whether the edited model's logits are the base's bits.
        unchanged_from_silenced: Whether they are the silenced base's bits.
        hosts_kl: `KL(base || silenced)` of the next token, in nats.
    """

    values: Float[Tensor, "windows pos"]
    windows: Windows
    unchanged: Bool[Tensor, "windows pos"]
    unchanged_from_silenced: Bool[Tensor, "windows pos"]
    hosts_kl: Float[Tensor, "windows pos"]

    def figures(self, forms: Iterable[str] = ()) -> dict[str, Any]:
        """The figures over all windows, and `elsewhere`: over those that name no form.

        Returns:
            Of each: windows, those of `five`, unchanged and unchanged_from_silenced (shares of the
            positions), and hosts_kl_mean (nats).
        """
        elsewhere = self._elsewhere(forms)
        everywhere = self._figures(torch.ones_like(elsewhere))
        return {
            "corpus": self.windows.corpus,
            **everywhere,
            "elsewhere": self._figures(elsewhere),
        }

    def histogram(self, forms: Iterable[str] = ()) -> pd.DataFrame:
        """Counts of the values: bin_low, bin_high (nats), count, elsewhere_count."""
        flat = pd.Series(self.values.flatten().cpu().numpy())
        elsewhere = pd.Series(self._elsewhere(forms).tolist())
        return kl_histogram(flat, elsewhere.repeat(self.values.shape[1]).to_numpy())

    def _elsewhere(self, forms: Iterable[str]) -> Bool[Tensor, " windows"]:
        forms = tuple(forms)
        named = [bool(forms_in(text, forms)) for text in self.windows.texts]
        return ~torch.tensor(named, device=self.values.device)

    def _figures(self, chosen: Bool[Tensor, " windows"]) -> dict[str, Any]:
        return {
            "windows": int(chosen.sum()),
            **five(self.values[chosen].flatten()),
            "unchanged": _mean(self.unchanged[chosen]),
            "unchanged_from_silenced": _mean(self.unchanged_from_silenced[chosen]),
            "hosts_kl_mean": _mean(self.hosts_kl[chosen]),
        }

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
    """Runs base, edited model and silenced base over the reported windows side by side.

    The layers below the first edited one run once for all three, and no logits are kept: each
    slice is read out of the final residual streams and reduced at once.

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
    silence = _silence(lens, edits)
    found, stream = [], None
    for index, ids in enumerate(reported.split(_BATCH)):
        seen = lens.capture(ids, [enter] if known is not None else [enter, leave])
        before = seen[leave] if known is None else known[index * _BATCH :][: len(ids)]
        others = []
        for rows in (edits, silence):
            with written(lens, rows):
                others.append(lens.residual(ids, -1, resume=(first, seen[enter])))
        found.append(_compared(lens, before, *others))
        if path and known is None:
            if stream is None:  # filled in place: parts would be held twice while they are joined
                stream = before.new_empty(*reported.shape, lens.d_model)
            stream[index * _BATCH :][: len(ids)] = before
        if advance is not None:
            advance(len(ids))
    if path and stream is not None:
        keep_stream(path, stream)
    values, *more = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Divergence(values, windows, *more)


def five(values: Float[Tensor, " positions"]) -> dict[str, Any]:
    """Tokens, and the median, mean, 95th and 99th percentile and maximum; `None` of nothing."""
    names = ("median", "mean", "p95", "p99", "max")
    if not len(values):
        return {"tokens": 0, **dict.fromkeys(names)}
    quantiles = [float(values.double().quantile(q)) for q in (0.5, 0.95, 0.99)]
    found = (quantiles[0], float(values.double().mean()), *quantiles[1:], float(values.max()))
    return {"tokens": len(values), **dict(zip(names, found, strict=True))}


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if values.numel() else None


def _silence(lens: Lens, edits: Edits) -> Edits:
    """Zero `out` rows for every neuron of which any vector is edited."""
    hosts: dict[Place, list[Tensor]] = {}
    for (layer, _), rows in edits.items():
        hosts.setdefault((layer, "out"), []).append(rows.neurons)
    found = {place: torch.cat(neurons).unique() for place, neurons in hosts.items()}
    return {p: Rows(n, torch.zeros(len(n), lens.d_model)) for p, n in found.items()}


def _compared(
    lens: Lens,
    base: Float[Tensor, "batch pos d_model"],
    edited: Float[Tensor, "batch pos d_model"],
    silenced: Float[Tensor, "batch pos d_model"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `Divergence` holds of each position, but for the windows.

    Final residual streams that are the same bits give the same logits, and a KL of exactly 0: only
    where they differ are the logits read out and compared, side by side in one slice, as a row's
    bits may depend on how many rows are read with it.
    """
    shape, streams = base.shape[:2], [s.flatten(0, 1) for s in (base, edited, silenced)]
    unchanged, silent = ((streams[1] == streams[i]).all(dim=-1) for i in (0, 2))
    values, hosts = torch.zeros(2, len(unchanged), device=base.device)
    pairs, triples = (~unchanged & silent).nonzero()[:, 0], (~silent).nonzero()[:, 0]
    for rows in pairs.split(rows_at_once(lens)) if len(pairs) else ():
        old, new = (lens.read_out(stream[rows]) for stream in streams[:2])
        unchanged[rows] = (old == new).all(dim=-1)
        values[rows] = hosts[rows] = kl_divergence(old, new)
    for rows in triples.split(rows_at_once(lens)) if len(triples) else ():
        old, new, quiet = (lens.read_out(stream[rows]) for stream in streams)
        unchanged[rows], silent[rows] = ((new == other).all(dim=-1) for other in (old, quiet))
        values[rows], hosts[rows] = kl_divergence(old, new), kl_divergence(old, quiet)
    return (
        values.reshape(shape),
        unchanged.reshape(shape),
        silent.reshape(shape),
        hosts.reshape(shape),
    )


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
