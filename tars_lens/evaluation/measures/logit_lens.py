"""Depth by the logit lens: whether the concept still stands in the stream, whoever reads it."""

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation import intervals
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.measure import Measure, Result
from tars_lens.model.lens import Batch, Lens, Point
from tars_lens.model.readings import read_tokens


def logit_lens(context: Context) -> Result:
    """The largest `p(answer)` and the best rank over layers and positions, before and after.

    Both runs are read by the base's final norm and unembedding: a subject whose unembedding was
    changed says nothing by it of what its stream still holds.
    """
    parts = [_frame(context, concept) for concept in context.base.concepts]
    items = pd.concat(parts, ignore_index=True)
    values = items[["p_after", "p_before"]].assign(chance=0.0).to_numpy(float)
    interval = intervals.bootstrap(
        values, intervals.kept, seed=context.seed, resamples=context.suite.resamples
    )
    figures = {
        "kept": intervals.number(intervals.kept(values)) if len(items) else None,
        "largest_p_before": _largest(items["p_before"]),
        "largest_p": _largest(items["p_after"]),
        "mean_p": float(items["p_after"].mean()) if len(items) else None,
        "best_rank_before": int(items["rank_before"].min()) if len(items) else None,
        "best_rank": int(items["rank_after"].min()) if len(items) else None,
        "prompts": len(items),
    }
    return Result("logit_lens", "kept", figures, interval, items)


def known_prompts(context: Context, concept: Concept) -> list[str]:
    """The first forward probes that the base knows."""
    table = context.base_answers("forward")
    own = table[(table["concept"] == concept.name) & table["known"]]["prompt"].tolist()
    return list(own[: context.suite.prompts])


def streams(lens: Lens, batch: Batch) -> Float[Tensor, "layers batch pos d_model"]:
    """The residual stream after every layer."""
    points = [Point("resid_post", layer) for layer in range(lens.n_layers)]
    seen = lens.capture(batch.ids, points)
    return torch.stack([seen[point] for point in points])


def _frame(context: Context, concept: Concept) -> pd.DataFrame:
    columns = ["concept", "prompt", "p_before", "p_after", "layer_before", "layer_after"]
    columns += ["rank_before", "rank_after"]
    texts = known_prompts(context, concept)
    if not texts:
        return pd.DataFrame(columns=columns)
    lens = context.lens
    batch, tokens = lens.prompts(texts), first_tokens(lens, concept)
    real = torch.arange(batch.ids.shape[1], device=lens.device)[None] <= batch.last[:, None]
    before = context.base.once(f"streams {concept.name}", lambda: streams(lens, batch))
    read = context.base.once(f"lens {concept.name}", lambda: _read(lens, before, real, tokens))
    with context.edited() as edited:
        after = streams(edited, batch)
    pairs = {"before": read, "after": _read(lens, after, real, tokens)}
    rows = [
        {
            "concept": concept.name,
            "prompt": text,
            **{f"p_{when}": float(p[:, i].max()) for when, (p, _) in pairs.items()},
            **{
                f"layer_{when}": int(p[:, i].amax(dim=1).argmax()) for when, (p, _) in pairs.items()
            },
            **{f"rank_{when}": int(rank[:, i].min()) for when, (_, rank) in pairs.items()},
        }
        for i, text in enumerate(texts)
    ]
    return pd.DataFrame(rows, columns=columns)


def _read(
    lens: Lens,
    stream: Float[Tensor, "layers batch pos d_model"],
    real: Bool[Tensor, "batch pos"],
    tokens: list[int],
) -> tuple[Tensor, Tensor]:
    """Probability and rank by layer, prompt and position; padding says nothing."""
    found = read_tokens(lens, stream[:, real].flatten(0, 1), tokens)
    p = torch.zeros(stream.shape[:3], device=stream.device)
    rank = torch.full(stream.shape[:3], lens.d_vocab, device=stream.device)
    p[:, real] = found.probability.reshape(len(stream), -1)
    rank[:, real] = found.rank.reshape(len(stream), -1)
    return p, rank


def _largest(values: pd.Series) -> float | None:
    return float(values.max()) if len(values) else None


MEASURES = (
    Measure(
        name="logit_lens",
        about="largest p(answer) in any layer and position: share of the base's",
        better="low",
        suite="quick",
        run=logit_lens,
    ),
)
