"""Baselines by a formula: directional ablation, LEACE, a rank-one edit, AI Engram."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept, substituted
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation.control_edits import own_unembedding
from tars_lens.experiments.baselines.edits import Edit, extra, gentlest, recorded
from tars_lens.experiments.baselines.facts import (
    Facts,
    depths,
    forward_prompts,
    other_facts,
    other_prompts,
    own_facts,
)
from tars_lens.model.lens import Batch, Lens, Point
from tars_lens.model.parameters import logits, mapping_stream, stream_writers
from tars_lens.text.windows import Windows

_ABLATION_DEPTHS = (0.8, 0.6, 0.4)

LEACE_WINDOWS = 64  # fewer positions than dimensions would say little of a covariance
_LEACE_STRIDE = 8  # neighbouring positions of a text say much the same of a covariance

_RANK_ONE_DEPTHS = (0.5, 0.7, 0.85)
_RANK_ONE_STEPS = 30
_RANK_ONE_RATE = 0.1
_RANK_ONE_LONGEST = 4.0
_RANK_ONE_RIDGE = 1e-3

ENGRAM_WINDOWS = 16  # more tokens than a small model's widest matrix reads dimensions
_ENGRAM_STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.5, 2.0)

# --- directional ablation -----------------------------------------------------------------------


def ablation(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """`W' = W - W r r^T` for every matrix that writes to the stream (arXiv 2406.11717).

    `r` is the difference in means of the stream at the last token, between prompts that lead to
    the concept and prompts that don't, at the layer which leaves least on validation prompts.
    """
    layers = dict.fromkeys(depths(lens, share)[0] for share in _ABLATION_DEPTHS)
    return gentlest(
        lens, concept, (projected_out(lens, direction(lens, concept, k)) for k in layers)
    )


def direction(lens: Lens, concept: Concept, layer: int) -> Float[Tensor, " d_model"]:
    """The difference in means after a layer, of norm 1."""
    own, other = (
        _at_last(lens, prompts, Point("resid_post", layer)).mean(dim=0)
        for prompts in (forward_prompts(concept), other_prompts(concept))
    )
    return _unit(own - other)


def projected_out(lens: Lens, towards: Float[Tensor, " d_model"]) -> Edit:
    """Nothing can write along a direction any more.

    The unembedding, which reads the stream, is left as it is where it is tied to the embedding.
    """

    @torch.no_grad()
    def change() -> None:
        for rows, gain in stream_writers(lens):
            along = _unit(towards if gain is None else towards * gain.float())
            values = rows.float()
            rows.copy_(values - (values @ along)[..., None] * along)

    return recorded(lens, change, within=own_unembedding)


# --- LEACE --------------------------------------------------------------------------------------


def leace(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """The least change of the stream after which no linear reader tells the concept's prompts.

    Concept scrubbing, layer after layer (Belrose et al., arXiv 2306.03819). Positives are the last
    tokens of prompts that lead to the concept or from it, negatives those of near and unrelated
    prompts, and plain text without its first token, whose stream is like no other. The eraser of a
    layer is fitted to streams that those before it have erased; none stands after the last layer.
    It is no edit of weights: the stream is mapped as it enters a layer, after the erasers of
    earlier concepts.
    """
    package = extra("leace")
    own = [*forward_prompts(concept), *(p.prompt for p in concept.validation.reverse)]
    batch = lens.prompts([*own, *other_prompts(concept)])
    plain = windows.statistics[:LEACE_WINDOWS]
    erasers: list[Any] = []
    before: list[Tensor | None] = [None, None]  # what the layer before hands out, not yet erased
    for layer in range(1, lens.n_layers):
        points = [Point("resid_post", layer - 1), Point("resid_pre", layer)]
        with _erased_with(erasers)(lens):
            runs = [
                lens.capture(ids, points, resume=None if stream is None else (layer - 1, stream))
                for ids, stream in zip((batch.ids, plain), before, strict=True)
            ]
        before = [run[points[0]] for run in runs]
        prompts, text = (run[points[1]] for run in runs)
        last = prompts[torch.arange(len(prompts), device=prompts.device), batch.last]
        x = torch.cat([last, text[:, 1::_LEACE_STRIDE].flatten(0, 1)]).float()
        z = torch.zeros(len(x), device=x.device)
        z[: len(own)] = 1
        # by the default tolerance a rare class's covariance with the stream passes for none
        erasers.append(package.LeaceEraser.fit(x, z, svd_tol=1e-4))
    return _erased_with(erasers)


def _erased_with(erasers: Sequence[Any]) -> Edit:
    """Maps the stream after layers 0, 1, ... as it enters the next one."""

    @contextmanager
    def held(base: Lens) -> Iterator[Lens]:
        with ExitStack() as stack:
            for layer, eraser in enumerate(erasers, start=1):
                stack.enter_context(mapping_stream(base, layer, eraser))
            yield base

    return held


# --- a rank-one edit ----------------------------------------------------------------------------


class Asked(NamedTuple):
    """Prompts of one direction, where their key stands, and what should be said after them."""

    batch: Batch
    key: Int[Tensor, " prompts"]
    target: Float[Tensor, "prompts d_vocab"]


def rank_one(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """One ROME-style edit of a layer's out vectors a direction (Meng et al., arXiv 2202.05262).

    Forward, the key is the MLP's activation at the end of a description, and the neutral target
    what the base says there without the concept's tokens. Reverse, it is that at the end of the
    name, and the target what the base says with the substitute in the name's place.
    """
    asked = [forward_asked(lens, concept), *reverse_asked(lens, concept)]
    layers = depths(lens, *_RANK_ONE_DEPTHS)
    return gentlest(lens, concept, (edited_at(lens, windows, asked, layer) for layer in layers))


def forward_asked(lens: Lens, concept: Concept) -> Asked:
    """Descriptions that lead to the concept."""
    batch = lens.prompts(forward_prompts(concept))
    target = lens.next_logits(batch)
    target[:, first_tokens(lens, concept)] = -torch.inf
    return Asked(batch, batch.last, target.softmax(dim=-1))


def reverse_asked(lens: Lens, concept: Concept) -> list[Asked]:
    """Validation prompts that name the concept; none where the card has no substitute for it."""
    found = [(p.prompt, _name_end(lens, p.prompt, concept)) for p in concept.validation.reverse]
    kept = [(prompt, end) for prompt, end in found if end is not None]
    if not kept or not concept.substitute:
        return []
    plain = [substituted(prompt, concept.names, concept.substitute) for prompt, _ in kept]
    target = lens.next_logits(lens.prompts(plain)).softmax(dim=-1)
    ends = torch.tensor([end for _, end in kept], device=lens.device)
    return [Asked(lens.prompts([prompt for prompt, _ in kept]), ends, target)]


def edited_at(lens: Lens, windows: Windows, asked: Sequence[Asked], layer: int) -> Edit:
    """A rank-one edit of a layer's out vectors for each direction that is asked for.

    In the last layer, what is written at a name no longer reaches the end of its prompt: there the
    reverse edit comes out as nothing.
    """
    moment = second_moment(lens, windows, layer)

    def change() -> None:
        for each in asked:
            point, rows = Point("mlp_post", layer), lens.vectors(layer, "out")
            keys = lens.capture(each.batch.ids, [point], positions=each.key)[point]
            key = keys.float().mean(dim=0)
            value = key @ rows.float() + _more(lens, layer, each, key @ rows.float())
            rows.copy_(with_value(rows.float(), moment, key, value))

    return recorded(lens, change)


def second_moment(lens: Lens, windows: Windows, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
    """`E k k^T` of the activations on plain text, with a small ridge."""
    point = Point("mlp_post", layer)
    found = torch.zeros(lens.d_mlp, lens.d_mlp, device=lens.device)
    for ids in windows.statistics.split(4):
        keys = lens.capture(ids, [point])[point].flatten(0, 1).float()
        found += keys.T @ keys
    found /= windows.statistics.numel()
    found.diagonal().add_(_RANK_ONE_RIDGE * found.diagonal().mean())
    return found


def with_value(
    rows: Float[Tensor, "d_mlp d_model"],
    moment: Float[Tensor, "d_mlp d_mlp"],
    key: Float[Tensor, " d_mlp"],
    value: Float[Tensor, " d_model"],
) -> Float[Tensor, "d_mlp d_model"]:
    """`W + (C^-1 k) (v - W k)^T / (k C^-1 k)`: gives the value for the key, and moves others least.

    Args:
        rows: `W`, a row a neuron.
        moment: `C`, the second moment of the activations on plain text.
        key: `k`.
        value: `v`.
    """
    along = torch.linalg.solve(moment, key)
    return rows + torch.outer(along, value - key @ rows) / (key @ along)


def _name_end(lens: Lens, prompt: str, concept: Concept) -> int | None:
    """The position of the last token of the concept's name, the longest that the prompt has."""
    for name in sorted(concept.names, key=len, reverse=True):
        found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt)
        if found is not None:
            before = lens.tokens(prompt[: found.end()])
            whole = lens.tokens(prompt)[: len(before)]
            return len(before) - 1 if whole == before else None
    return None


