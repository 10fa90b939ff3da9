"""Where an HF checkpoint on disk keeps the MLP's weight vectors, read and written in place.

Nothing is loaded: a tensor is a memory map of the bits that its safetensors file holds.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tars_lens.common.errors import TarsError, reason
from tars_lens.model.folders import read_config
from tars_lens.model.folders import weight_files as weight_files
from tars_lens.model.lens import Role
from tars_lens.model.weights import Place

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SIZES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}
"""Bytes of a value; the formats below a byte are left out."""
_MLP = re.compile(
    r"(?:^|\.)(?:layers|h|blocks)\.([0-9]{1,6})\."
    r"(?:(?:(?:mlp|ffn|feed_forward)\.)?"
    r"(gate_proj|up_proj|down_proj|gate_up_proj|dense_h_to_4h|dense_4h_to_h|fc1|fc2|fc_in|fc_out)"
    r"|mlp\.(c_fc|c_proj)|feed_forward\.(w[123]))\.weight$"  # an attention may have a c_proj too
)
_OTHER_TOWER = re.compile(r"vision|visual|audio|image", re.IGNORECASE)
_CONV1D = {"gpt2", "openai-gpt"}  # store [in, out] where all others store [out, in]
_ROLES: dict[str, Role] = {
    "gate_proj": "gate",
    "up_proj": "in",
    "down_proj": "out",
    "c_fc": "in",
    "c_proj": "out",
    "dense_h_to_4h": "in",
    "dense_4h_to_h": "out",
    "fc1": "in",
    "fc2": "out",
    "fc_in": "in",
    "fc_out": "out",
    "w1": "gate",
    "w3": "in",
    "w2": "out",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        file: The file.
        key: Its name there.
        dtype: As safetensors writes it (`BF16`).
        shape: Its shape.
        offset: The file's byte at which it begins.
        nbytes: Its size.
    """

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def raw(self) -> np.ndarray:
        """Its bytes, a read-only map of the file."""
        if not self.nbytes:
            return np.zeros(0, np.uint8)
        return np.memmap(self.file, np.uint8, "r", self.offset, (self.nbytes,))

    def bits(self, mode: Literal["r", "r+", "c"] = "r") -> np.memmap:
        """Its values as unsigned integers of their size, a map of the file (`c`: a private one)."""
        kind = np.dtype(f"<u{_SIZES[self.dtype]}")
        return np.memmap(self.file, kind, mode, self.offset, self.shape)


@dataclass(frozen=True)
class Slot:
    """Where a checkpoint keeps one matrix of weight vectors.

    Attributes:
        tensor: The tensor that holds it.
        half: 0 or 1 where it is the first or second half of a joint gate and in-projection.
        transposed: Whether the neurons are the tensor's columns.
    """

    tensor: StoredTensor
    half: Literal[0, 1] | None
    transposed: bool

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the rows."""
        return DTYPES[self.tensor.dtype]

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_mlp, d_model)`."""
        first, second = self.tensor.shape
        if self.half is not None:
            first //= 2
        return (second, first) if self.transposed else (first, second)

    def view(self, whole: np.ndarray) -> np.ndarray:
        """The `[d_mlp, d_model]` part of an array that is shaped as the tensor."""
        if self.half is not None:
            middle = len(whole) // 2
            whole = whole[middle:] if self.half else whole[:middle]
        return whole.T if self.transposed else whole

    def matrix(self) -> np.ndarray:
        """A copy of the `[d_mlp, d_model]` matrix, as unsigned integers in the rows' order."""
        whole = self.tensor.bits("c")  # torch wants a map that might be written to
        kind = whole.dtype
        rows = torch.from_numpy(self.view(whole.view(f"<i{kind.itemsize}")))
        return rows.clone(memory_format=torch.contiguous_format).numpy().view(kind)

    def sha256(self) -> str:
        """The same as `Lens.tensor_sha256` of this matrix in the model."""
        return hashlib.sha256(self.matrix().data).hexdigest()


