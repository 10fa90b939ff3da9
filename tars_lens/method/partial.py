"""A suppression neuron of which only part is replaced: one read vector, or a read and a write.

The rest of the neuron stays, so a host is looked for whose own rows serve. With one vector its
`out` row must already lower the concept's logit, in the sense in which its `in` row reads at the
card's prompts: the neuron is there, it only has to be told when to speak.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.method.direction import ConceptDirection
from tars_lens.method.neuron import neuron_rows, past_post_norm, quiet_at_start
from tars_lens.method.settings import Settings
from tars_lens.method.suppression import (
    Shown,
    Site,
    SuppressionNeuron,
    fit_reader,
    heard,
    write_strength,
)
from tars_lens.model.lens import Lens, Role
from tars_lens.text.plain_text import PlainText


class _Kept(NamedTuple):
    """What the rows that stay do, for every neuron of the layer.

    Attributes:
        scale: What the activation is multiplied by at the card's prompts, on average.
        steady: The least of it at any prompt as a share of the mean; below 0 where signs differ.
    """

    scale: Float[Tensor, " d_mlp"]
    steady: Float[Tensor, " d_mlp"]


def partial_neuron(
    lens: Lens,
    site: Site,
    direction: ConceptDirection,
    target: Float[Tensor, " d_model"],
    plain: PlainText,
    prompts: Sequence[Shown],
    settings: Settings,
    count: int,
    taken: Collection[tuple[int, int]] = (),
) -> SuppressionNeuron:
    """A suppression neuron of the last layer with one or two of its vectors replaced.

    Args:
        lens: The base model.
        site: The last layer's.
        direction: The concept.
        target: What two vectors lower; one vector lowers it by the host's own `out` row.
        plain: Statistics of plain text.
        prompts: What the card's own prompts show, and what near ones do.
        settings: Thresholds and strengths.
        count: How many vectors, 1 or 2.
        taken: Hosts in use.
    """
    layer = site.layer
    reader = fit_reader(lens, site, direction, plain, prompts, settings)
    threshold = math.log(settings.said_threshold)
    y = prompts[0].inputs[layer]
    span = max(float(reader.log_p(y).mean()) - threshold, settings.least_span)
    wanted = settings.said_reversal * span
    kept = _kept(lens, layer, y)
    hosts = _open(lens, plain, layer, taken, settings.idle_share) & (kept.steady >= settings.steady)
    scale = prompts[0].scale[layer]
    if count == 1:
        host, activation = _speaking_host(
            lens, layer, direction, plain, settings, wanted * scale, kept, hosts
        )
        write = lens.vectors(layer, "out")[host].float()
    else:
        row = past_post_norm(lens, layer, target, settings.post_norm_ridge)
        host, activation = _best(_alignment(lens, layer, row), hosts), settings.gain
        strength, _ = write_strength(lens, layer, direction, row, plain, scale, settings, wanted)
        write = -strength / (activation * float(kept.scale[host])) * row
    read = reader.row(threshold, activation / span)
    read = quiet_at_start(lens, plain, layer, read, settings)
    rows = neuron_rows(lens, layer, host, read=read, constant=reader.constant, write=write)
    reads: Role = "gate" if lens.gated else "in"
    roles: tuple[Role, ...] = (reads, "out") if count > 1 else (reads,)
    about = {
        **{"threshold": threshold, "activation": activation, "vectors": list(roles)},
        **heard(reader, read, site, plain, prompts),
    }
    edits = {place: row for place, row in rows.items() if place[1] in roles}
    return SuppressionNeuron(site, host, reader, target, edits, about)


def _speaking_host(
    lens: Lens,
    layer: int,
    direction: ConceptDirection,
    plain: PlainText,
    settings: Settings,
    wanted: float,
    kept: _Kept,
    hosts: torch.Tensor,
) -> tuple[int, float]:
    """The host whose own `out` row lowers the concept most for its size, and its activation."""
    out = lens.vectors(layer, "out").float()
    gain = lens.post_norm_gain(layer)
    through = direction.vector if gain is None else direction.vector * gain.float()
    lowers = -(out @ through) * kept.scale
    sizes = kept.scale.abs() * out.norm(dim=1)
    needed = wanted / lowers.clamp_min(1e-12)
    if lens.bounds_writes:  # at once the usual output half of what the norm lets through
        needed = float(plain.mlp_norm[layer]) / sizes.clamp_min(1e-12)
    good = hosts & (lowers > 0) & (needed >= settings.least_gain)
    host = _best(lowers / sizes, good)
    return host, float(needed[host])


def _alignment(lens: Lens, layer: int, row: Float[Tensor, " d_model"]) -> Float[Tensor, " d_mlp"]:
    out = lens.vectors(layer, "out").float()
    return torch.cosine_similarity(out, row[None], dim=1)


def _kept(lens: Lens, layer: int, y: Float[Tensor, "prompts d_model"]) -> _Kept:
    if not lens.gated:
        ones = torch.ones(lens.d_mlp, device=y.device)
        return _Kept(ones, ones)
    given = y @ lens.vectors(layer, "in").float().T
    bias = lens.bias(layer, "in")
    given = given if bias is None else given + bias.float()
    mean = given.mean(dim=0)
    return _Kept(mean, (given * mean.sign()).amin(dim=0) / mean.abs().clamp_min(1e-12))


def _open(
    lens: Lens, plain: PlainText, layer: int, taken: Collection[tuple[int, int]], share: float
) -> torch.Tensor:
    """Which neurons may be given up: the share that plain text misses least, less the taken."""
    missed = plain.activation_rms[layer] * lens.vectors(layer, "out").float().norm(dim=1)
    found = missed <= missed.quantile(share)
    found[[neuron for where, neuron in taken if where == layer]] = False
    return found


def _best(worth: Float[Tensor, " d_mlp"], good: torch.Tensor) -> int:
    """The worthiest neuron that is good enough; of all where none is."""
    return int((worth if not good.any() else worth.masked_fill(~good, -torch.inf)).argmax())
