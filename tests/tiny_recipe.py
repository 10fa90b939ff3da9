"""Tiny models that are sure of themselves, a card of a word that each says, and plain transformers.

What a test compares with comes from the Hugging Face model alone: its own forward pass, its own
weights, and hooks on its own modules.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tiny import WORDS, boot, read_checkpoint, save_checkpoint
from torch import Tensor

from tars_lens.concept.card import Concept, Probe
from tars_lens.method.recipe import Recipe
from tars_lens.method.settings import Settings
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Edits

FIRST_WORD = 4
"""The id of `w0`."""

_SHARPER = 16


class Seen(NamedTuple):
    """What the plain model shows of some ids, `[texts pos width]`.

    Attributes:
        inputs: By layer, what the MLP is given.
        streams: By layer, the residual stream after it.
        logits: The model's own.
    """

    inputs: list[Tensor]
    streams: list[Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Place:
    """A model, twice, with a card and plain text.

    Attributes:
        lens: A lens over it; tests leave it as they found it.
        hf: The same weights in transformers alone.
        concept: A card of a word that it says.
        other: A card of another one.
        ids: Plain text.
    """

    lens: Lens
    hf: Any
    concept: Concept
    other: Concept
    ids: Tensor

    def recipe(self, **settings: Any) -> Recipe:
        """What the recipe needs of the model."""
        return Recipe.prepared(self.lens, self.ids, Settings(**settings))

    @property
    def token(self) -> int:
        """The concept's."""
        return ids_of(self.concept.answer)[0]

    @torch.no_grad()
    def seen(self, ids: Tensor) -> Seen:
        """A forward pass of the plain model, with hooks on its own modules."""
        inputs: list[Tensor] = []
        streams: list[Tensor] = []
        handles = []
        for layer in self.layers:
            handles.append(layer.mlp.register_forward_pre_hook(lambda _, x: inputs.append(x[0])))
            handles.append(
                layer.register_forward_hook(
                    lambda _, __, out: streams.append(out if torch.is_tensor(out) else out[0])
                )
            )
        logits = self.hf(ids).logits.float()
        for handle in handles:
            handle.remove()
        return Seen(inputs, streams, logits)

    @torch.no_grad()
    def read_out(self, stream: Tensor) -> Tensor:
        """The logit lens, by the plain model's own norm, head and soft cap."""
        logits = self.hf.lm_head(self.norm(stream)).float()
        cap = getattr(self.hf.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def layers(self) -> Any:
        """The plain model's blocks."""
        return self.hf.transformer.h if hasattr(self.hf, "transformer") else self.hf.model.layers

    @property
    def norm(self) -> Any:
        """Its final norm."""
        return self.hf.transformer.ln_f if hasattr(self.hf, "transformer") else self.hf.model.norm

    @property
    def gain(self) -> Tensor:
        """The gain of its final norm."""
        return gain_of(self.norm)

    def rows(self, layer: int, role: str) -> Tensor:
        """A live view of its weight vectors, one a neuron."""
        mlp = self.layers[layer].mlp
        if hasattr(mlp, "c_fc"):  # Conv1D has inputs by outputs
            return {"in": mlp.c_fc.weight.T, "out": mlp.c_proj.weight}[role]
        named = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}
        weight = getattr(mlp, named[role]).weight
        return weight.T if role == "out" else weight

    @contextmanager
    def holding(self, edits: Edits) -> Iterator[None]:
        """Rows in the plain model while the block runs."""
        before = {}
        with torch.no_grad():
            for place, rows in edits.items():
                before[place] = self.rows(*place)[rows.neurons].clone()
                self.rows(*place)[rows.neurons] = rows.values
            yield
            for place, values in before.items():
                self.rows(*place)[edits[place].neurons] = values

    def silenced(self, layer: int, neuron: int) -> Edits:
        """A neuron that writes nothing."""
        from tars_lens.model.weights import Rows

        width = self.rows(layer, "out").shape[1]
        return {(layer, "out"): Rows(torch.tensor([neuron]), torch.zeros(1, width))}


@cache
def sharp(arch: str, layers: int = 3) -> Place:
    """A tiny model whose final norm's gain is so large that it is sure of what it says."""
    folder = Path(tempfile.mkdtemp(prefix="tars_lens_sharp_"))
    changes = {} if layers == 3 else {"num_hidden_layers": layers}
    save_checkpoint(folder, arch, **changes)
    weights = load_file(folder / "model.safetensors")
    offset = float(arch.startswith("gemma"))  # whose norms store the gain less one
    (name,) = (n for n in weights if n.endswith(("model.norm.weight", "ln_f.weight")))
    weights[name] = _SHARPER * (weights[name] + offset) - offset
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    lens = Lens(*boot(folder))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(FIRST_WORD, FIRST_WORD + WORDS, (12, 32), generator=generator)
    hf = read_checkpoint(folder)
    said = _said(hf)
    first, second, *_ = sorted(said, key=lambda word: (-len(said[word]), word))
    return Place(lens, hf, _card(first, said), _card(second, said), ids)


def ids_of(text: str) -> list[int]:
    """The ids of some words."""
    return [FIRST_WORD + int(word[1:]) for word in text.split()]


def gain_of(norm: Any) -> Tensor:
    """The gain of a norm of transformers."""
    return norm.weight.detach() + float(type(norm).__name__.startswith("Gemma"))


@torch.no_grad()
def _said(hf: Any) -> dict[str, list[str]]:
    """Texts of random words by the word that the model says next, surest first."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(WORDS, (800, 6), generator=generator)
    p, tokens = hf(rows + FIRST_WORD).logits[:, -1].softmax(-1).max(-1)
    found: dict[str, list[str]] = defaultdict(list)
    for row in p.argsort(descending=True).tolist():
        word = f"w{int(tokens[row]) - FIRST_WORD}"
        text = [f"w{i}" for i in rows[row].tolist()]
        if tokens[row] >= FIRST_WORD and word not in text and float(p[row]) > 0.1:
            found[word].append(" ".join(text))
    return found


def _card(word: str, said: dict[str, list[str]]) -> Concept:
    near = [Probe(text, other) for other in said if other != word for text in said[other][:1]]
    return Concept(
        f"the word {word}",
        word,
        said[word][0],
        prompts=tuple(said[word][1:4]),
        names=(word,),
        substitute="w0",
        contrast=tuple(near[:3]),
        key=word,
    )
