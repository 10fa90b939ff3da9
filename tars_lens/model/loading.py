"""A model's name to a `Lens`: loaded, wrapped by TransformerLens, ready to be edited."""

import gc
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tars_lens.common.cache import Advance
from tars_lens.common.errors import TarsError, reason, told
from tars_lens.common.surroundings import undisturbed
from tars_lens.model.checkpoints import Checkpoint, resolve
from tars_lens.model.conversion import quiet_transformers
from tars_lens.model.layout import Slot, checkpoint_slots, stored_tensors
from tars_lens.model.lens import Lens
from tars_lens.model.placement import DeviceMap, check_map, check_present, free_bytes
from tars_lens.model.spelling import Spelling
from tars_lens.model.weights import Place

logger = logging.getLogger(__name__)

_CONSTANTS = re.compile(
    r"(^|\.)(masked_bias|causal_mask|attn(\.attention)?\.bias|(cos|sin)_cached|inv_freq"
    r"|position_ids|embed_positions\.weights)$"
)
"""Masks and tables that older checkpoints hold, and a model makes by itself."""
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
        dtype: `float32`, `bfloat16` or `float16`; `auto` is that of the checkpoint's files, and the
            only one in which a patch can be made that fits them.
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
    slots = checkpoint_slots(checkpoint.folder)
    kind = _settled(kind, checkpoint, slots)
    if device_map is None:
        check_room(checkpoint, kind, place)
    with quiet_transformers(), _without_collector():
        tokenizer = _tokenizer(checkpoint)
        Spelling(tokenizer)  # refuses one that can't be used before the weights are read
        model = _model(checkpoint, kind, device_map)
        model = model.to(place) if device_map is None else model
        bridge = _boot(checkpoint, model, tokenizer)
    lens = Lens(bridge, tokenizer, name=checkpoint.name, sha256=checkpoint.sha256)
    _check_slots(lens, checkpoint, slots)
    return lens


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


def check_room(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    """Refuses a model that is larger than the memory that is free.

    Args:
        checkpoint: The model on disk.
        dtype: Of its weights once loaded.
        device: Where they are to go.

    Raises:
        TarsError: What is needed, what there is, and what would help.
    """
    stored = stored_tensors(checkpoint.folder).values()
    size = sum(math.prod(tensor.shape) * dtype.itemsize for tensor in stored)
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
    unused = sorted(key for key in found["unexpected_keys"] if _is_of(model, key))
    if unused:
        raise TarsError(
            f"the weights in {str(checkpoint.folder)!r} have {len(unused)} tensors of which its "
            f"config.json makes nothing ({unused[0]}, ...), so the model would be another one than "
            "the file's: put the config right, or download or export the model again."
        )
    check_present(model, checkpoint.name)
    return model


def _is_of(model: Any, key: str) -> bool:
    """Whether a tensor belongs to a part that the model has, such as a bias of its attention.

    What stands beside all of its parts (a head for values, blocks that predict further tokens) is
    no part of the language model.
    """
    if _CONSTANTS.search(key):
        return False
    base = model.base_model_prefix
    filled = {name for name, part in model.named_modules() if any(True for _ in part.parameters())}
    parts = filled | {name.removeprefix(f"{base}.") for name in filled}  # it may be saved without
    steps = key.split(".")[:-1]
    above = {".".join(steps[:end]) for end in range(1, len(steps) + 1)}
    return not (parts - {base}).isdisjoint(above)


def _settled(
    dtype: torch.dtype | None, checkpoint: Checkpoint, slots: dict[Place, Slot]
) -> torch.dtype:
    """The dtype that was asked for, else that of the vectors on disk, whatever the config says."""
    stored = sorted({slot.dtype for slot in slots.values()}, key=str)
    names = ", ".join(map(str, stored))
    if dtype is None and len(stored) > 1:
        raise TarsError(
            f"the MLP weights in {str(checkpoint.folder)!r} are of several dtypes ({names}), and a "
            "model is loaded in one: save it in one, or choose a dtype to look at it."
        )
    if dtype is not None and [dtype] != stored:
        logger.warning(
            "%s is loaded as %s and stored as %s: a patch that is made so goes into its files with "
            "--force alone. dtype='auto' is that of the files.",
            *(checkpoint.name, dtype, names),
        )
    return dtype or stored[0]


def _check_slots(lens: Lens, checkpoint: Checkpoint, slots: dict[Place, Slot]) -> None:
    """Refuses a model whose vectors couldn't be written back to where its files keep them."""
    for place in ((layer, role) for layer in range(lens.n_layers) for role in lens.roles):
        slot, vectors = slots.get(place), lens.vectors(*place)
        if slot is None or slot.shape != vectors.shape or not _begins_so(slot, vectors):
            where = "nowhere" if slot is None else f"otherwise, as {slot.tensor.key!r},"
            raise TarsError(
                f"{checkpoint.name} can't be edited: its files keep the vectors of layer "
                f"{place[0]}, role {place[1]!r}, {where} in {str(checkpoint.folder)!r}, so they "
                "couldn't be written back. Choose a model whose MLPs are stored one by one."
            )


def _begins_so(slot: Slot, vectors: Float[Tensor, "d_mlp d_model"]) -> bool:
    """Whether a matrix on disk begins and ends with the numbers of one in the model."""
    ends, whole = [0, -1], slot.view(slot.tensor.bits())
    cells, ours = (
        (whole[:, ends], vectors[:, ends]) if slot.transposed else (whole[ends], vectors[ends])
    )
    stored = torch.from_numpy(cells.copy(order="C")).view(slot.dtype).to(vectors.dtype)
    return bool(torch.isclose(stored, ours.cpu(), rtol=0, atol=0, equal_nan=True).all())


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


def _dtype(given: str | torch.dtype) -> torch.dtype | None:
    """The dtype that was asked for, or `None` for that of the files."""
    if given == "auto":
        return None
    if isinstance(given, torch.dtype) and given in _DTYPES.values():
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
