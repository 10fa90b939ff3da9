"""What each edit does: every edited vector and neuron alone, and the whole edit without it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.attribution.asked import edits_of
from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.concept.first_tokens import first_token_probability
from tars_lens.concept.probability import answer_probabilities
from tars_lens.evaluation.probes import base_frame
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Edits, Place, Rows, neuron_label, written
from tars_lens.patch.patch import Patch

_KINDS = ("forward", "reverse", "neighbour")

_Row = tuple[Place, int]
"""An edited vector: its matrix and neuron."""


@dataclass(frozen=True)
class EditEffects:
    """The effect of each edited vector and neuron on the concept's reported probes.

    Attributes:
        frame: See `to_frame`.
        known: How many known probes of each kind were asked.
    """

    frame: pd.DataFrame
    known: dict[str, int]

    def to_frame(self) -> pd.DataFrame:
        """One row for each edited vector or neuron, mode and kind of text.

        Returns:
            Columns layer, neuron, label, role (`neuron` for all rows of the neuron), mode, kind
            (forward, reverse or neighbour), p_base, p_all (with every edit), p, effect. Each `p` is
            the mean probability of the answers of the known probes, set phrases left out. In mode
            `alone` nothing else is edited, and the effect is what the edit takes away,
            `p_base - p`; in mode `left_out` everything else is, and the effect is what only this
            edit takes away, `p - p_all`. An edit is needed where its effect left out is large.
        """
        return self.frame.copy()


@undisturbed
def edit_effects(
    lens: Lens,
    patch: Patch,
    concept: Concept,
    *,
    roles: bool = True,
    first_tokens: bool = False,
) -> EditEffects:
    """Asks the card's reported probes with each edit alone, and with each left out.

    Args:
        lens: The model as it stands before the edit.
        patch: The edit.
        concept: The card; only probes that the model knows before the edit count.
        roles: Measure each vector by itself as well as each neuron's vectors together.
        first_tokens: Read the answers' first tokens alone, which takes one run a prompt.

    Raises:
        TarsError: A patch for another model or without rows, or a card none of whose probes the
            model knows.
    """
    edits = edits_of(lens, patch)
    if not edits:
        raise TarsError(f"{patch.label!r} edits nothing, so there is no effect to measure.")
    asked = _Asked.of(lens, concept, edits, first_tokens)
    every = frozenset(
        (place, neuron) for place, rows in edits.items() for neuron in rows.neurons.tolist()
    )
    base, whole = asked.answers(()), asked.answers(every)
    found = []
    for unit in _units(every):
        if not roles and unit.role != "neuron":
            continue
        for mode, rows in (("alone", unit.rows), ("left_out", every - unit.rows)):
            said = asked.answers(rows)
            for kind in asked.counts:
                p, before, after = said[kind], base[kind], whole[kind]
                effect = before - p if mode == "alone" else p - after
                found.append(
                    {
                        **{"layer": unit.layer, "neuron": unit.neuron, "label": unit.label},
                        **{"role": unit.role, "mode": mode, "kind": kind},
                        **{"p_base": before, "p_all": after, "p": p, "effect": effect},
                    }
                )
    return EditEffects(pd.DataFrame(found), asked.counts)


class _Unit(NamedTuple):
    """What is edited alone or left out: one vector, or all of a neuron's."""

    layer: int
    neuron: int
    role: str
    rows: frozenset[_Row]

    @property
    def label(self) -> str:
        return neuron_label(self.layer, self.neuron)


def _units(every: Iterable[_Row]) -> list[_Unit]:
    ordered = sorted(every)
    vectors = [
        _Unit(layer, n, role, frozenset({((layer, role), n)})) for (layer, role), n in ordered
    ]
    neurons: dict[tuple[int, int], set[_Row]] = {}
    for place, neuron in ordered:
        neurons.setdefault((place[0], neuron), set()).add((place, neuron))
    return vectors + [_Unit(k, n, "neuron", frozenset(rows)) for (k, n), rows in neurons.items()]


@dataclass
class _Asked:
    """The known probes, and what was said to them under each set of edits."""

    lens: Lens
    edits: Edits
    prompts: list[str]
    texts: list[Sequence[str]]
    kinds: pd.Series
    first: bool
    _said: dict[frozenset[_Row], dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, lens: Lens, concept: Concept, edits: Edits, first: bool) -> "_Asked":
        frame = base_frame(lens, concept)
        known = frame["known"].astype(bool) & ~frame["set_phrase"].astype(bool)
        frame = frame[known & frame["kind"].isin(_KINDS)].reset_index(drop=True)
        if not len(frame):
            raise TarsError(
                f"{lens.name} knows none of the reported probes of {concept.name!r}, so no edit "
                "can be seen to take anything away. Add probes that it knows to the card."
            )
        texts: list[Sequence[str]] = [
            concept.surface_forms if kind == "forward" else (answer,)
            for kind, answer in zip(frame["kind"], frame["answer"], strict=True)
        ]
        return cls(lens, edits, list(frame["prompt"]), texts, frame["kind"], first)

    @property
    def counts(self) -> dict[str, int]:
        return {kind: int((self.kinds == kind).sum()) for kind in _KINDS if kind in set(self.kinds)}

    def answers(self, rows: Iterable[_Row]) -> dict[str, float]:
        """The mean probability by kind with just these rows edited; one run a set of rows."""
        key = frozenset(rows)
        if key not in self._said:
            with written(self.lens, _some(self.edits, key)):
                said = self._probability()
            means = pd.Series(said.tolist()).groupby(self.kinds).mean()
            self._said[key] = {str(kind): float(mean) for kind, mean in means.items()}
        return self._said[key]

    def _probability(self) -> Float[Tensor, " prompts"]:
        if not self.first:
            return answer_probabilities(self.lens, self.prompts, self.texts).probability
        tokens = [
            list(dict.fromkeys(self.lens.pieces(f" {text.strip()}")[0] for text in texts))
            for texts in self.texts
        ]
        return first_token_probability(self.lens, self.prompts, tokens)


def _some(edits: Edits, kept: frozenset[_Row]) -> Edits:
    found = {}
    for place, rows in edits.items():
        mask = torch.tensor([(place, neuron) in kept for neuron in rows.neurons.tolist()])
        if mask.any():
            found[place] = Rows(rows.neurons[mask], rows.values[mask])
    return found
