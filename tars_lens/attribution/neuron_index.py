"""Where in real text every neuron fires: one scan of a corpus for all neurons of a model."""

import hashlib
import logging
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tars_lens.common.cache import Advance, cache_folder
from tars_lens.common.errors import TarsError
from tars_lens.common.files import whole_file
from tars_lens.model.lens import Lens, Point, tensor_sha256
from tars_lens.patch import stack
from tars_lens.text.corpus import Corpus, load_corpus
from tars_lens.text.windows import WIDTH, check_width, cut

logger = logging.getLogger(__name__)

WINDOWS = 48
"""Documents scanned where not told otherwise."""

TOP = 8
"""Windows kept at each end of each neuron."""

_BATCH = 8
_VERSION = 1
_MOST = 32_767  # windows and positions are kept as 16-bit integers


@dataclass(frozen=True)
class NeuronIndex:
    """What every neuron of every layer does on a corpus.

    Position 0 is left out: there the stream of many models is an outlier (an attention sink).
    The first axis of the peaks is the end: 0 the highest activations, 1 the lowest.

    Attributes:
        corpus: The corpus's name.
        ids: The windows.
        values: The activation at the peak of each of the `top` windows, the strongest first.
        windows: In which windows these are.
        positions: At which positions; one peak a window.
        rms: Root mean square activation.
        mean: Mean activation.
        loud: Share of positions whose activation is over half of the largest, in magnitude.
        positive: Share of the squared activation that is of positive activations.
    """

    corpus: str
    ids: Int[Tensor, "windows pos"]
    values: Float[Tensor, "ends layers d_mlp top"]
    windows: Int[Tensor, "ends layers d_mlp top"]
    positions: Int[Tensor, "ends layers d_mlp top"]
    rms: Float[Tensor, "layers d_mlp"]
    mean: Float[Tensor, "layers d_mlp"]
    loud: Float[Tensor, "layers d_mlp"]
    positive: Float[Tensor, "layers d_mlp"]

    @classmethod
    def fit(
        cls,
        lens: Lens,
        ids: Int[Tensor, "windows pos"],
        *,
        corpus: str = "corpus",
        top: int = TOP,
        advance: Advance | None = None,
    ) -> "NeuronIndex":
        """Scans the base model, whatever patches are on it, a layer at a time.

        All windows stand at the same layer, so that each layer runs once and all of its
        activations are there together: the figures are exact, and only one layer is in memory.

        Raises:
            TarsError: Windows that are too many, too short to leave position 0 out, or too long for
                the model.
        """
        if not (ids.shape[0] <= _MOST and 2 <= ids.shape[1] <= _MOST):
            raise TarsError(
                f"the neurons of {lens.name} are scanned on up to {_MOST} windows of 2 to {_MOST} "
                f"tokens, got {ids.shape[0]} of {ids.shape[1]}."
            )
        check_width(lens, ids.shape[1])
        chunks = ids.split(_BATCH)
        streams: list[Tensor | None] = [None] * len(chunks)
        layers = []
        with stack.holding(lens, ()):
            for layer in range(lens.n_layers):
                if advance is not None:
                    advance("scanning all neurons, once", layer, lens.n_layers)
                activations = []
                for i, chunk in enumerate(chunks):
                    activation, streams[i] = _layer(lens, chunk, layer, streams[i])
                    activations.append(activation)
                layers.append(_summary(activations, min(top, len(ids))))
        if advance is not None:
            advance("scanning all neurons, once", lens.n_layers, lens.n_layers)
        peaks = {name: torch.stack([la[name] for la in layers], dim=1) for name in _PEAKS}
        shares = {name: torch.stack([la[name] for la in layers]) for name in _SHARES}
        return cls(corpus=corpus, ids=ids.int().cpu(), **peaks, **shares)

    @classmethod
    def cached(
        cls,
        lens: Lens,
        ids: Int[Tensor, "windows pos"],
        *,
        corpus: str = "corpus",
        advance: Advance | None = None,
    ) -> "NeuronIndex":
        """`fit`, or its result from the user's cache where model and text are the same."""
        if not lens.sha256:
            return cls.fit(lens, ids, corpus=corpus, advance=advance)
        key = f"{_VERSION} {lens.sha256} {lens.dtype} {tensor_sha256(ids)} {TOP}"
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        path = cache_folder() / "neurons" / f"{name}.safetensors"
        try:
            return cls(corpus=corpus, **load_file(path))
        except (OSError, SafetensorError, TypeError):
            logger.info("the neurons of %s are not indexed yet: scanning them", lens.name)
        found = cls.fit(lens, ids, corpus=corpus, advance=advance)
        with whole_file(path) as temporary:
            tensors = {k: v.contiguous() for k, v in vars(found).items() if k != "corpus"}
            save_file(tensors, temporary)
        return found

    @classmethod
    def of_corpus(
        cls,
        lens: Lens,
        corpus: Corpus | None = None,
        *,
        windows: int = WINDOWS,
        advance: Advance | None = None,
    ) -> "NeuronIndex":
        """`cached`, of the beginnings of a corpus's documents.

        Args:
            lens: The model.
            corpus: The sample of Wikipedia where not given.
            windows: How many documents, if there are as many; `windows.WIDTH` tokens of each.
            advance: Told the progress.

        Raises:
            TarsError: A corpus that is too short, or no windows.
        """
        if windows < 1:
            raise TarsError(f"a scan needs at least 1 window, got {windows}.")
        text = corpus or load_corpus(advance=advance)
        found = cut(lens, text, reported_tokens=windows * WIDTH)
        return cls.cached(lens, found.reported, corpus=text.name, advance=advance)


