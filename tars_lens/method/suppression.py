"""Suppression neurons: each reads how likely the concept is to be said, and writes its reversal.

The logit lens says the concept with `log p = logit - log sum_j exp(logit_j)`. The first term is
linear in the stream and known: it is the targeting vector that the unembedding reads. The second,
the log-partition, is learned: a ridge regression on plain text. Their sum is what the neuron
reads. It is silent where the concept is unlikely, and where it is likely the neuron lowers its
logit by more than what it exceeds the threshold by, so that no strength has to be searched.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.method.direction import ConceptDirection
from tars_lens.method.neuron import (
    divided_by_gain,
    host_neuron,
    neuron_rows,
    past_post_norm,
    quiet_at_start,
)
from tars_lens.method.settings import Settings
from tars_lens.model.lens import Lens, Point
from tars_lens.model.weights import Edits, written
from tars_lens.text.plain_text import PlainText


@dataclass(frozen=True)
class Site:
    """Where a suppression neuron sits, and which readings of the lens it is there to stop.

    Attributes:
        layer: Of the neuron.
        readings: Layers after which the logit lens is not to read the concept; the neuron's own
            is the first. The last layer's reading is what the model says.
    """

    layer: int
    readings: tuple[int, ...]


@dataclass(frozen=True)
class Shown:
    """What texts show at their last tokens.

    Attributes:
        inputs: By layer, the MLP's input *y*, `[texts d_model]` in float32.
        log_p: By layer, the concept's log-probability by the logit lens, `[texts]` in nats.
        scale: By layer, the mean over texts of what the final norm would divide the stream by.
    """

    inputs: dict[int, Tensor]
    log_p: dict[int, Tensor]
    scale: dict[int, float]

    def target(self, site: Site) -> Float[Tensor, " texts"]:
        """The largest log-probability that a site is there to stop."""
        return torch.stack([self.log_p[layer] for layer in site.readings]).amax(dim=0)


@dataclass(frozen=True)
class Reader:
    """The concept's log-probability, as a layer's MLP input tells it.

    Attributes:
        weight: *w*.
        offset: *b*, with `log p` about `w . y + b`, in nats.
        constant: A direction with `constant . y` about 1 on all text, which carries *b*.
    """

    weight: Float[Tensor, " d_model"]
    offset: float
    constant: Float[Tensor, " d_model"]

    def log_p(self, y: Float[Tensor, "... d_model"]) -> Float[Tensor, "..."]:
        """The predicted log-probability, in nats."""
        return y.float() @ self.weight + self.offset

    def row(self, threshold: float, slope: float) -> Float[Tensor, " d_model"]:
        """The read vector whose product with *y* is `slope * (log p - threshold)`."""
        return slope * (self.weight + (self.offset - threshold) * self.constant)


@dataclass(frozen=True)
class SuppressionNeuron:
    """A neuron that takes the concept's token away wherever it is about to be said.

    Attributes:
        site: Where it sits, and what it stops.
        neuron: The host that it replaces.
        reader: What it reads.
        target: What it writes the reversal of, unit norm, as a direction of the stream.
        edits: Its rows.
        about: What reports say of it: `heard`, threshold (nats), strength (norm of the write at
            own prompts, in the stream's units) and, where no norm bounds the write, reversal: by
            how many times what the log-probability exceeds the threshold by the logit is lowered.
    """

    site: Site
    neuron: int
    reader: Reader
    target: Float[Tensor, " d_model"]
    edits: Edits
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def layer(self) -> int:
        """Where it sits."""
        return self.site.layer


class Prompts:
    """Groups of texts whose ends show the concept, or things near it; run once up to the sites.

    Args:
        lens: The base model.
        groups: Texts: the card's own prompts, its near ones (there may be none), and others.
        direction: The concept.
        sites: Where neurons will sit, earliest first.
    """

    def __init__(
        self,
        lens: Lens,
        groups: Sequence[Sequence[str]],
        direction: ConceptDirection,
        sites: Sequence[Site],
    ) -> None:
        self._lens, self._direction, self._sites = lens, direction, sites
        self._sizes = [len(group) for group in groups]
        self._batch = lens.prompts([text for group in groups for text in group])
        entry = Point("resid_pre", sites[0].layer)
        ids, last = self._batch
        self._resume = (entry.layer, lens.capture(ids, [entry], last=last)[entry])

    def shown(self, edits: Edits | None = None) -> list[Shown]:
        """What each group shows at the sites' layers, with rows held in the model meanwhile."""
        lens, (ids, last) = self._lens, self._batch
        inputs = {site.layer: Point("mlp_in", site.layer) for site in self._sites}
        layers = {layer for site in self._sites for layer in (site.layer, *site.readings)}
        streams = {layer: Point("resid_post", layer) for layer in sorted(layers)}
        points = [*inputs.values(), *streams.values()]
        with written(lens, edits or {}):
            seen = lens.capture(ids, points, positions=last, resume=self._resume)
        tokens = self._direction.tokens
        return [
            Shown(
                inputs={la: seen[point][rows].float() for la, point in inputs.items()},
                log_p={
                    la: _log_p(lens, seen[point][rows], tokens) for la, point in streams.items()
                },
                scale={la: _scale(lens, seen[streams[la]][rows]) for la in inputs},
            )
            for rows in torch.arange(len(ids), device=ids.device).split(self._sizes)
        ]


def fit_reader(
    lens: Lens,
    site: Site,
    direction: ConceptDirection,
    plain: PlainText,
    prompts: Sequence[Shown],
    settings: Settings,
) -> Reader:
    """The reader of a site: the lens's weight, and a ridge regression of the log-partition.

    Plain text where the concept has `log p > -9` counts five times, and each group of prompts as
    much as a share of plain text (`likely_weight`, `prompt_weight`).

    Args:
        lens: The base model.
        site: Where it reads, and what.
        direction: The concept.
        plain: Statistics of plain text, with the site's layers.
        prompts: Groups of prompts: the card's own, near ones.
        settings: Ridges and weights.
    """
    lens_weight = divided_by_gain(
        direction.vector, lens.mlp_norm_gain(site.layer).float(), settings.lens_ridge
    )
    floor = math.log(settings.least_p)
    said = torch.stack([_plain_log_p(lens, plain, layer, direction) for layer in site.readings])
    said = said.amax(dim=0)
    likely = said > math.log(settings.likely_p)
    weights = [1.0 + (settings.likely_weight - 1) * likely.float()]
    share = settings.prompt_weight * float(weights[0].sum())
    targets = [group.target(site) for group in prompts]
    weights += [torch.full_like(target, share / max(len(target), 1)) for target in targets]
    y = torch.cat([plain.inputs[site.layer], *(group.inputs[site.layer] for group in prompts)])
    log_p = torch.cat([said, *targets]).clamp_min(floor)
    weight, offset = _ridge(y, log_p - y @ lens_weight, torch.cat(weights), settings.reader_ridge)
    return Reader(lens_weight + weight, offset, plain.constant(site.layer, settings.constant_ridge))


def suppression_neuron(
    lens: Lens,
    site: Site,
    direction: ConceptDirection,
    target: Float[Tensor, " d_model"],
    plain: PlainText,
    prompts: Sequence[Shown],
    settings: Settings,
    taken: Collection[tuple[int, int]] = (),
) -> SuppressionNeuron:
    """The neuron of one site.

    Its strength is computed: at a predicted `log p` above the threshold it lowers the concept's
    logit by `reversal * (log p - threshold)`. With `reversal` above 1 it is a clamp: however
    likely a prompt makes the concept, it ends below the threshold.

    Args:
        lens: The base model.
        site: Where it sits.
        direction: The concept.
        target: What is lowered; see `Unembedding.write_target`.
        plain: Statistics of plain text.
        prompts: What the card's own prompts show, what its near ones do, and other groups.
        settings: Thresholds and strengths.
        taken: Hosts in use.
    """
    last = site.layer == lens.n_layers - 1
    reader = fit_reader(lens, site, direction, plain, prompts, settings)
    own = float(reader.log_p(prompts[0].inputs[site.layer]).mean())
    threshold = math.log(settings.said_threshold if last else settings.read_threshold)
    span = max(own - threshold, settings.least_span)
    row = past_post_norm(lens, site.layer, target, settings.post_norm_ridge)
    wanted = (settings.said_reversal if last else settings.read_reversal) * span
    strength, lowered = write_strength(
        lens, site.layer, direction, row, plain, prompts[0].scale[site.layer], settings, wanted
    )
    read = reader.row(threshold, settings.gain / span)
    read = quiet_at_start(lens, plain, site.layer, read, settings)
    host = host_neuron(lens, plain, site.layer, row, taken, settings.host_share)
    write = -strength / settings.gain * row
    return SuppressionNeuron(
        site=site,
        neuron=host,
        reader=reader,
        target=target,
        edits=neuron_rows(lens, site.layer, host, read=read, constant=reader.constant, write=write),
        about={
            "threshold": threshold,
            **heard(reader, read, site, plain, prompts),
            "strength": strength,
            "reversal": lowered / span,
        },
    )


def heard(
    reader: Reader,
    read: Float[Tensor, " d_model"],
    site: Site,
    plain: PlainText,
    prompts: Sequence[Shown],
) -> dict[str, float | None]:
    """What a neuron hears of the concept, for reports, in nats of the predicted log-probability.

    Returns:
        own_prompts (mean), own_least, near_most (`None` without near prompts), plain_p99, and
        speaks: the share of plain text on which the neuron is above its threshold.
    """
    own, *others = (reader.log_p(group.inputs[site.layer]) for group in prompts[:2])
    near = others[0] if others else own[:0]
    y = plain.inputs[site.layer]
    return {
        "own_prompts": float(own.mean()),
        "own_least": float(own.min()),
        "near_most": float(near.max()) if len(near) else None,
        "plain_p99": float(reader.log_p(y).quantile(0.99)),
        "speaks": float((y @ read > 0).float().mean()),
    }


def write_strength(
    lens: Lens,
    layer: int,
    direction: ConceptDirection,
    row: Float[Tensor, " d_model"],
    plain: PlainText,
    scale: float,
    settings: Settings,
    wanted: float,
) -> tuple[float, float]:
    """The norm of the write that lowers the concept's logit by so many nats, within bounds.

    A norm after the MLP (Gemma 2 and 3) bounds the write by itself: added to an output of norm
    *m*, a row of norm `x m` ends up as `x / sqrt(1 + x^2)` of the most that the norm lets through.
    There *x* is a setting: just what is needed was tried, and left more of the concept wherever
    the reader's prediction was too low.

    Args:
        lens: The model.
        layer: Where it is written.
        direction: The concept.
        row: What is written, unit norm, before any post-norm.
        plain: Statistics of plain text.
        scale: What the final norm divides the stream by at the concept's prompts.
        settings: The bounds.
        wanted: By how much, in nats.

    Returns:
        The norm, and by how many nats it lowers the logit.
    """
    gain = lens.post_norm_gain(layer)
    if gain is None:
        effect = float(direction.vector @ row) / scale
        largest = settings.largest_write * float(plain.residual_norm[layer])
        strength = min(wanted / effect, largest)
        return strength, strength * effect
    size = settings.bounded_strength
    most = float(direction.vector @ (gain.float() * row)) * len(row) ** 0.5 / scale
    return size * float(plain.mlp_norm[layer]), size / (1 + size**2) ** 0.5 * most


def _ridge(
    y: Float[Tensor, "examples d_model"],
    wanted: Float[Tensor, " examples"],
    weights: Float[Tensor, " examples"],
    ridge: float,
) -> tuple[Float[Tensor, " d_model"], float]:
    """`w` and `b` of a weighted ridge regression; `ridge` in units of the mean variance."""
    weights = (weights / weights.sum())[:, None]
    mean, wanted_mean = (weights * y).sum(dim=0), (weights[:, 0] * wanted).sum()
    away = y - mean
    covariance = (weights * away).T @ away
    penalty = ridge * covariance.diagonal().mean() * torch.eye(len(mean), device=y.device)
    product = (weights * away).T @ (wanted - wanted_mean)
    weight = torch.linalg.solve(covariance + penalty, product)
    return weight, float(wanted_mean - weight @ mean)


def _plain_log_p(
    lens: Lens, plain: PlainText, layer: int, direction: ConceptDirection
) -> Float[Tensor, " positions"]:
    """The concept's log-probability on plain text by the logit lens after a layer."""
    logits = lens.read_out(plain.streams[layer], tokens=direction.tokens)
    return logits.logsumexp(dim=-1) - plain.log_partitions[layer]


def _log_p(
    lens: Lens, stream: Float[Tensor, "rows d_model"], tokens: Sequence[int]
) -> Float[Tensor, " rows"]:
    logits = lens.read_out(stream)
    return logits[:, list(tokens)].logsumexp(dim=-1) - logits.logsumexp(dim=-1)


def _scale(lens: Lens, stream: Float[Tensor, "texts d_model"]) -> float:
    rows = stream.float()
    if lens.centres:
        rows = rows - rows.mean(dim=-1, keepdim=True)
    return float(rows.square().mean(dim=-1).sqrt().mean())
