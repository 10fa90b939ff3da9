"""Memory of an erasure, told before it is spent: from a model's config alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tars_lens.common.errors import TarsError
from tars_lens.method.settings import Settings
from tars_lens.model.placement import free_host_bytes
from tars_lens.model.shape import Shape, shape_of
from tars_lens.text.plain_text import LAYERS_AT_ONCE, STRIDE, WINDOWS_AT_ONCE
from tars_lens.text.windows import STATISTICS_WINDOWS, WIDTH

_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}

_BATCH = 4  # windows that run side by side in the KL and the statistics
_IMPORTS = 500_000_000
_SOLVES = 2  # float32 copies of a covariance while a linear system is solved
_LOGITS = 96_000_000  # three slices of the KL


@dataclass(frozen=True)
class Plan:
    """What an erasure will take.

    Attributes:
        model: What it was asked for as.
        shape: The model's.
        dtype: Of the weights.
        machine: Where it is to run, in words.
        usable_bytes: What there is.
        memory: One row a part: part, bytes.
    """

    model: str
    shape: Shape
    dtype: str
    machine: str
    usable_bytes: int
    memory: pd.DataFrame

    @property
    def needed_bytes(self) -> int:
        """All parts together."""
        return int(self.memory["bytes"].sum())

    def check(self) -> None:
        """Refuses what won't fit.

        Raises:
            TarsError: What is needed, what there is, and what would help.
        """
        if self.needed_bytes > self.usable_bytes:
            half = " Weights in bfloat16 (--dtype bfloat16) take half."
            raise TarsError(
                f"{self.model} in {self.dtype} needs {self.needed_bytes / 1e9:,.1f} GB, and "
                f"{self.machine} has {self.usable_bytes / 1e9:,.1f} GB free."
                f"{half if self.dtype == 'float32' else ''} More GPUs (--device-map auto) make "
                "room as well; layers can't be kept on the host, where no edit would stay in them."
            )

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "machine": self.machine,
            "parameters": self.shape.parameters,
            "needed_bytes": self.needed_bytes,
            "usable_bytes": self.usable_bytes,
            "fits": self.needed_bytes <= self.usable_bytes,
            "memory": self.memory.to_dict("records"),
        }


def plan(
    model: str | Path,
    *,
    dtype: str = "auto",
    gpus: int = 0,
    gpu_bytes: int = 80_000_000_000,
    host_bytes: int | None = None,
    kl_tokens: int = 25_600,
) -> Plan:
    """Reckons what memory removing concepts from a model will take.

    Args:
        model: A folder, `config.json`, hub id, built-in or known name.
        dtype: Of the weights; `auto` is the config's own.
        gpus: How many GPUs; with 0 it runs on the processor.
        gpu_bytes: Memory of each.
        host_bytes: Memory of the machine; what is free here where not given.
        kl_tokens: How much text the KL is measured on.

    Raises:
        TarsError: No such config, an unknown dtype, or fewer than 0 GPUs or tokens.
    """
    shape = shape_of(model)
    kind = (shape.dtype if dtype == "auto" else dtype).removeprefix("torch.")
    if kind not in _SIZES:
        raise TarsError(f"no dtype {kind!r}: choose one of auto, {', '.join(_SIZES)}.")
    if kl_tokens < 0 or gpus < 0:
        raise TarsError(f"a plan needs 0 or more, got {kl_tokens} tokens and {gpus} GPUs.")
    parts = _memory(shape, _SIZES[kind], kl_tokens)
    if gpus:
        machine = f"{gpus} GPU{'s' if gpus > 1 else ''} of {gpu_bytes / 1e9:g} GB"
        usable = gpus * gpu_bytes
    else:  # on GPUs the libraries lie in the host's memory
        machine = "this machine"
        usable = free_host_bytes() if host_bytes is None else host_bytes
        parts["libraries"] = _IMPORTS
    memory = pd.DataFrame({"part": list(parts), "bytes": list(parts.values())})
    return Plan(str(model), shape, kind, machine, usable, memory)


def _memory(shape: Shape, size: int, kl_tokens: int) -> dict[str, int]:
    """Bytes of each part, with weights of so many bytes."""
    settings, layers, tokens = Settings(), shape.layers, _BATCH * WIDTH
    read = len(settings.suppression_layers(layers))
    kept = read + len(settings.name_layers(layers)) + 2  # with the named layer's, the unembedding's
    few = WINDOWS_AT_ONCE * WIDTH * min(LAYERS_AT_ONCE, layers)  # as the statistics read them
    positions = STATISTICS_WINDOWS * WIDTH // STRIDE
    return {
        "weights": shape.parameters * size,
        "covariances": (kept + _SOLVES) * 4 * shape.d_model**2,
        "plain text at the layers that are read": 3 * read * positions * shape.d_model * 4,
        "neuron statistics": 4 * layers * shape.d_mlp,
        "activations of one layer": tokens * (shape.roles * shape.d_mlp + 8 * shape.d_model) * size,
        "activations of a few layers": few * (shape.d_mlp + 2 * shape.d_model) * size,
        "attention of one layer": 3 * _BATCH * shape.heads * WIDTH**2 * 4,
        "base stream of the KL": kl_tokens * shape.d_model * size,
        "logits of a slice": _LOGITS + 64 * 4 * shape.d_vocab,
    }