def checkpoint_slots(folder: Path | str) -> dict[Place, Slot]:
    """Every matrix of MLP weight vectors in a checkpoint, by layer and role.

    Raises:
        TarsError: Not an HF checkpoint in safetensors, or not of a dense MLP in plain floats.
    """
    conv1d = read_config(Path(folder)).get("model_type") in _CONV1D
    stacks: dict[str, dict[Place, Slot]] = {}
    for tensor in stored_tensors(folder).values():
        for stack, place, slot in _slots(tensor, conv1d):
            stacks.setdefault(stack, {})[place] = slot
    # blocks that predict further tokens, or that draft, are fewer than the model's own
    slots, *others = sorted(stacks.values(), key=len, reverse=True) or [{}]
    if others and len(others[0]) == len(slots):
        place = min(slots.keys() & others[0].keys(), default=min(slots))
        both = " and ".join(repr(s[place].tensor.key) for s in (slots, others[0]) if place in s)
        raise TarsError(
            f"{str(folder)!r} has two MLPs for layer {place[0]}: {both}. Export the language "
            "model alone, then edit it."
        )
    if not slots:
        raise TarsError(
            f"{str(folder)!r} holds no plain MLP weights (a mixture of experts, or quantised?). "
            "Choose a dense checkpoint in bfloat16, float16 or float32."
        )
    for slot in slots.values():
        _check_plain(folder, slot.tensor)
    for place, slot in slots.items():
        _check_fits(folder, place, slot, slots.get((place[0], "out")))
    return slots


def stored_tensors(folder: Path | str) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint's weight files, by key; reads their headers alone.

    Raises:
        TarsError: No safetensors weights, or a file that isn't whole.
    """
    return {t.key: t for file in weight_files(folder) for t in _file_tensors(file)}


def _file_tensors(file: Path) -> Iterator[StoredTensor]:
    """The tensors of one file; its format is an 8-byte length, a JSON header, and the data."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        found = [_stored(file, key, entry, 8 + length, size) for key, entry in header.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TarsError(
            f"{str(file)!r} is not a whole safetensors file ({reason(error)}): download it again."
        ) from error
    yield from found


def _stored(file: Path, key: str, entry: dict[str, Any], data: int, size: int) -> StoredTensor:
    """One tensor of a header, refused where a map of it would show or write anything else."""
    key.encode()  # half a surrogate pair could be neither printed nor written
    (start, stop), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError(f"{key!r} has no dtype or no shape")
    if any(type(number) is not int or number < 0 for number in (start, stop, *shape)):
        raise ValueError(f"{key!r} has a shape or offsets that are no whole numbers")
    if data + stop > size:
        raise ValueError("its data end before the header says")
    # what is packed below a byte has no size here; such a tensor is refused where it is edited
    nbytes = math.prod(shape) * _SIZES[dtype] if dtype in _SIZES else stop - start
    if start > stop or stop - start != nbytes:
        raise ValueError(f"{key!r} isn't as large as its dtype and shape say")
    return StoredTensor(file, key, dtype, tuple(shape), data + start, nbytes)


def _slots(tensor: StoredTensor, conv1d: bool) -> Iterator[tuple[str, Place, Slot]]:
    """What a tensor holds, and the name of the stack of blocks that it belongs to."""
    found = _MLP.search(tensor.key)
    if found is None or _OTHER_TOWER.search(tensor.key):
        return
    stack, layer = tensor.key[: found.start(1)], int(found[1])
    name = found[2] or found[3] or found[4]
    if name == "gate_up_proj":
        yield stack, (layer, "gate"), Slot(tensor, 0, False)
        yield stack, (layer, "in"), Slot(tensor, 1, False)
        return
    role = _ROLES[name]
    yield stack, (layer, role), Slot(tensor, None, (role == "out") != conv1d)


def _check_plain(folder: Path | str, tensor: StoredTensor) -> None:
    if tensor.dtype not in DTYPES or len(tensor.shape) != 2:
        raise TarsError(
            f"{str(folder)!r}: {tensor.key!r} is packed ({tensor.dtype}, shape {tensor.shape}) and "
            "can't be edited in place. Use the unquantised checkpoint of the same model."
        )


def _check_fits(folder: Path | str, place: Place, slot: Slot, out: Slot | None) -> None:
    key, shape = slot.tensor.key, slot.tensor.shape
    uneven = slot.half is not None and shape[0] % 2
    if out is None or slot.shape != out.shape or uneven or not all(shape):
        raise TarsError(
            f"{str(folder)!r}: {key!r} of shape {shape} doesn't fit the "
            f"out-projection of layer {place[0]}: this layout of MLP is not known."
        )
