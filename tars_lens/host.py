"""Which neuron is given up for a concept: the one that plain text would miss least.

Or, to be compared with that, the one that carries the concept most.
"""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.lens import Lens, Point
from tars_lens.neutral import Neutral
from tars_lens.settings import HostName


def host_neuron(
    lens: Lens,
    neutral: Neutral,
    layer: int,
    taken: Collection[tuple[int, int]],
    kind: HostName,
    texts: Sequence[str],
    direction: Float[Tensor, " d_model"],
) -> int:
    """The neuron of a layer that is given up: `idle_neuron`, or `carrying_neuron`."""
    if kind == "carrier":
        return carrying_neuron(lens, layer, taken, texts, direction)
    return idle_neuron(lens, neutral, layer, taken)


def idle_neuron(
    lens: Lens, neutral: Neutral, layer: int, taken: Collection[tuple[int, int]]
) -> int:
    """The neuron of a layer with the least rms activation times `out` norm on plain text.

    Args:
        lens: The base model, or one whose edited neurons are all in `taken`.
        neutral: Statistics of the base model on plain text.
        layer: Where the host is wanted.
        taken: `(layer, neuron)` of hosts in use, which are never given out again.
    """
    worth = neutral.activation_rms[layer] * lens.vectors(layer, "out").float().norm(dim=1)
    return _least(worth, layer, taken)


def carrying_neuron(
    lens: Lens,
    layer: int,
    taken: Collection[tuple[int, int]],
    texts: Sequence[str],
    direction: Float[Tensor, " d_model"],
) -> int:
    """The neuron of a layer that writes most of a concept where it is about to be said.

    By its mean activation at the ends of the texts times the cosine of its `out` vector with the
    direction.

    Args:
        lens: As for `idle_neuron`.
        layer: Where the host is wanted.
        taken: Hosts in use.
        texts: Their last tokens are where the concept is.
        direction: The concept's, whitened.
    """
    batch, point = lens.prompts(texts), Point("mlp_post", layer)
    activation = lens.capture(batch.ids, [point], positions=batch.last)[point].float().mean(dim=0)
    out = lens.vectors(layer, "out").float()
    return _least(-activation * torch.cosine_similarity(out, direction[None], dim=1), layer, taken)


def _least(worth: Float[Tensor, " d_mlp"], layer: int, taken: Collection[tuple[int, int]]) -> int:
    for where, neuron in taken:
        if where == layer:
            worth[neuron] = torch.inf
    return int(worth.argmin())
