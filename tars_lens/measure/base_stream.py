"""The base model's final residual stream on plain text, kept from one measurement to the next."""

import hashlib
import logging
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tars_lens.cache import cache_folder
from tars_lens.errors import TarsError
from tars_lens.files import whole_file
from tars_lens.lens import Lens, tensor_sha256
from tars_lens.model_state import model_state
from tars_lens.patch import package_versions

logger = logging.getLogger(__name__)

_FORMAT = 1
_KEPT = 4


def stream_path(lens: Lens, ids: Int[Tensor, "windows pos"], batch: int) -> Path:
    """Where the stream of these windows is kept, by all that its bits depend on.

    The weights count as they stand, not as their checkpoint had them: a model that was edited by
    hand, or that has patches on it, is another base.

    Args:
        lens: The base model.
        ids: The windows.
        batch: How many of them run at once.
    """
    weights = sorted(f"{name} {tensor_sha256(value)}" for name, value in model_state(lens.model))
    setting = (
        lens.dtype,
        lens.device,
        torch.get_num_threads(),
        torch.backends.cpu.get_cpu_capability(),
    )
    parts = [_FORMAT, tensor_sha256(ids), batch, *setting, package_versions(), *weights]
    name = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]
    return cache_folder() / "streams" / f"{name}.safetensors"


def read_stream(
    path: Path, lens: Lens, ids: Int[Tensor, "windows pos"]
) -> Float[Tensor, "windows pos d_model"] | None:
    """The stream after the last layer, or `None` where it isn't kept whole."""
    try:
        stream = load_file(path, device=str(lens.device))["stream"]
        path.touch()  # the one used last is dropped last
    except (OSError, SafetensorError, KeyError):
        return None
    return stream if stream.shape == (*ids.shape, lens.d_model) else None


def keep_stream(path: Path, stream: Float[Tensor, "windows pos d_model"]) -> None:
    """Writes the stream, and drops those that weren't used for longest: it is 60 MB for SmolLM2.

    A disk that is full costs the time of another run, not the measurement.
    """
    try:
        with whole_file(path) as temporary:
            save_file({"stream": stream.cpu().contiguous()}, temporary)
        kept = sorted(path.parent.glob("*.safetensors"), key=lambda file: -file.stat().st_mtime)
        for file in kept[_KEPT:]:
            file.unlink(missing_ok=True)
    except (OSError, TarsError) as error:
        logger.info("the base's residual stream is not kept: %s", error)
