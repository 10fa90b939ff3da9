"""What the base model does on plain text: the background against which a concept stands out."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tars_lens.common.cache import cache_folder
from tars_lens.common.errors import TarsError
from tars_lens.common.files import whole_file
from tars_lens.model.lens import Lens, Point, tensor_sha256

logger = logging.getLogger(__name__)

_VERSION = 2
WINDOWS_AT_ONCE = 2
LAYERS_AT_ONCE = 8
STRIDE = 4
"""Every fourth position is kept: some 3,700 of 58 windows, each with other words than the next."""

_ROWS = 256

ByLayer = dict[int, Tensor]


@dataclass(frozen=True)
class Places:
    """Which layers' statistics a method needs.

    Attributes:
        inputs: Layers whose MLP inputs are kept, position by position.
        streams: Layers after which the stream and its log-partition are kept.
        moments: Layers whose MLP inputs are kept as mean and covariance alone.
    """

    inputs: tuple[int, ...]
    streams: tuple[int, ...]
    moments: tuple[int, ...]


@dataclass(frozen=True)
class PlainText:
    """Statistics of plain text; position 0 of a window, an outlier in many models, is left out.

    Attributes:
        inputs: By layer, the MLP's input after norm and gain at the kept positions,
            `[positions d_model]` in float32.
        streams: By layer, the residual stream after it at the same positions, in the model's dtype.
        log_partitions: By layer, `log sum_j exp(logit_j)` of the logit lens there, in nats.
        means: By layer, the mean of the MLP's input over all positions.
        covariances: By layer, its covariance.
        activation_rms: Root mean square activation of every neuron, `[layers d_mlp]`.
        residual_norm: Median norm of the residual stream after each layer, `[layers]`.
        mlp_norm: Median norm of each MLP's output before any post-norm, `[layers]`.
    """

    inputs: ByLayer
    streams: ByLayer
    log_partitions: ByLayer
    means: ByLayer
    covariances: ByLayer
    activation_rms: Float[Tensor, "layers d_mlp"]
    residual_norm: Float[Tensor, " layers"]
    mlp_norm: Float[Tensor, " layers"]

    def constant(self, layer: int, ridge: float) -> Float[Tensor, " d_model"]:
        """A direction whose product with the MLP's input is about 1 on all text.

        It stands in for the bias that the neurons of most models don't have.
        """
        mean, covariance = self.means[layer], self.covariances[layer]
        size = ridge * covariance.diagonal().mean()
        eye = torch.eye(len(mean), device=mean.device)
        direction = torch.linalg.solve(covariance + size * eye, mean)
        return direction / (direction @ mean)

    @classmethod
    def fit(cls, lens: Lens, ids: Int[Tensor, "windows pos"], places: Places) -> "PlainText":
        """Gathers the statistics of the base model in one pass over the windows."""
        sums = _Sums(lens, places)
        for few in ids.split(WINDOWS_AT_ONCE):
            sums.add(lens, few)
        return sums.result(lens)

    @classmethod
    def cached(cls, lens: Lens, ids: Int[Tensor, "windows pos"], places: Places) -> "PlainText":
        """`fit`, or its result from the user's cache where model, text and layers are the same."""
        if not lens.sha256:
            return cls.fit(lens, ids, places)
        key = f"{_VERSION} {lens.sha256} {lens.dtype} {tensor_sha256(ids)} {places}"
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        path = cache_folder() / "plain_text" / f"{name}.safetensors"
        try:
            return cls._from_tensors(load_file(path, device=str(lens.device)))
        except (OSError, SafetensorError, KeyError, TypeError):
            logger.info("statistics of plain text are not cached: gathering them")
        found = cls.fit(lens, ids, places)
        try:
            with whole_file(path) as temporary:
                save_file(dict(found._tensors()), temporary)
        except TarsError as error:  # a full disk: the next run gathers them again
            logger.info("statistics of plain text are not kept: %s", error)
        return found

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for field in fields(self):
            value = getattr(self, field.name)
            by_layer = value.items() if isinstance(value, dict) else [("", value)]
            for layer, tensor in by_layer:
                yield f"{field.name}.{layer}", tensor.cpu().contiguous()

    @classmethod
    def _from_tensors(cls, kept: dict[str, Tensor]) -> "PlainText":
        values: dict[str, Any] = {field.name: {} for field in fields(cls) if field.type is ByLayer}
        for key, tensor in kept.items():
            name, _, layer = key.partition(".")
            # a copy, which begins where torch begins a tensor: read in place from a file, the same
            # values go through other kernels, and a second run would differ in the last bits
            if layer:
                values[name][int(layer)] = tensor.clone()
            else:
                values[name] = tensor.clone()
        return cls(**values)


