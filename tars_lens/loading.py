"""A model's name to a `Lens`: loaded, wrapped by TransformerLens, ready to be edited."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tars_lens.cache import Advance
from tars_lens.checkpoints import Checkpoint, resolve
from tars_lens.conversion import quiet_transformers
from tars_lens.errors import TarsError, reason, told
from tars_lens.layout import stored_tensors
from tars_lens.lens import Lens
from tars_lens.machines import free_bytes
from tars_lens.placement import DeviceMap, check_map, check_present
from tars_lens.surroundings import undisturbed

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@undisturbed
def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    device_map: DeviceMap = None,
    progress: bool = True,
    advance: Advance | None = None,
) -> Lens:
    """Loads a model for reading and editing.

    Args:
        name_or_path: A built-in name, a folder, a `.gguf` file, or a hub id.
        device: Where the weights go.
        dtype: `float32`, `bfloat16` or `float16`; `auto` is the checkpoint's own.
        device_map: In place of `device`, which layers go on which GPU, as accelerate has it;
            `auto` spreads them over all GPUs. Weights that it would keep on the processor or on
            disk between their uses on a GPU can't be edited, and are refused.
        progress: Show a bar where the model must be fetched or converted, on a terminal.
        advance: Told the progress in place of a bar.

    Raises:
        TarsError: No such model, one that can't be edited, no such device or dtype, or too little
            memory.
    """
    kind, place = _dtype(dtype), _device(device)
    check_map(device_map, str(name_or_path))
    checkpoint = resolve(name_or_path, progress=progress, advance=advance)
    if device_map is None:
        check_room(checkpoint, kind, place)
    with quiet_transformers(), _without_collector():
        model = _model(checkpoint, kind, device_map)
        model = model.to(place) if device_map is None else model
        tokenizer = _tokenizer(checkpoint)
        bridge = _boot(checkpoint, model, tokenizer)
    return Lens(bridge, tokenizer, name=checkpoint.name, sha256=checkpoint.sha256)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Spares Python's garbage collector the millions of objects of a tokenizer file.

    They are all still in use, and looking at them again and again is 1.3 of the 3.0 seconds that
    Gemma 3's tokenizer takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_room(checkpoint: Checkpoint, dtype: Any, device: torch.device) -> None:
    """Refuses a model that is larger than the memory that is free.

    Args:
        checkpoint: The model on disk.
        dtype: Of its weights once loaded, or `auto`.
        device: Where they are to go.

    Raises:
        TarsError: What is needed, what there is, and what would help.
    """
    stored = stored_tensors(checkpoint.folder).values()
    size = sum(
        tensor.nbytes if dtype == "auto" else math.prod(tensor.shape) * dtype.itemsize
        for tensor in stored
    )
    free = free_bytes(device)
    if size > free:
        raise TarsError(
            f"the weights of {checkpoint.name} take {size / 1e9:,.1f} GB and {device} has "
            f"{free / 1e9:,.1f} GB free: choose bfloat16 or float16, spread them over several GPUs "
            "with device_map='auto', or rank the checkpoint on disk (rank_checkpoint), which loads "
            "nothing. `tars-lens plan` tells what a model needs."
        )


def _model(checkpoint: Checkpoint, dtype: Any, device_map: Any = None) -> Any:
    loader: Any = AutoModelForCausalLM  # whose annotations know nothing of the loading info
    with told(
        f"transformers can't load {str(checkpoint.folder)!r} as a causal language model",
        "Code that comes with a checkpoint is never run.",
    ):
        _check_layers(checkpoint)
        model, found = loader.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",  # which the bridge uses: the same logits, bit for bit
            output_loading_info=True,
            **({} if device_map is None else {"device_map": device_map}),
        )
    missing = sorted({*found["missing_keys"], *map(str, found["mismatched_keys"])})
    if missing:
        raise TarsError(
            f"the weights in {str(checkpoint.folder)!r} lack {len(missing)} tensors that its "
            f"config.json asks for ({missing[0]}, ...): download or export the model again."
        )
    check_present(model, checkpoint.name)
    return model


def _check_layers(checkpoint: Checkpoint) -> None:
    """Refuses a config of so many layers that making them, to find none stored, takes for ever."""
    config = AutoConfig.from_pretrained(
        checkpoint.folder, local_files_only=True, trust_remote_code=False
    )
    asked = config.get_text_config().num_hidden_layers
    if asked > (stored := len(stored_tensors(checkpoint.folder))):
        raise TarsError(
            f"the weights in {str(checkpoint.folder)!r} lack layers: its config.json asks for "
            f"{asked}, and there are {stored} tensors. Download or export the model again."
        )


def _tokenizer(checkpoint: Checkpoint) -> Any:
    with told(
        f"{str(checkpoint.folder)!r} has no tokenizer that transformers can load",
        "Save one there with tokenizer.save_pretrained.",
    ):
        return AutoTokenizer.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )


def _boot(checkpoint: Checkpoint, model: Any, tokenizer: Any) -> TransformerBridge:
    """Wraps a loaded model, with the tokenizer as it is.

    A tokenizer that says it adds a BOS is taken as it is; any other one would be loaded again by
    its name, from the hub if need be, as a copy that adds one. So for the moment it says so.
    """
    said = dict(tokenizer.init_kwargs)
    tokenizer.init_kwargs["name_or_path"] = str(checkpoint.folder)
    tokenizer.init_kwargs["add_bos_token"] = True
    try:
        with told(
            f"TransformerLens can't wrap {checkpoint.name} ({type(model).__name__})",
            "Choose a model of another architecture.",
        ):
            return TransformerBridge.boot_transformers(
                str(
                    checkpoint.folder
                ),  # a name that might be one of its aliases would be warned of
                hf_model=model,
                tokenizer=tokenizer,
                device=str(model.device),
                dtype=model.dtype,
            )
    finally:
        tokenizer.init_kwargs.clear()
        tokenizer.init_kwargs.update(said)


def _dtype(given: str | torch.dtype) -> Any:
    if given == "auto" or given in _DTYPES.values():
        return given
    if given not in _DTYPES:
        allowed = ", ".join(("auto", *_DTYPES))
        raise TarsError(f"no dtype {str(given)!r}: choose one of {allowed}.")
    return _DTYPES[str(given)]


def _device(given: str | torch.device) -> torch.device:
    try:
        device = torch.device(given)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise TarsError(
            f"no device {str(given)!r} here: {reason(error)}. Choose cpu, or cuda where "
            "there is a GPU."
        ) from error
    return device
