"""A checkpoint in the exact shape of Llama 3.1 8B: ranked and exported against reading and copying.

The weights are random, in bfloat16 and four shards, made in a temporary folder that is deleted
again: 16 GB, and 5 GB more while a shard is exported. Every run begins with the files out of the
system's cache, so that all cases read the same medium.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from timing import arguments, compared, interleaved, peak_bytes, reset_peak, show
from transformers import AutoConfig, AutoModelForCausalLM

from tars_lens.common.files import sha256_file
from tars_lens.method.disk_ranking import rank_checkpoint
from tars_lens.model.layout import (
    Slot,
    StoredTensor,
    checkpoint_slots,
    stored_tensors,
    weight_files,
)
from tars_lens.model.shape import config_of
from tars_lens.model.weights import Place
from tars_lens.patch.edit import PatchRows
from tars_lens.patch.export import export
from tars_lens.patch.patch import Patch

_READ = "sequential read of the same bytes"
_COPY = "copy of that shard"
_TOP = 100
_CHUNK = 1 << 23
_RANDOM = 1 << 25


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the checkpoint, prints one table, and deletes the checkpoint."""
    parser = arguments(__doc__, repeats=3, model="llama-3.1-8b")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where there is room; default: the usual")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="llama8b_shape_", dir=options.folder) as name:
        os.environ["TARS_LENS_CACHE"] = str(Path(name) / "cache")  # whose norms are deleted too
        folder = Path(name) / "model"
        make(folder, config_of(options.model), options.shards)
        frame = pd.concat([_ranking(folder, options.repeats), _export(folder, options.repeats)])
    show(
        f"A checkpoint in the shape of {options.model}, on disk",
        frame,
        reference="the first line of each measure, with nothing in the system's cache",
        out=options.out,
    )


