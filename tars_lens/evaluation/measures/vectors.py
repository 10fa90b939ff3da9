"""The edited vectors by themselves: what they say before and after, and the best neuron left."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation import intervals
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.measure import Measure, Result
from tars_lens.method.describing import top_tokens
from tars_lens.model.unembedding import Unembedding
from tars_lens.model.weights import neuron_label

TOP = 200
"""Tokens of a vector that are compared."""


def vectors(context: Context) -> Result:
    """Jaccard of the top 200 tokens of each edited vector through the unembedding.

    The figures name the `out` vector that lies nearest to the concept's unembedding among those
    that were left, beside the nearest of all.
    """
    lens, edits = context.lens, context.subject.edits
    columns = ["layer", "role", "neuron", "jaccard"]
    top = min(TOP, lens.d_vocab // 4)
    rows = []
    for (layer, role), edited in sorted(edits.items()):
        old = lens.vectors(layer, role)[edited.neurons].float()
        before = top_tokens(lens, old, top)
        after = top_tokens(lens, edited.values.float().to(lens.device), top)
        for neuron, a, b in zip(edited.neurons.tolist(), before, after, strict=True):
            shared = len({*a} & {*b}) / len({*a} | {*b})
            rows.append((layer, role, neuron, shared))
    items = pd.DataFrame(rows, columns=columns)
    values = items[["jaccard"]].to_numpy(float)
    figures = {
        "jaccard": float(values.mean()) if len(values) else None,
        "vectors": len(items),
        "tokens": top,
        "best_left": {c.name: _best_left(context, first_tokens(lens, c)) for c in _cards(context)},
    }
    interval = intervals.bootstrap(
        values, intervals.mean, seed=context.seed, resamples=context.suite.resamples
    )
    return Result("vectors", "jaccard", figures, interval, items)


def _cards(context: Context) -> list:
    return list(context.base.concepts) if context.subject.edits else []


def _best_left(context: Context, tokens: list[int]) -> dict[str, object]:
    """The nearest `out` vector of the base, and the nearest of those that the edit left alone."""
    cosines = context.base.once(f"cosines {tokens}", lambda: _cosines(context, tokens))
    left = cosines.clone()
    for (layer, role), rows in context.subject.edits.items():
        if role == "out":
            left[layer, rows.neurons] = -torch.inf
    found: dict[str, object] = {}
    for name, values in (("all", cosines), ("left", left)):
        layer, neuron = divmod(int(values.argmax()), values.shape[1])
        found[name] = neuron_label(layer, neuron)
        found[f"{name}_cosine"] = float(values[layer, neuron])
    return found


def _cosines(context: Context, tokens: list[int]) -> Float[Tensor, "layers d_mlp"]:
    lens = context.lens
    unembedding = context.base.once("unembedding", lambda: Unembedding.fit(lens))
    target = unembedding.vectors(tokens).mean(dim=0)
    rows = [
        torch.cosine_similarity(lens.vectors(layer, "out").float(), target[None], dim=1)
        for layer in range(lens.n_layers)
    ]
    return torch.stack(rows)


MEASURES = (
    Measure(
        name="vectors",
        about="Jaccard of the top 200 tokens of each edited vector, before and after",
        better="low",
        suite="quick",
        run=vectors,
        controls={"quick": "none", "full": "all"},
    ),
)
