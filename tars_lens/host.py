"""Which neuron is given up for a concept: the one that plain text would miss least."""

from collections.abc import Collection

import torch

from tars_lens.lens import Lens
from tars_lens.neutral import Neutral


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
    for where, neuron in taken:
        if where == layer:
            worth[neuron] = torch.inf
    return int(worth.argmin())
