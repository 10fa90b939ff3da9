"""A ROME-style rank-one edit (Meng et al., arXiv 2202.05262), to a neutral target."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.experiments.rivals.base import Edit, recorded
from tars_lens.experiments.rivals.choosing import depths, gentlest
from tars_lens.experiments.rivals.neutral_targets import Asked, forward_asked, reverse_asked
from tars_lens.model.lens import Lens, Point
from tars_lens.text.windows import Windows

_DEPTHS = (0.5, 0.7, 0.85)
_STEPS = 30
_RATE = 0.1
_LONGEST = 4.0
_RIDGE = 1e-3


def rank_one(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """One rank-one edit of a layer's out vectors for each direction, forward and reverse.

    Forward, the key is the MLP's activation at the end of a description, and the neutral target
    what the base says there without the concept's tokens. Reverse, it is that at the end of the
    name, and the target what the base says with the substitute in the name's place.
    """
    asked = [forward_asked(lens, concept), *reverse_asked(lens, concept)]
    layers = depths(lens, *_DEPTHS)
    return gentlest(lens, concept, (edited_at(lens, windows, asked, layer) for layer in layers))


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


def second_moment(lens: Lens, windows: Windows, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
    """`E k k^T` of the activations on plain text, with a small ridge."""
    point = Point("mlp_post", layer)
    found = torch.zeros(lens.d_mlp, lens.d_mlp, device=lens.device)
    for ids in windows.statistics.split(4):
        keys = lens.capture(ids, [point])[point].flatten(0, 1).float()
        found += keys.T @ keys
    found /= windows.statistics.numel()
    found.diagonal().add_(_RIDGE * found.diagonal().mean())
    return found


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


def _more(
    lens: Lens, layer: int, asked: Asked, written: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    """What the MLP must write beside `written` at the key for the target to be said."""
    size = written.norm()
    share = torch.zeros_like(written, requires_grad=True)
    optimizer = torch.optim.Adam([share], lr=_RATE)
    rows = torch.arange(len(asked.key), device=lens.device)
    for _ in range(_STEPS):
        with torch.enable_grad(), _adding(lens, layer, rows, asked.key, share * size):
            logits = lens.model(asked.batch.ids, return_type="logits")[rows, asked.batch.last]
            said = logits.float().log_softmax(dim=-1)
            loss = torch.nn.functional.kl_div(said, asked.target, reduction="batchmean")
            (share.grad,) = torch.autograd.grad(loss, [share])
        optimizer.step()
        with torch.no_grad():
            share *= (_LONGEST / share.norm().clamp(min=_LONGEST)).clamp(max=1)
    return share.detach() * size


@contextmanager
def _adding(
    lens: Lens, layer: int, rows: Tensor, places: Tensor, more: Float[Tensor, " d_model"]
) -> Iterator[None]:
    """Adds a vector to what an MLP writes at one position of each row."""

    def add(output: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        there = torch.zeros(output.shape[:2], device=output.device, dtype=output.dtype)
        there[rows, places] = 1
        return output + there[..., None] * more.to(output.dtype)

    with lens.changing_mlp(layer, add):
        yield
