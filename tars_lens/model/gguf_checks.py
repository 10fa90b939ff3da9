"""Whether a model is that of its GGUF file: nothing is missing, and nothing was left out.

transformers fills what a file lacks with random numbers, and passes over tensors and settings that
it has no place for. Both give a model that runs, and says something else.
"""

import math
from pathlib import Path
from typing import Any

import gguf
import transformers
from transformers import modeling_gguf_pytorch_utils

from tars_lens.common.errors import TarsError, reason

_READER: Any = modeling_gguf_pytorch_utils
_SHOWN = 4
_IN_SHAPES = {"vocab_size", "attention.key_length", "attention.value_length", "tensor_data_layout"}
"""Settings that show in the tensors' shapes or, the last one, in what converted them."""


def read_header(file: Path) -> Any:
    """The settings and the table of tensors of a GGUF file.

    Raises:
        TarsError: It isn't a GGUF file, it is cut short, or it is no model by itself.
    """
    try:
        reader = gguf.GGUFReader(file)
    except Exception as error:  # the reader checks little, so a bad file fails in any way
        raise TarsError(
            f"{str(file)!r} is not a whole GGUF file ({reason(error)}): download it again."
        ) from error
    parts = _value(reader, "split.count") or 1
    if parts > 1:
        raise TarsError(
            f"{str(file)!r} is one of {parts} parts of a model: join them first (llama.cpp's "
            "`llama-gguf-split --merge FIRST_PART WHOLE.gguf`), and give the whole file."
        )
    if _value(reader, "general.type") == "adapter":
        raise TarsError(
            f"{str(file)!r} is an adapter: merge it first (llama.cpp's `llama-export-lora`), and "
            "give the merged model."
        )
    return reader


def check_model(file: Path, reader: Any, model: Any, found: dict[str, Any]) -> None:
    """Refuses a model that isn't the file's.

    Args:
        file: The GGUF file, for messages.
        reader: Its header.
        model: What transformers made of it, in plain floats.
        found: What `from_pretrained` says of missing keys.

    Raises:
        TarsError: Names the tensors that the file lacks, or the tensors or settings of the file
            that the model was made without.
    """
    missing = sorted({*found["missing_keys"], *map(str, found["mismatched_keys"])})
    if missing:
        raise TarsError(
            f"{str(file)!r} lacks {len(missing)} tensors of its model ({_some(missing)}), which "
            "would be random numbers: download or convert it again."
        )
    left_out = [*_unused_tensors(reader, model), *_unused_settings(reader, model.config)]
    if left_out:
        raise TarsError(
            f"transformers {transformers.__version__} makes nothing of {_some(left_out)} in "
            f"{str(file)!r}, so the model would be another one than the file's. Use its "
            "safetensors checkpoint."
        )


def _unused_tensors(reader: Any, model: Any) -> list[str]:
    """The file's tensors that are nowhere in the model: as many numbers must be in both."""
    held = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    if sum(held.values()) == sum(int(tensor.n_elements) for tensor in reader.tensors):
        return []
    names = [tensor.name for tensor in reader.tensors]
    kind = _READER.TENSOR_PROCESSORS.get(_architecture(reader), _READER.TensorProcessor)
    try:
        used = _READER.get_gguf_hf_weights_map(model, kind(config=model.config.to_dict()))
    except Exception:  # the architecture is read in another way, which keeps no such table
        used = {}
    return [name for name in names if name not in used] or names


def _unused_settings(reader: Any, config: Any) -> list[str]:
    """The file's settings that change what the model says and aren't in its config."""
    kind = _architecture(reader)
    table = _READER.GGUF_TO_TRANSFORMERS_MAPPING["config"].get(kind)
    held = _held(config)
    unused = []
    for key in reader.fields:
        prefix, _, name = key.partition(".")
        value = _value(reader, key)
        if prefix != kind or name in _IN_SHAPES or _is_neutral(reader, name, value):
            continue
        if name in held:
            used = held[name] is not None and math.isclose(value, held[name], rel_tol=1e-6)
        else:  # an architecture without a table is read by code of its own
            used = name in table if table is not None else not name.startswith("rope.scaling.")
        if not used:
            unused.append(f"{key} = {value}")
    return unused


def _held(config: Any) -> dict[str, Any]:
    """What a config has of the settings that transformers carries over for some models alone."""
    rope = getattr(config, "rope_parameters", None) or {}
    whole, sliding = rope.get("full_attention", rope), rope.get("sliding_attention") or {}
    heads = getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    share = whole.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None)
    return {
        "rope.freq_base": whole.get("rope_theta"),
        "rope.freq_base_swa": sliding.get("rope_theta"),
        "rope.dimension_count": int(width * (share or 1)),
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "use_parallel_residual": getattr(config, "use_parallel_residual", None),
    }


def _is_neutral(reader: Any, name: str, value: Any) -> bool:
    """Whether a setting has the value that changes nothing."""
    if name.startswith("rope.scaling."):
        kind = _architecture(reader)
        factor = _value(reader, f"{kind}.rope.scaling.factor") or 1
        how = _value(reader, f"{kind}.rope.scaling.type") or "none"
        return factor == 1 and how in ("none", "linear")
    if name == "attention.causal":
        return bool(value)
    return value == 0 and name != "use_parallel_residual"


def _architecture(reader: Any) -> str:
    return str(_value(reader, "general.architecture"))


def _value(reader: Any, key: str) -> Any:
    """A setting of the file, or `None` where it has none of that name."""
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
