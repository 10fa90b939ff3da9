"""The shape of a model, told from its config alone: nothing is downloaded or loaded but that."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tars_lens.common.errors import TarsError, unknown
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
_ALSO = "A folder, a config.json, a hub id, a built-in model, or one of these names works."


@dataclass(frozen=True)
class Shape:
    """What a model's size follows from.

    Attributes:
        name: What it was asked for as.
        parameters: All weights, tied ones once.
        layers: The number of layers.
        d_model: The width of the residual stream.
        d_mlp: The neurons of a layer.
        d_vocab: The tokens of the unembedding.
        heads: The attention heads of a layer.
        roles: The kinds of MLP weight vectors: 3 with a gate, else 2.
        layer_parameters: The weights of one layer.
        dtype: The checkpoint's own, where its config says.
    """

    name: str
    parameters: int
    layers: int
    d_model: int
    d_mlp: int
    d_vocab: int
    heads: int
    roles: int
    layer_parameters: int
    dtype: str

    @property
    def mlp_vectors(self) -> int:
        """The MLP weight vectors that a ranking reads."""
        return self.layers * self.roles * self.d_mlp

    @classmethod
    def of(cls, model: str | Path) -> "Shape":
        """The shape of a model by folder, `config.json`, hub id, built-in or known name.

        Raises:
            TarsError: No such config, or one that isn't of a dense causal language model.
        """
        return cls.from_config(config_of(str(model)), name=str(model))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, name: str = "model") -> "Shape":
        """The shape that a Hugging Face config describes; the model is made without any weights.

        Raises:
            TarsError: An architecture that transformers doesn't know, or that isn't dense.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        values = dict(config)
        kind = values.pop("model_type", "")
        try:
            made = AutoConfig.for_model(kind, **values)
            made = made.get_text_config(decoder=True)
            with torch.device("meta"):
                model: Any = AutoModelForCausalLM.from_config(made)
        except Exception as error:  # an unknown architecture fails in any way
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise TarsError(f"{name!r} is no causal language model that is known: {reason}") from (
                error
            )
        d_mlp = next((int(v) for key in _WIDTHS if (v := getattr(made, key, None))), 0)
        if getattr(made, "num_local_experts", None) or getattr(made, "num_experts", None):
            raise TarsError(f"{name!r} is a mixture of experts: choose a dense model.")
        blocks = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=_size)
        if not len(blocks):
            raise TarsError(f"{name!r} has no layers (num_hidden_layers): choose another model.")
        gated = any("gate" in key for key, _ in blocks[0].named_parameters())
        return cls(
            name=name,
            parameters=sum(p.numel() for p in model.parameters()),
            layers=int(made.num_hidden_layers),
            d_model=int(made.hidden_size),
            d_mlp=d_mlp or 4 * int(made.hidden_size),
            d_vocab=int(made.vocab_size),
            heads=int(made.num_attention_heads),
            roles=3 if gated else 2,
            layer_parameters=_size(blocks[0]),
            dtype=str(values.get("dtype") or values.get("torch_dtype") or "float32"),
        )


def config_of(name: str) -> dict[str, Any]:
    """The config of a model by folder, `config.json`, hub id, built-in or known name.

    Raises:
        TarsError: There is none, or it can't be read.
    """
    if name.lower() in KNOWN:
        return KNOWN[name.lower()]
    path = user_path(name)
    if name in BUILT_IN:
        from tars_lens.common.cache import cache_folder

        path = cache_folder() / "models" / name
        if not (path / "config.json").is_file():
            raise TarsError(
                f"{name!r} was never fetched, so its config isn't here yet. It is small "
                f"({BUILT_IN[name].disk_bytes / 1e6:,.0f} MB): load it."
            )
    file = path if path.is_file() and path.suffix == ".json" else path / "config.json"
    if not file.is_file() and name.count("/") == 1 and not name.startswith((".", "~", "/")):
        file = _from_hub(name)
    if not file.is_file():
        raise unknown("model", name, KNOWN, _ALSO)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TarsError(f"cannot read {str(file)!r}: {error}.") from error
    if not isinstance(config, dict):
        raise TarsError(f"{str(file)!r} is not a JSON table.")
    return config


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # a proxy's refusal has a type of its own for each HTTP library
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TarsError(f"the config of {name!r} can't be had from the hub: {reason}") from error