def make(
    folder: Path,
    config: Mapping[str, Any],
    shards: int,
    *,
    gains: tuple[float, float] | None = None,
) -> None:
    """Writes random weights in bfloat16 in the shape of a config, tensor by tensor.

    Args:
        folder: Where to.
        config: A model's `config.json`.
        shards: How many files.
        gains: Of the norms, and of the last one, in place of noise.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    values = {key: value for key, value in config.items() if key not in ("model_type", "dtype")}
    made = AutoConfig.for_model(config["model_type"], **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    noise = (0.02 * torch.randn(_RANDOM, generator=generator)).bfloat16()
    pool = noise.view(torch.uint8).numpy().data
    index = {}
    for number, names in enumerate(_split(shapes, shards), start=1):
        file = folder / f"model-{number:05d}-of-{shards:05d}.safetensors"
        index |= dict.fromkeys(names, file.name)
        _write_shard(file, {name: shapes[name] for name in names}, pool)
    metadata = {"total_size": 2 * sum(map(_count, shapes.values()))}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": metadata, "weight_map": index})
    )
    for name, tensor in stored_tensors(folder).items() if gains else ():
        if len(tensor.shape) == 1:
            gain = torch.tensor(gains[name == "model.norm.weight"], dtype=torch.bfloat16)
            bits = tensor.bits("r+")
            bits[:] = gain.view(torch.int16).numpy().view(bits.dtype)
            bits.flush()


def _split(shapes: Mapping[str, tuple[int, ...]], shards: int) -> Iterator[list[str]]:
    """The tensors in their order, in so many parts of about the same size."""
    share = sum(map(_count, shapes.values())) / shards
    part: list[str] = []
    total, made = 0, 1
    for name, shape in shapes.items():
        if part and total + _count(shape) / 2 > made * share and made < shards:
            yield part
            part, made = [], made + 1
        part.append(name)
        total += _count(shape)
    yield part


def _count(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def _write_shard(file: Path, shapes: Mapping[str, tuple[int, ...]], pool: memoryview) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        stop = offset + 2 * _count(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        left, start = offset, 0
        while left:  # the same noise again and again, each time from another place
            piece = pool[2 * start : 2 * start + left]
            out.write(piece)
            left -= len(piece)
            start = (start + 1_234_567) % (_RANDOM // 2)
        out.flush()
        os.fsync(out.fileno())


def _ranking(folder: Path, repeats: int) -> pd.DataFrame:
    slots = checkpoint_slots(folder)
    d_model = next(iter(slots.values())).shape[1]
    sixteen = torch.randn(16, d_model, generator=torch.Generator().manual_seed(0))
    stored = sorted({s.tensor for s in slots.values()}, key=lambda t: (t.file, t.offset))
    index = Path(os.environ["TARS_LENS_CACHE"]) / "norms"
    peaks: list[float] = []

    def ranked(vectors: torch.Tensor, *, known: bool) -> None:
        if not known:
            shutil.rmtree(index, ignore_errors=True)
        reset_peak()
        rank_checkpoint(folder, vectors, top=_TOP)
        peaks.append(peak_bytes())

    cases = {
        _READ: lambda: _read(stored),
        "rank, 1 vector": lambda: ranked(sixteen[:1], known=False),
        "rank, 16 vectors": lambda: ranked(sixteen, known=False),
        "rank, 1 vector, norms known": lambda: ranked(sixteen[:1], known=True),
        "rank, 16 vectors, norms known": lambda: ranked(sixteen, known=True),
    }
    seconds = interleaved(cases, repeats, before=lambda: forget(folder))
    frame = compared(seconds, _READ)
    size = sum(tensor.nbytes for tensor in stored)
    vectors = sum(slot.shape[0] for slot in slots.values())
    frame.insert(0, "measure", f"ranking {vectors:,} vectors")
    frame["gb_per_second"] = size / 1e9 / frame["seconds"]
    frame["peak_mb"] = [float("nan"), *[max(peaks) / 1e6] * 4]
    return frame


def _export(folder: Path, repeats: int) -> pd.DataFrame:
    slots = checkpoint_slots(folder)
    place = max(slots)
    slot, target = slots[place], folder.parent / "out"
    patch = one_row(place, slot)

    def before() -> None:
        shutil.rmtree(target, ignore_errors=True)
        forget(folder)

    def copied() -> None:
        target.mkdir()
        shutil.copyfile(slot.tensor.file, target / slot.tensor.file.name)

    def synced() -> None:
        copied()
        with (target / slot.tensor.file.name).open("rb") as file:
            os.fsync(file.fileno())

    cases = {
        _COPY: copied,
        "copy of that shard, flushed to the disk": synced,
        "SHA-256 of that shard, one core": lambda: sha256_file(slot.tensor.file),
        "export, one shard touched": lambda: export(patch, folder, target, link=True),
    }
    seconds = interleaved(cases, repeats, before=before)
    names = [file.name for file in weight_files(target)]
    linked = sum((target / name).samefile(folder / name) for name in names)
    shutil.rmtree(target)
    frame = compared(seconds, _COPY)
    size = slot.tensor.file.stat().st_size
    frame.insert(0, "measure", f"export, {linked} of {len(names)} shards linked")
    frame["gb_per_second"] = size / 1e9 / frame["seconds"]
    return frame


def one_row(place: Place, slot: Slot) -> Patch:
    """A patch of one row, made with no model."""
    old = torch.from_numpy(slot.view(slot.tensor.bits())[:1].copy()).view(slot.dtype)
    rows = PatchRows(torch.tensor([0]), old, -old, torch.tensor([float("nan")]))
    return Patch({place: rows}, "random", {place: slot.sha256()})


def forget(folder: Path) -> None:
    """Takes a checkpoint's files out of the system's cache."""
    os.sync()  # what is still to be written can't be forgotten, and would be in the next run's way
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(tensors: Sequence[StoredTensor]) -> None:
    buffer = memoryview(bytearray(_CHUNK))
    for tensor in tensors:
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(tensor.offset)
            left = tensor.nbytes
            while left:
                left -= file.readinto(buffer[: min(left, _CHUNK)]) or 0


if __name__ == "__main__":
    main()
