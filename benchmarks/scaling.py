"""Time against width, depth, number of vectors and number of workers, each with its exponent.

An exponent of 1 is time in proportion, of 2 with the square; of workers, -1 would be ideal.
Widths and depths are of random models with the tokenizer of the model given.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from timing import arguments, interleaved, show
from transformers import LlamaConfig, LlamaForCausalLM

from tars_lens.experiments.sweep_jobs import read_spec
from tars_lens.experiments.sweeping import sweep
from tars_lens.method.ranking import rank
from tars_lens.model.checkpoints import locate
from tars_lens.model.lens import Lens
from tars_lens.model.loading import load

_WINDOW = 256
_SIZES = {"widths": [192, 384, 768, 1536], "layers": [2, 4, 8, 16], "vectors": [1, 2, 4, 8, 16, 32]}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one table."""
    parser = arguments(__doc__, repeats=5)
    for name, sizes in _SIZES.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=sizes)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--concepts", nargs="+", default=["saturn", "paris", "oxygen", "darwin"])
    parser.add_argument("--corpus", help="as for tars-lens erase")
    options = parser.parse_args(argv)
    source, repeats = locate(options.model, progress=False), options.repeats
    with tempfile.TemporaryDirectory(prefix="scaling_") as name:
        folder = Path(name)
        wide = {w: _random(folder / f"w{w}", source, w, 4) for w in options.widths}
        deep = {d: _random(folder / f"d{d}", source, options.widths[0], d) for d in options.layers}
        frames = [
            _table("d_model", "one pass", wide, _pass, repeats),
            _table("d_model", "rank", wide, _ranked, repeats),
            _table("layers", "one pass", deep, _pass, repeats),
            _table("layers", "rank", deep, _ranked, repeats),
            _vectors(load(options.model, progress=False), options.vectors, repeats),
        ]
        if options.workers:
            frames.append(_workers(folder, options))
    show(
        f"How time grows, with the tokenizer and the jobs of {options.model}",
        pd.concat(frames, ignore_index=True),
        reference="the first size of each measure",
        out=options.out,
    )


def _pass(lens: Lens) -> Callable[[], Any]:
    ids = torch.arange(_WINDOW)[None] % lens.d_vocab
    return lambda: lens.residual(ids, -1)


def _ranked(lens: Lens) -> Callable[[], Any]:
    vector = torch.randn(lens.d_model, generator=torch.Generator().manual_seed(0))
    return lambda: rank(lens, vector, top=100)


def _table(
    axis: str,
    measure: str,
    lenses: dict[int, Lens],
    case: Callable[[Lens], Callable[[], Any]],
    repeats: int,
) -> pd.DataFrame:
    cases = {str(size): case(lens) for size, lens in lenses.items()}
    return _fitted(axis, measure, list(interleaved(cases, repeats).values()), list(lenses))


def _vectors(lens: Lens, counts: Sequence[int], repeats: int) -> pd.DataFrame:
    many = torch.randn(max(counts), lens.d_model, generator=torch.Generator().manual_seed(0))
    cases = {str(n): lambda n=n: rank(lens, many[:n], top=100) for n in counts}
    return _fitted("vectors", "rank", list(interleaved(cases, repeats).values()), counts)


def _workers(folder: Path, options: Any) -> pd.DataFrame:
    """A sweep of the concepts, statistics cached, by the number of its processes."""
    spec = {
        "concepts": [_absolute(concept) for concept in options.concepts],
        "models": [_absolute(options.model)],
        "methods": ["paper"],
        "kl_tokens": 512,
        **({"corpus": _absolute(options.corpus)} if options.corpus else {}),
    }
    file = folder / "spec.toml"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in spec.items()))
    jobs = read_spec(file)

    def run(workers: int) -> None:
        failed = sweep(jobs, folder / "out", workers=workers).failed
        shutil.rmtree(folder / "out")
        if failed:
            raise SystemExit(f"a job failed: {failed}")

    cases = {str(n): lambda n=n: run(n) for n in options.workers}
    seconds = interleaved(cases, 1, before=lambda: None)
    measure = f"sweep of {len(jobs)} jobs"
    return _fitted("workers", measure, list(seconds.values()), options.workers)


def _fitted(
    axis: str, measure: str, seconds: Sequence[float], sizes: Sequence[int]
) -> pd.DataFrame:
    """One row a size: axis, measure, size, seconds, ratio (to the first), exponent (of all)."""
    exponent = float("nan")
    if len(sizes) > 1:
        exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    rows = [
        {
            "axis": axis,
            "measure": measure,
            "size": size,
            "seconds": taken,
            "ratio": taken / seconds[0],
            "exponent": exponent,
        }
        for size, taken in zip(sizes, seconds, strict=True)
    ]
    return pd.DataFrame(rows)


def _random(folder: Path, source: Path, width: int, layers: int) -> Lens:
    heads = max(1, width // 64)
    config = LlamaConfig(
        vocab_size=json.loads((source / "config.json").read_text())["vocab_size"],
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2 * _WINDOW,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in source.glob("*token*"):
        shutil.copy(file, folder)
    return load(folder, progress=False)


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


if __name__ == "__main__":
    main()
