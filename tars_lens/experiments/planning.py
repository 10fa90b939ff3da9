"""Memory of an erasure, told before it is spent: from a model's config alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tars_lens.common.errors import TarsError
from tars_lens.experiments.shapes import Shape
from tars_lens.method.settings import Settings
from tars_lens.model.machines import Machine, this_processor
from tars_lens.text.plain_text import LAYERS_AT_ONCE, STRIDE, WINDOWS_AT_ONCE
from tars_lens.text.windows import STATISTICS_WINDOWS, WIDTH

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}

_BATCH = 4  # windows that run side by side in the KL and the statistics
_IMPORTS = 500_000_000
_SOLVES = 2  # float32 copies of a covariance while a linear system is solved
_LOGITS = 96_000_000  # three slices of the KL


@dataclass(frozen=True)
class Plan:
    """What an erasure will take.

    Attributes:
        shape: The model.
        machine: Where it is to run.
        dtype: Of the weights.
        memory: One row a part: part, bytes.
    """

    shape: Shape
    machine: Machine
    dtype: str
    memory: pd.DataFrame

    @property
    def needed_bytes(self) -> int:
        """All parts together."""
        return int(self.memory["bytes"].sum())

    @property
    def fits(self) -> bool:
        """Whether it all has room where it is to run."""
        return self.needed_bytes <= self.machine.usable_bytes

    def check(self) -> None:
        """Refuses what won't fit.

        Raises:
            TarsError: What is needed, what there is, and what would help.
        """
        if not self.fits:
            raise TarsError(
                does_not_fit(self.shape.name, self.needed_bytes, self.machine, self.dtype)
            )

    def to_frame(self) -> pd.DataFrame:
        """model, dtype, machine, parameters, needed_bytes, usable_bytes, and fits."""
        line = {
            "model": self.shape.name,
            "dtype": self.dtype,
            "machine": self.machine.name,
            "parameters": self.shape.parameters,
            "needed_bytes": self.needed_bytes,
            "usable_bytes": self.machine.usable_bytes,
            "fits": self.fits,
        }
        return pd.DataFrame([line])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        (line,) = self.to_frame().to_dict("records")
        return {**line, "memory": self.memory.to_dict("records")}


def plan(
    model: str | Path | Shape,
    *,
    machine: Machine | None = None,
    dtype: str = "auto",
    kl_tokens: int = 25_600,
) -> Plan:
    """Reckons what removing concepts from a model will take.

    Args:
        model: A folder, `config.json`, hub id, built-in or known name, or a shape.
        machine: Where it is to run; this machine's processor where not given.
        dtype: Of the weights; `auto` is the config's own.
        kl_tokens: How much text the KL is measured on.

    Raises:
        TarsError: No such config, an unknown dtype, or nothing to do.
    """
    shape = model if isinstance(model, Shape) else Shape.of(model)
    kind = (shape.dtype if dtype == "auto" else dtype).removeprefix("torch.")
    if kind not in SIZES:
        raise TarsError(f"no dtype {kind!r}: choose one of auto, {', '.join(SIZES)}.")
    if kl_tokens < 0:
        raise TarsError(f"a plan needs 0 tokens or more, got {kl_tokens}.")
    where = machine or this_processor()
    return Plan(
        shape=shape,
        machine=where,
        dtype=kind,
        memory=_memory(shape, where, SIZES[kind], kl_tokens),
    )


def does_not_fit(name: str, needed: int, machine: Machine, dtype: str) -> str:
    """What is said of a model that is too large."""
    halved = " Weights in bfloat16 (--dtype bfloat16) take half." if dtype == "float32" else ""
    return (
        f"{name} in {dtype} needs {needed / 1e9:,.1f} GB, and {machine.name} has "
        f"{machine.usable_bytes / 1e9:,.1f} GB free.{halved} More GPUs (--device-map auto) "
        "make room as well; layers can't be kept on the host, where no edit would stay in them."
    )


def _memory(shape: Shape, machine: Machine, size: int, kl_tokens: int) -> pd.DataFrame:
    tokens = _BATCH * WIDTH
    covariance = 4 * shape.d_model**2
    settings, layers = Settings(), shape.layers
    read = len(settings.suppression_layers(layers))
    kept = read + len(settings.name_layers(layers)) + 2  # with the named layer's, the unembedding's
    few = WINDOWS_AT_ONCE * WIDTH * min(LAYERS_AT_ONCE, layers)  # as the statistics read them
    positions = STATISTICS_WINDOWS * WIDTH // STRIDE
    parts = {
        "weights": shape.parameters * size,
        "covariances": (kept + _SOLVES) * covariance,
        "plain text at the layers that are read": 3 * read * positions * shape.d_model * 4,
        "neuron statistics": 4 * shape.layers * shape.d_mlp,
        "activations of one layer": tokens * (shape.roles * shape.d_mlp + 8 * shape.d_model) * size,
        "activations of a few layers": few * (shape.d_mlp + 2 * shape.d_model) * size,
        "attention of one layer": 3 * _BATCH * shape.heads * WIDTH**2 * 4,
        "base stream of the KL": kl_tokens * shape.d_model * size,
        "logits of a slice": _LOGITS + 64 * 4 * shape.d_vocab,
    }
    if not machine.devices:  # on GPUs the libraries lie in the host's memory
        parts["libraries"] = _IMPORTS
    return pd.DataFrame({"part": list(parts), "bytes": list(parts.values())})
