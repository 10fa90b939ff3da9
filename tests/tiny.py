"""Tiny random models of every architecture that a lens knows, made without any hub."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge

from tars_lens.model.lens import Lens

WORDS = 60
"""Words `w0`, `w1`, ... that the tokenizer knows, after its four special tokens."""

_VOCABULARY = 64
COMMON: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_NO_GROUPS = {k: v for k, v in COMMON.items() if k != "num_key_value_heads"}

_CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**COMMON, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**COMMON),
    "qwen2": lambda: transformers.Qwen2Config(**COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON, head_dim=8),
    "gemma": lambda: transformers.GemmaConfig(**COMMON, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(**COMMON, head_dim=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**COMMON, head_dim=8),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=_VOCABULARY, n_embd=16, n_layer=3, n_head=2, n_inner=24, n_positions=64
    ),
    "neox": lambda: transformers.GPTNeoXConfig(**_NO_GROUPS),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=_VOCABULARY,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
        pad_token_id=3,
    ),
    "phi3": lambda: transformers.Phi3Config(**COMMON, pad_token_id=3),
    "mixtral": lambda: transformers.MixtralConfig(**COMMON, num_local_experts=2),
}

ARCHITECTURES = tuple(name for name in _CONFIGS if name != "mixtral")
"""All that can be edited; `mixtral` is there to be refused."""


def save_checkpoint(
    folder: Path,
    arch: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Writes a tiny random checkpoint with a tokenizer, as Hugging Face would."""
    torch.manual_seed(seed)
    config = _CONFIGS[arch]()
    config.update(changes)
    hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    hf.to(dtype).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def read_checkpoint(folder: Path) -> Any:
    """The Hugging Face model of a checkpoint, in its dtype, with eager attention."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", attn_implementation="eager"
    ).eval()


def read_tokenizer(folder: Path) -> Any:
    """Its tokenizer, whatever class the architecture would have."""
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def boot(folder: Path, name: str = "tiny") -> tuple[Any, Any]:
    """A bridge over a checkpoint, and its tokenizer."""
    hf = read_checkpoint(folder)
    tokenizer = read_tokenizer(folder)
    tokenizer.init_kwargs.setdefault("name_or_path", str(folder))
    tokenizer.init_kwargs["add_bos_token"] = False
    return bridged(hf, tokenizer, name), tokenizer


def bridged(hf: Any, tokenizer: Any, name: str = "tiny") -> Any:
    """A bridge over a Hugging Face model."""
    return TransformerBridge.boot_transformers(
        name, hf_model=hf, tokenizer=tokenizer, device="cpu", dtype=hf.dtype
    )


def random_bridge(config: Any, tokenizer: Any = None) -> Any:
    """A bridge over a random model of any config."""
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    hf.config.architectures = [type(hf).__name__]
    return bridged(hf.eval(), tokenizer or boot(_folder("llama", torch.float32))[1])


def tiny_lens(arch: str, dtype: torch.dtype = torch.float32) -> Lens:
    """A fresh lens over a tiny random model."""
    bridge, tokenizer = boot(_folder(arch, dtype))
    return Lens(bridge, tokenizer, name=f"tiny-{arch}")


@cache
def _folder(arch: str, dtype: torch.dtype) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tars_lens_tiny_"))
    return save_checkpoint(folder, arch, dtype=dtype)


def _tokenizer() -> Any:
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    words = [*special, *(f"w{i}" for i in range(WORDS))]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
