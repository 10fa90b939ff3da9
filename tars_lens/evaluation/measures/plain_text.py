"""Damage on plain text: divergence, perplexity and agreement, in one paired run."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tars_lens.concept.card import forms_in
from tars_lens.evaluation import intervals
from tars_lens.evaluation.base import final_stream
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.kl import ROWS_IN_CACHE, five, kl_of_log_probabilities, rows_at_once
from tars_lens.evaluation.measure import Measure, Result
from tars_lens.model.lens import Lens


@dataclass(frozen=True)
class Paired:
    """Base and subject at every position of some windows.

    Attributes:
        kl: `KL(base || subject)` of the next token, in nats.
        loss_before: Of the base on the token that comes next, in nats; the last position has none.
        loss_after: The same of the subject.
        agree: Whether both have the same top token.
    """

    kl: Float[Tensor, "windows pos"]
    loss_before: Float[Tensor, "windows next"]
    loss_after: Float[Tensor, "windows next"]
    agree: Bool[Tensor, "windows pos"]


def wikipedia(context: Context) -> Result:
    """The five KL figures over all windows and over those that name no concept."""
    paired = _paired(context, "reported", context.windows)
    texts = context.base.windows.texts[: context.windows]
    named = torch.tensor([bool(forms_in(text, context.base.forms)) for text in texts])
    figures = {
        **_figures(paired),
        "corpus": context.base.windows.corpus,
        "windows": len(paired.kl),
        "elsewhere": {"windows": int((~named).sum()), **five(paired.kl[~named].flatten())},
        "worst": _worst(context, paired),
    }
    return _result(context, "wikipedia", figures, paired, named)


def near_text(context: Context) -> Result:
    """The same on text about the concept's neighbours that never names it."""
    if context.base.near is None:
        return Result("near_text", "mean", {"mean": None, "windows": 0}, None, pd.DataFrame())
    paired = _paired(context, "near", _near_windows(context))
    figures = {**_figures(paired), "windows": len(paired.kl)}
    return _result(context, "near_text", figures, paired, torch.zeros(len(paired.kl)).bool())


def _paired(context: Context, name: str, count: int) -> Paired:
    def compare() -> Paired:
        ids = context.base.ids(name)[:count]
        before = context.base.stream(name)[:count]
        with context.edited() as lens:
            after = final_stream(lens, ids)
        rows = []
        for window, old, new in zip(ids, before, after, strict=True):
            base_logits = _slices(context.lens, old)  # by the base's own unembedding
            with context.edited() as lens:
                rows.append(_row(lens, window, base_logits, new))
        return Paired(*(torch.stack(part) for part in zip(*rows, strict=True)))

    return context.once(f"paired {name} {count}", compare)


def _slices(lens: Lens, stream: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
    return torch.cat([lens.read_out(part) for part in stream.split(rows_at_once(lens))])


def _row(
    lens: Lens,
    ids: Tensor,
    base_logits: Float[Tensor, "pos d_vocab"],
    stream: Float[Tensor, "pos d_model"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits, follow = _slices(lens, stream), ids.roll(-1)
    parts = [
        _compared(*few)
        for few in zip(
            *(t.split(ROWS_IN_CACHE) for t in (base_logits, logits, follow)), strict=True
        )
    ]
    kl, before, after, agree = (torch.cat(part) for part in zip(*parts, strict=True))
    return kl, before[:-1], after[:-1], agree


def _compared(
    old: Float[Tensor, "rows d_vocab"], new: Float[Tensor, "rows d_vocab"], follow: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL, both losses on the tokens that follow, and agreement; each softmax is made once."""
    agree = old.argmax(dim=-1) == new.argmax(dim=-1)
    before, after = (logits.float().log_softmax(dim=-1) for logits in (old, new))
    losses = [-each.gather(1, follow[:, None])[:, 0] for each in (before, after)]
    return kl_of_log_probabilities(before, after), losses[0], losses[1], agree


def _figures(paired: Paired) -> dict[str, Any]:
    ratio = float((paired.loss_after.double().mean() - paired.loss_before.double().mean()).exp())
    return {
        **five(paired.kl.flatten()),
        "perplexity_before": float(paired.loss_before.double().mean().exp()),
        "perplexity_ratio": intervals.number(ratio),
        "agreement": float(paired.agree.double().mean()),
    }


def _worst(context: Context, paired: Paired, count: int = 10) -> list[dict[str, Any]]:
    """The most damaged tokens in their context."""
    found = []
    for where in paired.kl.flatten().topk(min(count, paired.kl.numel())).indices.tolist():
        window, position = divmod(where, paired.kl.shape[1])
        ids = context.base.ids("reported")[window].tolist()
        found.append(
            {
                "kl": float(paired.kl[window, position]),
                "context": context.lens.tokenizer.decode(ids[max(0, position - 12) : position]),
                "token": context.lens.string(ids[position]),
            }
        )
    return found


def _result(
    context: Context, name: str, figures: dict[str, Any], paired: Paired, named: Tensor
) -> Result:
    """The items are windows, as the positions of one text aren't independent."""
    items = pd.DataFrame(
        {
            "window": range(len(paired.kl)),
            "names_concept": named.tolist(),
            "kl_mean": paired.kl.double().mean(dim=1).tolist(),
            "kl_median": paired.kl.double().median(dim=1).values.tolist(),
            "kl_max": paired.kl.double().amax(dim=1).tolist(),
            "loss_before": paired.loss_before.double().mean(dim=1).tolist(),
            "loss_after": paired.loss_after.double().mean(dim=1).tolist(),
            "agreement": paired.agree.double().mean(dim=1).tolist(),
        }
    )
    interval = intervals.bootstrap(
        items[["kl_mean"]].to_numpy(),
        intervals.mean,
        seed=context.seed,
        resamples=context.suite.resamples,
    )
    return Result(name, "mean", figures, interval, items)


def _near_windows(context: Context) -> int:
    near = context.base.near
    return 0 if near is None else min(len(near), context.windows)


MEASURES = (
    Measure(
        name="wikipedia",
        about="mean KL(f0 || f) of the next token on Wikipedia, in nats",
        better="low",
        suite="quick",
        run=wikipedia,
    ),
    Measure(
        name="near_text",
        about="mean KL on text about the concept's neighbours, in nats",
        better="low",
        suite="quick",
        run=near_text,
        controls={"quick": "none", "full": "all"},
    ),
)
