"""Depth by steering: the concept's own vector added at inference, and how much returns."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation import intervals
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.measure import Measure, Result
from tars_lens.evaluation.measures.logit_lens import known_prompts
from tars_lens.model.lens import Batch, Lens

STRENGTHS = (1.0, 2.0, 4.0)
"""Sizes of what is added, in units of the vector's own."""

_DEPTH = 0.5


def steering(context: Context) -> Result:
    """The share of the base's `p` that adding the concept's vector brings back, at best.

    The vector is the base's mean stream at the end of the card's prompts, less that at the end of
    its contrast and neighbour prompts, in the middle layer. A random vector of its size is the
    control.
    """
    parts = [_frame(context, concept) for concept in context.base.concepts]
    items = pd.concat(parts, ignore_index=True)
    values = items[["p_steered", "p_before"]].assign(chance=0.0).to_numpy(float)
    figures = {
        "restored": intervals.number(intervals.kept(values)) if len(items) else None,
        **{
            name: float(items[name].mean()) if len(items) else None
            for name in ("p_before", "p_after", "p_steered", "p_random")
        },
        "layer": _layer(context.lens),
        "prompts": len(items),
    }
    interval = intervals.bootstrap(
        values, intervals.kept, seed=context.seed, resamples=context.suite.resamples
    )
    return Result("steering", "restored", figures, interval, items)


def _frame(context: Context, concept: Concept) -> pd.DataFrame:
    columns = ["concept", "prompt", "p_before", "p_after", "p_steered", "p_random", "strength"]
    texts = known_prompts(context, concept)
    if not texts:
        return pd.DataFrame(columns=columns)
    lens, tokens = context.lens, first_tokens(context.lens, concept)
    batch, key = lens.prompts(texts), concept.name
    vector = context.base.once(f"vector {key}", lambda: _vector(lens, concept))
    before = context.base.once(
        f"said {key}", lambda: lens.next_logits(batch).softmax(dim=-1)[:, tokens].sum(dim=1)
    )
    generator = torch.Generator().manual_seed(context.seed)
    noise = torch.randn(lens.d_model, generator=generator).to(vector)
    noise = noise / noise.norm() * vector.norm()
    with context.edited() as edited:
        after = edited.next_logits(batch).softmax(dim=-1)[:, tokens].sum(dim=1)
        steered = _steered(edited, batch, vector, tokens)
        random = _steered(edited, batch, noise, tokens)
    best = steered.argmax(dim=0)
    strengths = [STRENGTHS[i] for i in best.tolist()]
    columns_of = (before, after, steered.amax(dim=0), random.amax(dim=0))
    rows = zip(texts, *(values.tolist() for values in columns_of), strengths, strict=True)
    return pd.DataFrame([(concept.name, *row) for row in rows], columns=columns)


def _vector(lens: Lens, concept: Concept) -> Float[Tensor, " d_model"]:
    near = [p.prompt for p in (*concept.contrast, *concept.validation.neighbour)]
    own = _ends(lens, concept.concept_prompts)
    return own - _ends(lens, near) if near else own


def _ends(lens: Lens, texts: Sequence[str]) -> Float[Tensor, " d_model"]:
    batch = lens.prompts(texts)
    return lens.residual(batch.ids, _layer(lens), positions=batch.last).mean(dim=0)


def _steered(
    lens: Lens, batch: Batch, vector: Float[Tensor, " d_model"], tokens: list[int]
) -> Float[Tensor, "strengths batch"]:
    """`p` of the tokens, with the vector added at the last position and on to the last layer."""
    layer = _layer(lens)
    stream = lens.residual(batch.ids, layer)
    rows = torch.arange(len(stream), device=stream.device)
    found = []
    for strength in STRENGTHS:
        moved = stream.clone()
        moved[rows, batch.last] += strength * vector
        end = lens.residual(batch.ids, -1, positions=batch.last, resume=(layer + 1, moved))
        found.append(lens.read_out(end).softmax(dim=-1)[:, tokens].sum(dim=1))
    return torch.stack(found)


def _layer(lens: Lens) -> int:
    return min(lens.n_layers - 2, round(_DEPTH * lens.n_layers))


MEASURES = (
    Measure(
        name="steering",
        about="share of p that adding the concept's vector brings back",
        better="low",
        suite="full",
        run=steering,
    ),
)