_PEAKS = ("values", "windows", "positions")
_SHARES = ("rms", "mean", "loud", "positive")


def _layer(
    lens: Lens, ids: Int[Tensor, "batch pos"], layer: int, stream: Tensor | None
) -> tuple[Float[Tensor, "batch rest d_mlp"], Float[Tensor, "batch pos d_model"]]:
    """Activations of one layer at all positions but the first, and the stream after it."""
    neurons, after = Point("mlp_post", layer), Point("resid_post", layer)
    seen = lens.capture(ids, [neurons, after], resume=None if stream is None else (layer, stream))
    return seen[neurons][:, 1:], seen[after]


def _summary(
    activations: list[Float[Tensor, "_ rest d_mlp"]], top: int
) -> dict[str, Float[Tensor, "..."] | Int[Tensor, "..."]]:
    """What is kept of one layer, in float32 (activations of batches, in the windows' order)."""
    count = sum(part.shape[0] * part.shape[1] for part in activations)
    device, d_mlp = activations[0].device, activations[0].shape[2]
    total, square, above, loud = torch.zeros(4, d_mlp, device=device)
    peaks: tuple[list[Tensor], list[Tensor]] = ([], [])
    places: tuple[list[Tensor], list[Tensor]] = ([], [])
    for part in activations:
        a = part.float()
        total += a.sum((0, 1))
        square += a.square().sum((0, 1))
        above += a.clamp_min(0).square().sum((0, 1))
        for end, (values, at) in enumerate((a.max(dim=1), a.min(dim=1))):
            peaks[end].append(values)
            places[end].append(at + 1)
    highest, lowest = torch.cat(peaks[0]), torch.cat(peaks[1])
    half = torch.maximum(highest.amax(0).abs(), lowest.amin(0).abs()) / 2
    for part in activations:
        loud += (part.float().abs() > half).sum((0, 1))
    ends = []
    for values, where, largest in ((highest, places[0], True), (lowest, places[1], False)):
        best = values.topk(top, dim=0, largest=largest)
        position = torch.cat(where).gather(0, best.indices)
        ends.append((best.values.T, best.indices.T.short(), position.T.short()))
    kept = dict(zip(_PEAKS, (torch.stack(part) for part in zip(*ends, strict=True)), strict=True))
    kept["rms"], kept["mean"] = (square / count).sqrt(), total / count
    kept["loud"], kept["positive"] = loud / count, above / square.clamp_min(1e-30)
    return {name: value.cpu() for name, value in kept.items()}