def _more(
    lens: Lens, layer: int, asked: Asked, written: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    """What the MLP must write beside `written` at the key for the target to be said."""
    size = written.norm()
    share = torch.zeros_like(written, requires_grad=True)
    optimizer = torch.optim.Adam([share], lr=_RANK_ONE_RATE)
    rows = torch.arange(len(asked.key), device=lens.device)

    def added(output: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        there = torch.zeros(output.shape[:2], device=output.device, dtype=output.dtype)
        there[rows, asked.key] = 1
        return output + there[..., None] * (share * size).to(output.dtype)

    for _ in range(_RANK_ONE_STEPS):
        with torch.enable_grad(), lens.changing_mlp(layer, added):
            said = logits(lens, asked.batch.ids)[rows, asked.batch.last].float()
            loss = torch.nn.functional.kl_div(
                said.log_softmax(dim=-1), asked.target, reduction="batchmean"
            )
            (share.grad,) = torch.autograd.grad(loss, [share])
        optimizer.step()
        with torch.no_grad():
            longest = _RANK_ONE_LONGEST
            share *= (longest / share.norm().clamp(min=longest)).clamp(max=1)
    return share.detach() * size


# --- AI Engram ----------------------------------------------------------------------------------


def engram(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """`W <- W - a f W C_forget pinv(C_total)`, for every matrix of attention and MLPs.

    What each matrix owes to the concept, subtracted (Kwon et al., arXiv 2606.14997). `C` is the
    second moment of what a matrix reads: of the card's facts, and of these with the near facts and
    plain text. The facts are read without their first token, which is like no other and the same
    in every text. `f` is the share of the tokens that are to be forgotten times how much of a
    matrix the subtracted part is, beside the matrix where it is most (the paper's adaptive norm).
    The package does all of it on the bridge's own linear layers.

    Raises:
        TarsError: The package isn't installed, or the model has no linear layers.
    """
    package = extra("engram")
    editor = package.EngramEditor(lens.model)
    if not any(isinstance(module, tuple(editor.registry)) for module in lens.model.modules()):
        raise TarsError(
            f"{lens.name} keeps its weights in no linear layers that the baseline 'engram' can "
            "read. Load it as a TransformerBridge, or name other baselines (--baselines)."
        )
    own = Facts.of(lens, own_facts(concept))
    near = other_facts(concept)
    others = [Facts.of(lens, near)] if near else []
    plain = windows.statistics[:ENGRAM_WINDOWS].split(4)
    total = [(facts.ids, facts.read) for facts in (own, *others)]
    total += [(ids, torch.ones_like(ids, dtype=torch.bool)) for ids in plain]
    read = partial(
        editor.collect_statistics,
        batch_fn=lambda batch: batch[0],
        mask_fn=lambda batch: batch[1],
        layers_to_transform=list(range(lens.n_layers)),
    )
    with redirect_stderr(StringIO()):  # it draws bars of its own on a terminal
        found = editor.compute_engram_weights(read([(own.ids, own.read)]), read(total))
    scale = package.compose(package.count_ratio(), package.weight_norm())
    subtract = partial(editor.apply, found, scale=scale, inplace=True)
    edits = (recorded(lens, partial(subtract, alpha=alpha)) for alpha in _ENGRAM_STRENGTHS)
    return gentlest(lens, concept, edits)


# --- what they share ----------------------------------------------------------------------------


def _at_last(lens: Lens, prompts: list[str], point: Point) -> Float[Tensor, "prompts width"]:
    """What passes a point at each prompt's last token, in float32."""
    batch = lens.prompts(prompts)
    return lens.capture(batch.ids, [point], positions=batch.last)[point].float()


def _unit(vector: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
    return torch.nn.functional.normalize(vector.float(), dim=0)
