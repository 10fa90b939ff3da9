"""The norms of a checkpoint's weight vectors, kept in the user's cache between rankings."""

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tars_lens.common.cache import cache_folder
from tars_lens.common.errors import TarsError
from tars_lens.common.files import whole_file
from tars_lens.model.layout import weight_files
from tars_lens.model.weights import Place

logger = logging.getLogger(__name__)

_KEY = "tars_lens.norms"
_PLACE = re.compile(r"L(\d+)\.(gate|in|out)")


@dataclass(frozen=True, eq=False)
class NormIndex:
    """What is known of a checkpoint's norms.

    Attributes:
        path: Where they are kept.
        state: What they hold for: each weight file with its size and time of change.
        norms: In float32, by matrix.
    """

    path: Path
    state: list[list[Any]]
    norms: dict[Place, Float[Tensor, " d_mlp"]]

    @classmethod
    def read(cls, folder: Path | str) -> "NormIndex":
        """The index of a checkpoint; empty where there is none or a file has changed since."""
        key = hashlib.sha256(os.fsencode(Path(folder).resolve())).hexdigest()
        path, state = cache_folder() / "norms" / f"{key}.safetensors", _state(folder)
        norms: dict[Place, Tensor] = {}
        try:
            with safe_open(path, "pt") as file:
                if json.loads((file.metadata() or {})[_KEY]) == state:
                    norms = {_place(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            logger.debug("no norms are known of %s: %s", folder, error)
        return cls(path, state, norms)

    def keep(self, more: dict[Place, Float[Tensor, " d_mlp"]]) -> None:
        """Writes these norms beside those known, for the files as they were when it was read."""
        norms = self.norms | more
        tensors = {f"L{layer}.{role}": norms[layer, role].contiguous() for layer, role in norms}
        try:
            with whole_file(self.path) as temporary:
                save_file(tensors, temporary, metadata={_KEY: json.dumps(self.state)})
        except TarsError as error:
            logger.debug("the norms are not kept: %s", error)


def _place(key: str) -> Place:
    found = _PLACE.fullmatch(key)
    if found is None:
        raise ValueError(f"unknown key {key!r}")
    role: Any = found[2]  # one of the roles: the pattern allows nothing else
    return int(found[1]), role


def _state(folder: Path | str) -> list[list[Any]]:
    states = ((file.name, file.stat()) for file in weight_files(folder))
    return [[name, status.st_size, status.st_mtime_ns] for name, status in states]
