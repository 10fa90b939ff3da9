"""A tiny model that is sure of itself, a concept that it knows, and plain text, all on disk."""

import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import WORDS, save_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers

from tars_lens.concept.card import Concept
from tars_lens.method.recipe import Recipe
from tars_lens.method.settings import Settings
from tars_lens.model.loading import load
from tars_lens.text.corpus import load_corpus
from tars_lens.text.windows import cut


@dataclass(frozen=True)
class World:
    """Where everything lies.

    Attributes:
        model: A checkpoint.
        card: A card of the word that the model says most; every probe is known.
        other: A card of another word.
        corpus: A folder of text; half of it names neither concept.
        cache: A cache that is empty at first.
    """

    model: Path
    card: Path
    other: Path
    corpus: Path
    cache: Path


@cache
def world() -> World:
    """Writes a checkpoint, two cards and a corpus, once; nobody is to change them."""
    folder = Path(tempfile.mkdtemp(prefix="tars_lens_world_"))
    model = _sure(save_checkpoint(folder / "tiny-llama", "llama"))
    said = _said(model)
    first, second, *_ = sorted(said, key=lambda word: -len(said[word]))
    every = [f"w{i}" for i in range(WORDS)]
    others = [word for word in every if word not in (first, second)]
    for i in range(12):
        write_text(folder / "texts" / f"{i:02d}.txt", 3 * 256, seed=i, words=(every, others)[i % 2])
    return World(
        model,
        _card(folder / "first.toml", first, said, {first, second}),
        _card(folder / "second.toml", second, said, {first, second}),
        folder / "texts",
        folder / "cache",
    )


def prepared_world(**settings: Any) -> tuple[Recipe, Concept]:
    """What the recipe needs of the world's model, and the world's card."""
    lens = load(world().model, progress=False)
    windows = cut(lens, load_corpus(str(world().corpus)), reported_tokens=512)
    recipe = Recipe.prepared(lens, windows.statistics, Settings(**settings))
    return recipe, Concept.load(world().card)


def write_text(file: Path, count: int, *, seed: int, words: list[str]) -> None:
    """Writes so many random words to a file."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(words), (count,), generator=generator).tolist()
    file.parent.mkdir(exist_ok=True)
    file.write_text(" ".join(words[i] for i in chosen))


def save_wordy_checkpoint(folder: Path, words: int = 400) -> Path:
    """A sure model of so many words that a prompt can miss one of them by far."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    hf = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        hf.lm_head.weight.normal_(0, 1)
    hf.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0"
    ).save_pretrained(folder)
    return folder


def _sure(folder: Path) -> Path:
    """Sharpens what a random checkpoint says, so that there is something to be known."""
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 16
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _said(model: Path) -> dict[str, list[str]]:
    """Prompts of random words by the word that the model says next, where it is sure."""
    lens = load(model, progress=False)
    generator = torch.Generator().manual_seed(0)
    texts = [
        " ".join(f"w{word}" for word in row)
        for row in torch.randint(WORDS, (1500, 6), generator=generator).tolist()
    ]
    probabilities = lens.next_logits(lens.prompts(texts)).softmax(-1)
    found: dict[str, list[str]] = defaultdict(list)
    for text, p, token in zip(texts, *(v.tolist() for v in probabilities.max(-1)), strict=True):
        word = lens.string(token)
        if p > 0.5 and word.startswith("w") and word not in text.split():
            found[word].append(text)
    return found


def _card(file: Path, word: str, said: dict[str, list[str]], concepts: set[str]) -> Path:
    """A card whose splits take turns."""
    forward = [json.dumps(text) for text in said[word]]
    others = [(text, answer) for answer in said if answer not in concepts for text in said[answer]]
    pairs = {  # reverse probes name the word, neighbours don't
        named: [
            f"{{ prompt = {json.dumps(text)}, answer = {json.dumps(answer)} }}"
            for text, answer in others
            if (word in text.split()) == named
        ]
        for named in (True, False)
    }
    reverse, near = pairs[True], pairs[False]
    file.write_text(
        f'name = "The word {word}"\n'
        f'answer = "{word}"\n'
        f'names = ["{word}"]\n'
        'substitute = "w0"\n'
        f"prompt = {forward[0]}\n"
        f"prompts = [{', '.join(forward[1:4])}]\n"
        f"contrast = [{', '.join(near[:3])}]\n\n"
        "[validation]\n"
        f"forward = [{', '.join(forward[4:7])}]\n"
        f"reverse = [{', '.join(reverse[:2])}]\n"
        f"neighbour = [{', '.join(near[3:6])}]\n\n"
        "[probes]\n"
        f"forward = [{', '.join(forward[7:10])}]\n"
        f"reverse = [{', '.join(reverse[2:5])}]\n"
        f"neighbour = [{', '.join(near[6:10])}]\n\n"
        "[[probes.multilingual]]\n"
        f'language = "fr"\nprompt = {forward[10]}\nanswer = "{word}"\n'
    )
    return file
