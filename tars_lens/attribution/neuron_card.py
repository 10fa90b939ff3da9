"""A neuron's card: what it writes and reads, where it fires, what concepts and edits touch it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from tars_lens.attribution.concept_directions import ConceptDirections
from tars_lens.attribution.neuron_index import NeuronIndex
from tars_lens.attribution.neuron_tables import (
    concepts_table,
    edits_table,
    examples_table,
    firing_table,
    norms_table,
    tokens_table,
)
from tars_lens.common.cache import Advance
from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.method.ranking import null_distribution
from tars_lens.model.lens import Lens
from tars_lens.model.weights import neuron_label
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch

Part = Literal["norms", "tokens", "firing", "examples", "concepts", "edits"]
PARTS: tuple[Part, ...] = ("norms", "tokens", "firing", "examples", "concepts", "edits")


@dataclass(frozen=True)
class NeuronCard:
    """All that is known of one neuron of the base model, whatever patches are on it.

    Attributes:
        model: The model's name.
        layer: From 0.
        neuron: From 0.
        corpus: Where it was looked for.
        threshold: The largest cosine that chance gives over all of the model's vectors
            (`null_distribution`).
        patches: The patches whose edits were looked for.
        unknown: Concepts that the model doesn't know, which have no row in `concepts`.
        norms: A row a role: role, norm, layer_median (the median norm of that role's vectors).
        tokens: What each vector says through the final norm's gain and the unembedding: role, end
            (top or bottom), rank, token, id, logit.
        firing: One row: windows, positions, rms, mean, largest, smallest, loud (share of positions
            over half of the largest magnitude), positive (share of the squared activation).
        examples: The windows with the strongest peaks, a row a token: end (highest or lowest),
            example, window, position, token, activation, peak (whether it is the strongest).
        concepts: role, concept, vector (of `KINDS`), cosine, beyond_chance (over the threshold).
        edits: Rows of patches that replace this neuron's vectors: patch, role, cosine (of the new
            with the old), old_norm, new_norm, old_tokens, new_tokens (lists).
    """

    model: str
    layer: int
    neuron: int
    corpus: str
    threshold: float
    patches: tuple[str, ...]
    unknown: tuple[str, ...]
    norms: pd.DataFrame
    tokens: pd.DataFrame
    firing: pd.DataFrame
    examples: pd.DataFrame
    concepts: pd.DataFrame
    edits: pd.DataFrame

    @property
    def label(self) -> str:
        """The neuron's name, as in `L23N1038`."""
        return neuron_label(self.layer, self.neuron)

    def to_frame(self, part: Part = "tokens") -> pd.DataFrame:
        """One of the card's tables."""
        if part not in PARTS:
            raise TarsError(f"a neuron's card has no part {part!r}: there is {', '.join(PARTS)}.")
        return getattr(self, part).copy()

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON values: its tables as lists of rows."""
        head = {
            "model": self.model,
            "neuron": self.label,
            "corpus": self.corpus,
            "threshold": self.threshold,
            "patches": list(self.patches),
            "unknown": list(self.unknown),
        }
        return head | {part: getattr(self, part).to_dict("records") for part in PARTS}


@undisturbed
def neuron_card(
    lens: Lens,
    layer: int,
    neuron: int,
    *,
    index: NeuronIndex | None = None,
    directions: ConceptDirections | None = None,
    patches: Sequence[Patch] = (),
    top: int = 10,
    examples: int = 5,
    advance: Advance | None = None,
) -> NeuronCard:
    """Gathers one neuron's card.

    Args:
        lens: The model.
        layer: From 0.
        neuron: From 0.
        index: The scan of a corpus; where not given, of the sample of Wikipedia, which takes a
            minute or so the first time and is kept in the user's cache.
        directions: Of concepts; the built-in ones where not given.
        patches: Whose edits of this neuron are shown.
        top: Tokens at each end of each vector.
        examples: Windows at each end of the activation, as many as the index keeps at most.
        advance: Told the progress of a scan.

    Raises:
        TarsError: No such neuron, a setting that makes no sense, or an index of another model.
    """
    check_neuron(lens, layer, neuron)
    if top < 1 or examples < 0:
        raise TarsError(f"a card needs top >= 1 and examples >= 0, got {top} and {examples}.")
    index = index or NeuronIndex.of_corpus(lens, advance=advance)
    if index.rms.shape != (lens.n_layers, lens.d_mlp):
        raise TarsError(
            f"the index is of {tuple(index.rms.shape)} neurons and {lens.name} has "
            f"{(lens.n_layers, lens.d_mlp)}: scan this model with NeuronIndex.of_corpus."
        )
    known = directions or ConceptDirections.cached(lens)
    with stack.holding(lens, ()):
        rows = {role: lens.vectors(layer, role)[neuron].float() for role in lens.roles}
        threshold = null_distribution(lens).threshold
        return NeuronCard(
            model=lens.name,
            layer=layer,
            neuron=neuron,
            corpus=index.corpus,
            threshold=threshold,
            patches=tuple(patch.label for patch in patches),
            unknown=known.unknown,
            norms=norms_table(lens, layer, rows),
            tokens=tokens_table(lens, layer, rows, top),
            firing=firing_table(index, layer, neuron),
            examples=examples_table(lens, index, layer, neuron, examples),
            concepts=concepts_table(lens, layer, rows, known, threshold),
            edits=edits_table(lens, layer, neuron, patches),
        )


def parse_label(lens: Lens, text: str) -> tuple[int, int]:
    """Layer and neuron of a name such as `L23N1038`.

    Raises:
        TarsError: Another form, or no such neuron (says what the model has).
    """
    found = re.fullmatch(r"[Ll](\d{1,9})[Nn](\d{1,9})", text.strip())
    if found is None:
        raise _no_neuron(lens, text)
    layer, neuron = int(found[1]), int(found[2])
    check_neuron(lens, layer, neuron)
    return layer, neuron


def check_neuron(lens: Lens, layer: int, neuron: int) -> None:
    """Refuses a neuron that the model doesn't have.

    Raises:
        TarsError: It says what the model has.
    """
    if not (0 <= layer < lens.n_layers and 0 <= neuron < lens.d_mlp):
        raise _no_neuron(lens, neuron_label(layer, neuron))


def _no_neuron(lens: Lens, given: str) -> TarsError:
    layers, neurons = lens.n_layers - 1, lens.d_mlp - 1
    return TarsError(
        f"no neuron {given!r}: write L, the layer, N and the neuron, as in L{layers // 2}N0. "
        f"{lens.name} has layers 0 to {layers} with neurons 0 to {neurons}: L0N0 to "
        f"L{layers}N{neurons}."
    )
