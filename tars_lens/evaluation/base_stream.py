"""The base model's final residual stream on plain text, kept from one measurement to the next.

The stream before the first edited layer is not kept beside it: it would double the file, and save
the layers before the first edit, 2 of 30 in the recipe on SmolLM2-135M.
"""

import hashlib
import logging
import time
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tars_lens.common.cache import cache_folder
from tars_lens.common.errors import TarsError
from tars_lens.common.files import whole_file
from tars_lens.model.lens import Lens, tensor_sha256
from tars_lens.patch.edit import package_versions

logger = logging.getLogger(__name__)

_FORMAT = 2

MOST_BYTES = 1 << 30
"""What all streams may take on disk: 18 of SmolLM2's on the reported text, 5 of Llama 3.1 8B's."""

_ABANDONED = 3600  # seconds after which an unfinished file is a killed process's


def worth_keeping(lens: Lens) -> bool:
    """Whether a base's stream is found again sooner than it is made again.

    Knowing the base costs a hash of all its weights, which on a GPU takes longer than the passes
    that it spares (`docs/scale.md`); a model that came from no checkpoint isn't met again.
    """
    return bool(lens.sha256) and lens.device.type == "cpu"


def stream_path(lens: Lens, ids: Int[Tensor, "windows pos"], batch: int) -> Path:
    """Where the stream of these windows is kept, by all that its bits depend on.

    The weights count as they stand, not as their checkpoint had them: a model that was edited by
    hand, or that has patches on it, is another base.

    Args:
        lens: The base model.
        ids: The windows.
        batch: How many of them run at once.
    """
    weights = sorted(f"{name} {digest}" for name, digest in lens.hashes().items())
    setting = (
        lens.sha256,
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
    """The stream after the last layer, or `None` where it isn't kept whole, bit by bit."""
    try:
        with safe_open(path, framework="pt") as file:
            stream, digest = file.get_tensor("stream"), (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    if stream.shape != (*ids.shape, lens.d_model) or tensor_sha256(stream) != digest:
        logger.info("%s is damaged: the base is run again", path)
        return None
    with suppress(OSError):  # a cache that is only read is as good
        path.touch()  # the one used last is dropped last
    return stream.to(lens.device)


def keep_stream(path: Path, stream: Float[Tensor, "windows pos d_model"]) -> None:
    """Writes the stream with its hash, and drops those that weren't used for longest.

    One that is larger than all may be together isn't kept. A disk that is full costs the time of
    another run, not the measurement.
    """
    if stream.nbytes > MOST_BYTES:
        return
    plain = stream.cpu().contiguous()
    try:
        with whole_file(path) as temporary:
            save_file({"stream": plain}, temporary, metadata={"sha256": tensor_sha256(plain)})
        _make_room(path.parent)
    except (OSError, TarsError) as error:
        logger.info("the base's residual stream is not kept: %s", error)


def _make_room(folder: Path) -> None:
    """Drops the files used longest ago until the rest fits, and what killed processes left."""
    now, total = time.time(), 0
    files = [(file, file.stat()) for file in folder.iterdir()]
    for file, status in sorted(files, key=lambda found: -found[1].st_mtime):
        total += status.st_size
        unfinished = file.suffix != ".safetensors"
        if total > MOST_BYTES or (unfinished and now - status.st_mtime > _ABANDONED):
            file.unlink(missing_ok=True)
