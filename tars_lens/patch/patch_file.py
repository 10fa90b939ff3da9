"""The patch file: one safetensors file, its metadata JSON in a string."""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tars_lens.common.errors import TarsError, reason
from tars_lens.common.files import user_path, whole_file
from tars_lens.model.layout import DTYPES
from tars_lens.model.placement import free_bytes
from tars_lens.model.weights import Place
from tars_lens.patch.edit import Edit, PatchRows

FORMAT = 1
_KEY = "tars_lens.patch"  # one key: with several, safetensors writes them in a random order
_PLACE = re.compile(r"L(0|[1-9]\d{0,5})\.(gate|in|out)", re.ASCII)  # one spelling a place
_TENSOR = re.compile(_PLACE.pattern + r"\.(neurons|old|new|cosine)", re.ASCII)
_LONGEST = 16_000_000  # characters of metadata: a patch's cards and figures are some 100,000
_DEPTH = 100  # of the metadata's tables: what is read must also be writable, from any caller
_FIELDS: dict[str, type] = {
    "label": str,
    "base_name": str,
    "base_sha256": dict,
    "concepts": list,
    "method": dict,
    "seed": int,
    "versions": dict,
    "figures": dict,
}

_FILES = "weights_sha256"  # which patches of earlier versions don't have


def save(patch: Edit, path: Path | str) -> None:
    """Writes a patch; see `Patch.save`."""
    tensors: dict[str, Tensor] = {}
    for place, rows in patch.edits.items():
        for part in ("neurons", "old", "new", "cosine"):
            tensors[f"{_place(place)}.{part}"] = getattr(rows, part).contiguous()
    header = {name: getattr(patch, name) for name in _FIELDS} | {"format": FORMAT}
    header["base_sha256"] = {_place(k): v for k, v in patch.base_sha256.items()}
    header |= {_FILES: patch.weights_sha256} if patch.weights_sha256 else {}
    metadata = json.dumps(header, sort_keys=True, ensure_ascii=False, allow_nan=False)
    content = safetensors.torch.save(tensors, {_KEY: metadata})
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def load(path: Path | str) -> dict[str, Any]:
    """Reads the attributes of a patch; see `Patch.load`."""
    path = user_path(path)
    _check_size(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(_KEY)
            for key in file.keys():  # noqa: SIM118 - no mapping; before any of them is read
                if _TENSOR.fullmatch(key) is None:
                    _refuse(path, f"it has an unknown tensor {key[:60]!r}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError as error:
        raise TarsError(f"no patch file {str(path)!r}.") from error
    except (OSError, SafetensorError) as error:
        raise TarsError(
            f"{str(path)!r} is not a whole safetensors file ({reason(error)}): copy it again."
        ) from error
    if metadata is None:
        _refuse(path, "it is a safetensors file, but not a patch")
    header = _header(path, metadata)
    edits = _all_rows(path, tensors)
    hashes = _hashes(path, header.pop("base_sha256"))
    if hashes.keys() != edits.keys():
        _refuse(path, "its rows and its base's hashes name different tensors")
    concepts = tuple(header.pop("concepts"))
    return {"edits": edits, "base_sha256": hashes, "concepts": concepts, **header}


def _check_size(path: Path) -> None:
    """Refuses a file that is larger than the memory, as a hole in one costs its sender nothing."""
    size = path.stat().st_size if path.is_file() else 0
    free = free_bytes(torch.device("cpu"))
    if size > free:
        raise TarsError(
            f"the patch file {str(path)!r} has {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of "
            "memory are free. Get it from whoever made it."
        )


def _header(path: Path | str, metadata: str) -> dict[str, Any]:
    if len(metadata) > _LONGEST:
        _refuse(path, f"its metadata has more than {_LONGEST:,} characters")
    try:
        header = json.loads(metadata)
        _check_depth([header])
        # NaN, 1e999 and half a surrogate pair are read without a word, and can't be written again
        json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        _refuse(path, f"its metadata is not JSON ({reason(error)})")
    if not isinstance(header, dict) or "format" not in header:
        _refuse(path, "its metadata names no format version")
    if type(header["format"]) is not int or header["format"] != FORMAT:
        raise TarsError(
            f"{str(path)!r} has patch format {header['format']!r}; this version reads {FORMAT}. "
            "Install the tars_lens that wrote it."
        )
    for name, kind in _FIELDS.items():
        if type(header.get(name)) is not kind:  # JSON's true would pass for an int
            _refuse(path, f"its metadata key {name!r} is missing or no {kind.__name__}")
    if not all(isinstance(card, dict) for card in header["concepts"]):
        _refuse(path, "its metadata key 'concepts' holds what is no concept card")
    if not all(isinstance(text, str) for text in header["versions"].values()):
        _refuse(path, "its metadata key 'versions' holds what is no text")
    if not isinstance(header.get(_FILES, ""), str):
        _refuse(path, f"its metadata key {_FILES!r} is no text")
    return {name: header[name] for name in _FIELDS} | {_FILES: header.get(_FILES, "")}


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > _DEPTH:
        raise ValueError(f"nested more than {_DEPTH} deep")
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, dict | list):
            _check_depth(child, depth + 1)


def _all_rows(path: Path | str, tensors: dict[str, Tensor]) -> dict[Place, PatchRows]:
    parts: dict[Place, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        place, _, part = key.rpartition(".")
        layer, role = place[1:].split(".")
        parts.setdefault((int(layer), _role(role)), {})[part] = tensor
    return {place: _rows(path, place, parts[place]) for place in sorted(parts)}


def _rows(path: Path | str, place: Place, parts: dict[str, Tensor]) -> PatchRows:
    missing = {"neurons", "old", "new", "cosine"} - parts.keys()
    if missing:
        _refuse(path, f"{_place(place)} has no {', '.join(sorted(missing))}")
    neurons, old, new, cosine = (parts[p] for p in ("neurons", "old", "new", "cosine"))
    fits = (
        neurons.dtype == torch.int64
        and cosine.dtype == torch.float32
        and old.dtype in DTYPES.values()
        and old.dtype == new.dtype
        and neurons.ndim == 1
        and cosine.shape == neurons.shape
        and old.ndim == 2
        and old.shape == new.shape
        and len(old) == len(set(neurons.tolist())) == len(neurons) > 0
    )
    if not fits:
        shapes = {part: (str(t.dtype), tuple(t.shape)) for part, t in parts.items()}
        _refuse(path, f"the tensors of {_place(place)} don't fit together: {shapes}")
    if not (old.isfinite().all() and new.isfinite().all()):
        _refuse(path, f"a row of {_place(place)} is not finite (NaN or infinite)")
    return PatchRows(neurons, old, new, cosine)


def _hashes(path: Path | str, table: dict[str, Any]) -> dict[Place, str]:
    hashes: dict[Place, str] = {}
    for key, value in sorted(table.items()):
        found = _PLACE.fullmatch(key)
        if found is None or not isinstance(value, str):
            _refuse(path, f"its metadata has a malformed hash {key[:60]!r}")
        hashes[int(found[1]), _role(found[2])] = value
    return dict(sorted(hashes.items()))


def _role(text: str) -> Any:
    return text  # one of the roles: the patterns allow nothing else


def _place(place: Place) -> str:
    return f"L{place[0]}.{place[1]}"


def _refuse(path: Path | str, problem: str) -> NoReturn:
    raise TarsError(f"{str(path)!r} is not a patch file of tars_lens: {problem}.")
