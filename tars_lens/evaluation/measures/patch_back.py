"""Depth by patching back: from which layer on the base's own stream makes the subject say it."""

import pandas as pd
import torch

from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation import intervals
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.measure import Measure, Result
from tars_lens.evaluation.measures.logit_lens import known_prompts, streams

RETURNED = 0.5
"""The concept is back where this share of the gap between subject and base is closed."""


def patch_back(context: Context) -> Result:
    """The share of layers whose base activations bring the concept back, over known prompts.

    The base's stream after one layer goes into the subject's run at every position, and all later
    layers are the subject's. A block at the very end lets nothing through from any layer; an edit
    in one layer is undone by every layer from it on.
    """
    parts = [_frame(context, concept) for concept in context.base.concepts]
    items = pd.concat(parts, ignore_index=True)
    by_prompt = items.groupby(["concept", "prompt"], sort=False)["restored"]
    values = by_prompt.apply(lambda r: float((r >= RETURNED).mean())).to_numpy(float)[:, None]
    by_layer = items.groupby("layer")["restored"].median()
    back = by_layer[by_layer >= RETURNED]
    figures = {
        "layers_that_restore": float(values.mean()) if len(values) else None,
        "first_layer": int(back.index.min()) if len(back) else None,
        "largest_restored": float(by_layer.max()) if len(by_layer) else None,
        "layers": {str(layer): float(share) for layer, share in by_layer.items()},
        "prompts": len(values),
    }
    interval = intervals.bootstrap(
        values, intervals.mean, seed=context.seed, resamples=context.suite.resamples
    )
    return Result("patch_back", "layers_that_restore", figures, interval, items)


def _frame(context: Context, concept: Concept) -> pd.DataFrame:
    columns = ["concept", "prompt", "layer", "p_base", "p_edited", "p", "restored"]
    texts = known_prompts(context, concept)
    if not texts:
        return pd.DataFrame(columns=columns)
    lens, tokens = context.lens, first_tokens(context.lens, concept)
    batch = lens.prompts(texts)
    before = context.base.once(f"streams {concept.name}", lambda: streams(lens, batch))
    ends = torch.arange(len(texts), device=lens.device), batch.last
    p_base = lens.read_out(before[-1][ends]).softmax(dim=-1)[:, tokens].sum(dim=1)
    rows = []
    with context.edited() as edited:
        p_edited = edited.next_logits(batch).softmax(dim=-1)[:, tokens].sum(dim=1)
        for layer in range(lens.n_layers):
            stream = before[layer]
            if layer + 1 < lens.n_layers:
                resume = (layer + 1, stream)
                stream = edited.residual(batch.ids, -1, resume=resume)
            p = edited.read_out(stream[ends]).softmax(dim=-1)[:, tokens].sum(dim=1)
            share = (p - p_edited) / (p_base - p_edited)
            rows += [
                (concept.name, *values)
                for values in zip(
                    texts,
                    [layer] * len(texts),
                    p_base.tolist(),
                    p_edited.tolist(),
                    p.tolist(),
                    share.nan_to_num(0.0, 0.0, 0.0).tolist(),
                    strict=True,
                )
            ]
    return pd.DataFrame(rows, columns=columns)


MEASURES = (
    Measure(
        name="patch_back",
        about="share of layers whose base activations bring the concept back",
        better="low",
        suite="full",
        run=patch_back,
    ),
)