class _Sums:
    """Running sums over batches of windows."""

    def __init__(self, lens: Lens, places: Places) -> None:
        width, device = lens.d_model, lens.device
        self.places = places
        self.count = 0
        moments = {*places.inputs, *places.moments}
        self.total = {la: torch.zeros(width, device=device, dtype=torch.float64) for la in moments}
        self.product = {la: torch.zeros(width, width, device=device) for la in moments}
        self.square = torch.zeros(lens.n_layers, lens.d_mlp, device=device)
        self.inputs: dict[int, list[Tensor]] = {layer: [] for layer in places.inputs}
        self.streams: dict[int, list[Tensor]] = {layer: [] for layer in places.streams}
        self.residual_norms: list[list[Tensor]] = [[] for _ in range(lens.n_layers)]
        self.mlp_norms: list[list[Tensor]] = [[] for _ in range(lens.n_layers)]

    def add(self, lens: Lens, ids: Int[Tensor, "batch pos"]) -> None:
        """Reads a batch, a few layers at a time: all activations of 70B would be 3 GB at once."""
        self.count += ids.shape[0] * (ids.shape[1] - 1)
        resume = None
        for first in range(0, lens.n_layers, LAYERS_AT_ONCE):
            group = range(first, min(first + LAYERS_AT_ONCE, lens.n_layers))
            points = [Point("mlp_in", layer) for layer in self.total if layer in group]
            points += [Point(site, layer) for site in ("mlp_post", "resid_post") for layer in group]
            seen = lens.capture(ids, points, resume=resume)
            for layer in group:
                self._add_layer(lens, layer, seen)
            resume = (group.stop, seen[Point("resid_post", group[-1])])

    def _add_layer(self, lens: Lens, layer: int, seen: dict[Point, Tensor]) -> None:
        if layer in self.total:
            y = seen[Point("mlp_in", layer)][:, 1:].flatten(0, 1).float()
            self.total[layer] += y.sum(0).double()
            self.product[layer] += y.T @ y
            if layer in self.inputs:
                self.inputs[layer].append(y[::STRIDE])
        activation = seen[Point("mlp_post", layer)][:, 1:].flatten(0, 1)
        self.square[layer] += activation.float().square().sum(0)
        output = activation[::STRIDE] @ lens.vectors(layer, "out")
        self.mlp_norms[layer].append(output.float().norm(dim=-1))
        stream = seen[Point("resid_post", layer)][:, 1:].flatten(0, 1)[::STRIDE]
        self.residual_norms[layer].append(stream.float().norm(dim=-1))
        if layer in self.streams:
            self.streams[layer].append(stream)

    def result(self, lens: Lens) -> PlainText:
        """The statistics, with the log-partitions of the kept streams."""
        means = {layer: (total / self.count).float() for layer, total in self.total.items()}
        streams = {layer: torch.cat(parts) for layer, parts in self.streams.items()}
        return PlainText(
            inputs={layer: torch.cat(parts) for layer, parts in self.inputs.items()},
            streams=streams,
            log_partitions={
                layer: torch.cat(
                    [lens.read_out(few).logsumexp(dim=-1) for few in stream.split(_ROWS)]
                )
                for layer, stream in streams.items()
            },
            means=means,
            covariances={
                layer: product / self.count - torch.outer(means[layer], means[layer])
                for layer, product in self.product.items()
            },
            activation_rms=(self.square / self.count).sqrt(),
            residual_norm=torch.stack([torch.cat(p).median() for p in self.residual_norms]),
            mlp_norm=torch.stack([torch.cat(p).median() for p in self.mlp_norms]),
        )
