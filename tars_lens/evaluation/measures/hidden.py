"""Hidden or removed: what the fall of the concept's logit is made of.

A logit is the sum of what the network's parts write along the direction that the unembedding reads
as the concept. An edit can take away what spoke for it, or add something that speaks against it:
the second hides (arXiv 2509.22263 calls neurons that do so spurious).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation import intervals
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.measure import Measure, Result
from tars_lens.evaluation.measures.logit_lens import known_prompts
from tars_lens.model.lens import Batch, Lens
from tars_lens.model.logit_parts import Parts, Reader, logit_parts, reader_of

LEAST_FALL = 1.0
"""A mean fall of less (of a logit, so a factor of e in the odds) is none, and has no share."""

KINDS = ("fall", "lost", "added", "returned", "scale", "read_out")


@dataclass(frozen=True)
class Standing:
    """The base's logit of the concept after some prompts, taken apart.

    Attributes:
        texts: The prompts.
        batch: The same as tokens.
        tokens: Of each, the likeliest first token of the concept's forms.
        reader: What reads that token's logit, less the mean of all logits.
        parts: What each part adds to it.
    """

    texts: Sequence[str]
    batch: Batch
    tokens: Sequence[int]
    reader: Reader
    parts: Parts


def hidden(context: Context) -> Result:
    """The share of the fall that was lost, not countered.

    The logit is that of the concept's likeliest token less the mean of all, read off the final
    stream by the base's norm and unembedding, with the norm's scale held at the base's. Per part
    (the embedding, a head, a neuron, a bias) what it adds is compared:

    - *lost*: what spoke for the concept speaks less for it;
    - *added*: what is said against the concept, and wasn't in the base;
    - *returned*: the opposite of both, which stands against the fall;
    - *scale*: the whole stream grew, so that the norm makes everything smaller;
    - *read_out*: the edited model's own norm and unembedding read less in the same stream.

    Lost and added, less returned, with scale and read_out are the fall. The share is
    `lost / (lost + added)`, and `None` where the logit hardly fell or the stream is as it was.
    """
    frames = [_frame(context, concept) for concept in context.base.concepts]
    items = pd.concat(frames, ignore_index=True)
    values = items[["lost", "added"]].to_numpy(float)
    figures = fall_figures(items)
    interval = intervals.bootstrap(
        values, share_lost, seed=context.seed, resamples=context.suite.resamples
    )
    if figures["share_lost"] is None:
        interval = None
    return Result("hidden", "share_lost", figures, interval, items)


def fall_figures(items: pd.DataFrame) -> dict[str, Any]:
    """`share_lost`, the mean over prompts of every kind in `KINDS`, and how many prompts."""
    means = {kind: float(items[kind].mean()) if len(items) else None for kind in KINDS}
    share = None
    if means["fall"] is not None and means["fall"] >= LEAST_FALL:
        share = intervals.number(share_lost(items[["lost", "added"]].to_numpy(float)))
    return {"share_lost": share, **means, "prompts": len(items)}


def share_lost(values: np.ndarray) -> np.ndarray:
    """`sum lost / sum (lost + added)` of columns lost, added; NaN where nothing moved."""
    lost, added = values[..., 0].sum(axis=-1), values[..., 1].sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(lost + added > 0, lost / (lost + added), np.nan)


def standing(context: Context, concept: Concept) -> Standing | None:
    """What the base's logit is made of, kept by the base; `None` where it knows no prompt."""
    texts = known_prompts(context, concept)
    if not texts:
        return None
    return context.base.once(f"standing {concept.name}", lambda: _of_base(context, concept, texts))


def fallen(lens: Lens, base: Standing, concept: str) -> pd.DataFrame:
    """The fall in a model that was edited or trained, as it stands now.

    Returns:
        Columns concept, prompt, token, and those of `KINDS` (logits).
    """
    now = logit_parts(lens, base.batch, base.tokens, base.reader)
    level = base.parts.inverse_scale / now.inverse_scale
    lost, added, returned, after = (torch.zeros_like(now.logit) for _ in range(4))
    for old, new in zip(_single(base.parts), _single(now), strict=True):
        held = new * level[:, None]
        speaks_less, against = old.relu() - held.relu(), (-held).relu() - (-old).relu()
        lost += speaks_less.relu().sum(dim=1)
        added += against.relu().sum(dim=1)
        returned += (-speaks_less).relu().sum(dim=1) + (-against).relu().sum(dim=1)
        after += new.sum(dim=1)
    before, own = (parts.logit - parts.mean_logit for parts in (base.parts, now))
    found = {
        "fall": before - own,
        "lost": lost,
        "added": added,
        "returned": returned,
        "scale": after * (level - 1),
        "read_out": after + now.bias - own,
    }
    tokens = [lens.string(token) for token in base.tokens]
    return pd.DataFrame(
        {
            "concept": concept,
            "prompt": list(base.texts),
            "token": tokens,
            **{kind: values.cpu().numpy() for kind, values in found.items()},
        }
    )


def no_falls() -> pd.DataFrame:
    """What `fallen` gives where the base knows no prompt."""
    return pd.DataFrame(columns=["concept", "prompt", "token", *KINDS])


def _frame(context: Context, concept: Concept) -> pd.DataFrame:
    base = standing(context, concept)
    if base is None:
        return no_falls()
    with context.edited() as lens:
        return fallen(lens, base, concept.name)


@torch.no_grad()
def _of_base(context: Context, concept: Concept, texts: list[str]) -> Standing:
    lens = context.lens
    batch, forms = lens.prompts(texts), first_tokens(lens, concept)
    likeliest = lens.next_logits(batch)[:, forms].argmax(dim=1).tolist()
    tokens = [forms[index] for index in likeliest]
    reader = reader_of(lens, tokens, centred=True)
    return Standing(texts, batch, tokens, reader, logit_parts(lens, batch, tokens, reader))


def _single(parts: Parts) -> list[Float64[Tensor, "batch parts"]]:
    """What can speak for a token or against it by itself; the last bias isn't of the stream."""
    found = [parts.embedding[:, None]]
    found += [values.movedim(0, 1).flatten(1) for values in (parts.heads, parts.neurons)]
    found += [bias.T for bias in (parts.attention_bias, parts.mlp_bias) if bias is not None]
    return found


MEASURES = (
    Measure(
        name="hidden",
        about="share of the logit's fall that is lost support, not something said against it",
        better="high",
        suite="quick",
        run=hidden,
    ),
)
