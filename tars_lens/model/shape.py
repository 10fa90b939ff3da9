"""The shape of a model, told from its config alone: nothing is downloaded or loaded but that."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tars_lens.common.cache import cache_folder
from tars_lens.common.errors import TarsError, reason, unknown
from tars_lens.common.files import user_path
from tars_lens.model.catalogue import BUILT_IN

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
KNOWN: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama-3.1-70b": {
        **_LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
"""Configs of models whose folder isn't at hand, as their makers publish them."""

_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")


@dataclass(frozen=True)
class Shape:
    """What a model's size follows from.

    Attributes:
        parameters: All weights, tied ones once.
        layers: The number of layers.
        d_model: The width of the residual stream.
        d_mlp: The neurons of a layer.
        d_vocab: The tokens of the unembedding.
        heads: The attention heads of a layer.
        roles: The kinds of MLP weight vectors: 3 with a gate, else 2.
        dtype: The checkpoint's own, where its config says.
    """

    parameters: int
    layers: int
    d_model: int
    d_mlp: int
    d_vocab: int
    heads: int
    roles: int
    dtype: str

    @property
    def mlp_vectors(self) -> int:
        """The MLP weight vectors that a ranking reads."""
        return self.layers * self.roles * self.d_mlp


def shape_of(model: str | Path) -> Shape:
    """The shape of a model by folder, `config.json`, hub id, built-in or known name.

    The model is made on torch's meta device, without any weights.

    Raises:
        TarsError: No such config, or one that isn't of a dense causal language model.
    """
    name, values = str(model), dict(config_of(str(model)))
    config, made = _empty(name, values)
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        raise TarsError(f"{name!r} is a mixture of experts: choose a dense model.")
    lists = [module for module in made.modules() if isinstance(module, torch.nn.ModuleList)]
    blocks = max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))
    if not len(blocks):
        raise TarsError(f"{name!r} has no layers (num_hidden_layers): choose another model.")
    widths = (getattr(config, key, None) for key in _WIDTHS)
    return Shape(
        parameters=sum(p.numel() for p in made.parameters()),
        layers=int(config.num_hidden_layers),
        d_model=int(config.hidden_size),
        d_mlp=int(next(filter(None, widths), 4 * config.hidden_size)),
        d_vocab=int(config.vocab_size),
        heads=int(config.num_attention_heads),
        roles=3 if any("gate" in key for key, _ in blocks[0].named_parameters()) else 2,
        dtype=str(values.get("dtype") or values.get("torch_dtype") or "float32"),
    )


def config_of(name: str) -> dict[str, Any]:
    """The config of a model by folder, `config.json`, hub id, built-in or known name.

    Raises:
        TarsError: There is none, or it can't be read.
    """
    if name.lower() in KNOWN:
        return KNOWN[name.lower()]
    path = cache_folder() / "models" / name if name in BUILT_IN else user_path(name)
    file = path if path.is_file() and path.suffix == ".json" else path / "config.json"
    if not file.is_file() and name in BUILT_IN:
        raise TarsError(
            f"{name!r} was never fetched, so its config isn't here yet. It is small "
            f"({BUILT_IN[name].disk_bytes / 1e6:,.0f} MB): load it."
        )
    if not file.is_file() and name.count("/") == 1 and not name.startswith((".", "~", "/")):
        file = _from_hub(name)
    if not file.is_file():
        also = "A folder, a config.json, a hub id, a built-in model, or one of these names works."
        raise unknown("model", name, KNOWN, also)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TarsError(f"cannot read {str(file)!r}: {reason(error)}.") from error
    if not isinstance(config, dict):
        raise TarsError(f"{str(file)!r} is not a JSON table.")
    return config


def _empty(name: str, values: Mapping[str, Any]) -> tuple[Any, torch.nn.Module]:
    """The config of the part that reads text, and a model of it that holds no weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    rest = {key: value for key, value in values.items() if key != "model_type"}
    try:
        config = AutoConfig.for_model(values.get("model_type", ""), **rest)
        config = config.get_text_config(decoder=True)
        with torch.device("meta"):
            made: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # an unknown architecture fails in any way
        raise TarsError(
            f"{name!r} is no causal language model that is known: {reason(error)}."
        ) from error
    return config, made


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # a proxy's refusal has a type of its own for each HTTP library
        raise TarsError(
            f"the config of {name!r} can't be had from the hub: {reason(error)}."
        ) from error
