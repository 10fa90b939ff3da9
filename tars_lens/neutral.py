"""What the model does on plain text: the statistics against which a concept stands out."""

import hashlib
import logging
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tars_lens.cache import cache_folder
from tars_lens.errors import TarsError
from tars_lens.files import whole_file
from tars_lens.lens import Lens, Point, tensor_sha256

logger = logging.getLogger(__name__)

_BATCH = 2
_GROUP = 8


@dataclass(frozen=True)
class Neutral:
    """Statistics of plain text, a row for each layer of the model.

    Attributes:
        layers: The layers whose `mean` and `covariance` were kept, in order.
        mean: Of the MLP's input *y*, in float32.
        covariance: Of *y*, about its mean.
        activation_rms: Root mean square activation of every neuron of every layer.
        residual_norm: Median norm of the residual stream after each layer.
        mlp_norm: Median norm of the MLP's output before any post-norm, per layer.
    """

    layers: tuple[int, ...]
    mean: Float[Tensor, "kept d_model"]
    covariance: Float[Tensor, "kept d_model d_model"]
    activation_rms: Float[Tensor, "layers d_mlp"]
    residual_norm: Float[Tensor, " layers"]
    mlp_norm: Float[Tensor, " layers"]

    def of(self, layer: int) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "d_model d_model"]]:
        """Mean and covariance of *y* at a layer."""
        index = self.layers.index(layer)
        return self.mean[index], self.covariance[index]

    @classmethod
    def fit(cls, lens: Lens, ids: Int[Tensor, "windows pos"], layers: tuple[int, ...]) -> "Neutral":
        """Gathers the statistics of the base model in one pass over the windows.

        Position 0 is left out: there the stream of many models is an outlier (an attention sink).
        """
        sums = _Sums(lens, layers)
        for chunk in ids.split(_BATCH):
            sums.add(lens, chunk)
        return sums.result()

    @classmethod
    def cached(
        cls, lens: Lens, ids: Int[Tensor, "windows pos"], layers: tuple[int, ...]
    ) -> "Neutral":
        """`fit`, or its result from the user's cache where model, text and layers are the same."""
        if not lens.sha256:
            return cls.fit(lens, ids, layers)
        key = f"1 {lens.sha256} {lens.dtype} {tensor_sha256(ids)} {layers}"
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        path = cache_folder() / "neutral" / f"{name}.safetensors"
        try:
            kept = load_file(path, device=str(lens.device))
            # copies, which begin where torch begins a tensor: read in place from a file, the same
            # values go through other kernels, and a second run would differ in the last bits
            return cls(layers=layers, **{key: value.clone() for key, value in kept.items()})
        except (OSError, SafetensorError, TypeError):
            logger.info("statistics of plain text are not cached: gathering them")
        found = cls.fit(lens, ids, layers)
        values = {k: v for k, v in vars(found).items() if isinstance(v, Tensor)}
        try:
            with whole_file(path) as temporary:
                save_file({k: v.cpu().contiguous() for k, v in values.items()}, temporary)
        except TarsError as error:  # a full disk: the next run gathers them again
            logger.info("statistics of plain text are not kept: %s", error)
        return found


class _Sums:
    """Running sums over batches of windows."""

    def __init__(self, lens: Lens, layers: tuple[int, ...]) -> None:
        width, device = lens.d_model, lens.device
        self.layers = layers
        self.count = 0
        self.total = torch.zeros(len(layers), width, device=device, dtype=torch.float64)
        self.product = torch.zeros(len(layers), width, width, device=device)
        self.square = torch.zeros(lens.n_layers, lens.d_mlp, device=device)
        self.residual_norms: list[Tensor] = []
        self.mlp_norms: list[Tensor] = []

    def add(self, lens: Lens, ids: Int[Tensor, "batch pos"]) -> None:
        """Reads a batch, a few layers at a time: all activations of 70B would be 3 GB at once."""
        self.count += ids.shape[0] * (ids.shape[1] - 1)
        norms: list[tuple[Tensor, Tensor]] = []
        resume = None
        for first in range(0, lens.n_layers, _GROUP):
            group = range(first, min(first + _GROUP, lens.n_layers))
            points = [Point("mlp_in", layer) for layer in self.layers if layer in group]
            points += [Point(site, layer) for site in ("mlp_post", "resid_post") for layer in group]
            seen = lens.capture(ids, points, resume=resume)
            norms += [self._add_layer(lens, layer, seen) for layer in group]
            resume = (group.stop, seen[Point("resid_post", group[-1])])
        residual_norms, mlp_norms = zip(*norms, strict=True)
        self.residual_norms.append(torch.stack(residual_norms))
        self.mlp_norms.append(torch.stack(mlp_norms))

    def _add_layer(
        self, lens: Lens, layer: int, seen: dict[Point, Tensor]
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Adds what one layer shows; returns the norms of the stream and of the MLP's output."""
        if layer in self.layers:
            index = self.layers.index(layer)
            y = seen[Point("mlp_in", layer)][:, 1:].flatten(0, 1).float()
            self.total[index] += y.sum(0).double()
            self.product[index] += y.T @ y
        activation = seen[Point("mlp_post", layer)][:, 1:].flatten(0, 1)
        self.square[layer] += activation.float().square().sum(0)
        output = activation @ lens.vectors(layer, "out")
        stream = seen[Point("resid_post", layer)][:, 1:].flatten(0, 1)
        return stream.float().norm(dim=-1), output.float().norm(dim=-1)

    def result(self) -> Neutral:
        """The statistics; the sums become them where they lie, so that they aren't held twice."""
        mean = (self.total / self.count).float()
        covariance = self.product.div_(self.count)
        for about, own in zip(covariance, mean, strict=True):
            about -= own[:, None] * own[None, :]
        return Neutral(
            layers=self.layers,
            mean=mean,
            covariance=covariance,
            activation_rms=(self.square / self.count).sqrt(),
            residual_norm=torch.cat(self.residual_norms, dim=1).median(dim=1).values,
            mlp_norm=torch.cat(self.mlp_norms, dim=1).median(dim=1).values,
        )
