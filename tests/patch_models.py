"""Tiny random models, and patches of random rows, for the tests of patches, stacks and exports."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge

from tars_lens.lens import Lens
from tars_lens.patch import Patch
from tars_lens.weights import Edits, Place, Rows

_COMMON = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def config(arch: str) -> Any:
    """The config of a tiny model of one of the layouts that a checkpoint can have."""
    if arch == "llama":
        return transformers.LlamaConfig(**_COMMON, tie_word_embeddings=True)
    if arch == "phi3":
        return transformers.Phi3Config(**_COMMON, pad_token_id=0)
    if arch == "gemma3":
        return transformers.Gemma3TextConfig(**_COMMON, head_dim=8)
    if arch == "gpt2":
        return transformers.GPT2Config(
            vocab_size=64, n_embd=16, n_layer=3, n_head=2, n_inner=24, n_positions=64
        )
    if arch == "neox":
        without = {k: v for k, v in _COMMON.items() if k != "num_key_value_heads"}
        return transformers.GPTNeoXConfig(**without)
    if arch == "opt":
        return transformers.OPTConfig(
            vocab_size=64,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=64,
            word_embed_proj_dim=16,
            pad_token_id=1,
        )
    raise ValueError(arch)


def save_model(
    folder: Path, arch: str, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Writes a tiny random checkpoint with a tokenizer, as Hugging Face would."""
    torch.manual_seed(seed)
    hf = transformers.AutoModelForCausalLM.from_config(config(arch), attn_implementation="eager")
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    hf.to(dtype).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w3"
    ).save_pretrained(folder)
    return folder


def read_model(folder: Path) -> Any:
    """The Hugging Face model of a checkpoint, in its dtype, with eager attention."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", attn_implementation="eager"
    ).eval()


def boot(folder: Path, name: str = "tiny") -> tuple[Lens, Any]:
    """A lens over a checkpoint, and the Hugging Face model whose weights it shares."""
    hf = read_model(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.init_kwargs.setdefault("name_or_path", str(folder))
    tokenizer.init_kwargs["add_bos_token"] = False
    bridge = TransformerBridge.boot_transformers(
        name, hf_model=hf, tokenizer=tokenizer, device="cpu", dtype=hf.dtype
    )
    return Lens(bridge, tokenizer, name=name), hf


def random_edits(lens: Lens, where: dict[Place, list[int]], seed: int) -> Edits:
    """New random rows for the given neurons."""
    generator = torch.Generator().manual_seed(seed)
    return {
        place: Rows(
            torch.tensor(neurons),
            torch.randn(len(neurons), lens.d_model, generator=generator) * 0.3,
        )
        for place, neurons in where.items()
    }


def random_patch(lens: Lens, where: dict[Place, list[int]], seed: int = 0, **options: Any) -> Patch:
    """A patch of new random rows."""
    return Patch.build(lens, random_edits(lens, where, seed), seed=seed, **options)


def snapshot(lens: Lens) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    named = [*lens.model.named_parameters(), *lens.model.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two snapshots are equal bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
