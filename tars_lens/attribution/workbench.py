"""A model and the planted neurons of some patches, each of which can be switched off by itself."""

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from tars_lens.attribution.chat import Chat
from tars_lens.attribution.explaining.used import neurons_table, parts_table
from tars_lens.attribution.flow import propagation
from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.evaluation.subject import patched
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Edits, Place, Rows, neuron_label
from tars_lens.patch.patch import Patch


class Workbench:
    """Questions to a base and to what is left of its patches when some neurons are switched off.

    The model is its base whenever the caller has control.

    Args:
        lens: The model.
        patches: Of one base; of a shared row the later one wins.
        force: Take patches of another base.

    Raises:
        TarsError: No patch, one for another base, or one without a card.
    """

    def __init__(self, lens: Lens, patches: Sequence[Patch], *, force: bool = False) -> None:
        self.lens, self._edits = lens, patched(lens, patches, force=force).edits
        cards = [_card(patch) for patch in patches]
        self.concepts = tuple({card.name: card for card in cards}.values())
        self._vectors, self._parts = (
            neurons_table(lens, cards, patches),
            parts_table(cards, patches),
        )
        for table in (self._vectors, self._parts):
            table["label"] = list(map(neuron_label, table["layer"], table["neuron"]))
        self._whole = self._patch(self._edits)

    @property
    def neurons(self) -> pd.DataFrame:
        """One row an edited neuron.

        Returns:
            Columns neuron (as in `L29N506`), layer, concept, kind and vectors (how many of its
            rows are replaced).
        """
        by = ["label", "layer", "concept", "kind"]
        found = self._vectors.groupby(by, sort=False).size().rename("vectors").reset_index()
        return found.rename(columns={"label": "neuron"})

    def prompts(self, count: int = 6) -> list[str]:
        """Prompts of the cards' reported probes, to begin with."""
        each = max(1, count // max(1, 3 * len(self.concepts)))
        kinds = [(c.probes.forward, c.probes.reverse, c.probes.neighbour) for c in self.concepts]
        return [
            probe if isinstance(probe, str) else probe.prompt
            for found in kinds
            for probes in found
            for probe in probes[:each]
        ]

    def card(self, name: str) -> dict[str, Any]:
        """What an edited neuron reads and writes, and how strongly it answers.

        Raises:
            TarsError: No edited neuron is called that.
        """
        self._known([name])
        own, parts = (table[table["label"] == name] for table in (self._vectors, self._parts))
        places = ["label", "layer", "neuron"]
        return {
            "neuron": name,
            "vectors": own.drop(columns=places).to_dict("records"),
            "parts": parts.drop(columns=places).to_dict("records"),
        }

    @undisturbed
    def answer(self, prompt: str, off: Collection[str] = (), tokens: int = 24) -> dict[str, Any]:
        """What both models go on to say, and their likeliest next tokens.

        Args:
            prompt: Any text.
            off: Neurons that are switched off.
            tokens: Of each answer.

        Returns:
            For `base` and `edited`: `tokens` (text, probability, concept: the summed probability of
            the concepts' first tokens in its place) and `next` (token, probability).

        Raises:
            TarsError: An empty or too long prompt, or an unknown neuron.
        """
        left = self._without(off)
        chat = Chat(self.lens, [left or self._whole], max_tokens=tokens)
        chat.on = [left is not None]
        found: dict[str, Any] = {side: {"tokens": [], "next": []} for side in ("base", "edited")}
        for side, token in chat.reply(prompt):
            shown = {"text": token.text, "probability": token.probability}
            found[side]["tokens"].append({**shown, "concept": token.watched})
        for row in chat.likeliest(prompt, 6).itertuples():
            found[row.side]["next"].append({"token": row.token, "probability": row.p})
        return found

    def flow(self, prompt: str, concept: str, off: Collection[str] = ()) -> dict[str, Any]:
        """Where a concept stands in the stream, by layer and position, in both models.

        Returns:
            `tokens`, `layers` (-1 is the embedding), and `before` and `after`: a list of
            probabilities by layer, one a position.

        Raises:
            TarsError: An unknown concept or neuron, or a prompt that doesn't lead to the concept.
        """
        wanted = next((card for card in self.concepts if card.name == concept), None)
        if wanted is None:
            names = ", ".join(card.name for card in self.concepts)
            raise TarsError(f"no concept {concept!r} was removed here: there is {names}.")
        frame = propagation(self.lens, prompt, wanted, patch=self._without(off)).to_frame()
        frame["p_after"] = frame["p_after"].fillna(frame["p_before"])
        whens = {
            when: frame.pivot(index="layer", columns="position", values=f"p_{when}")
            for when in ("before", "after")
        }
        return {
            "tokens": frame.drop_duplicates("position")["token"].tolist(),
            "layers": whens["before"].index.tolist(),
            **{when: table.to_numpy().tolist() for when, table in whens.items()},
        }

    def _without(self, off: Collection[str]) -> Patch | None:
        """The patches as one, less some neurons; `None` where nothing is left."""
        if not off:
            return self._whole
        self._known(off)
        left = {place: _kept(place, rows, off) for place, rows in self._edits.items()}
        return self._patch(left) if any(len(rows.neurons) for rows in left.values()) else None

    def _patch(self, edits: Edits) -> Patch:
        return Patch.build(self.lens, edits, concepts=self.concepts)

    def _known(self, names: Collection[str]) -> None:
        there = set(self._vectors["label"])
        strange = next((name for name in names if name not in there), None)
        if strange is not None:
            raise TarsError(f"no edited neuron {strange!r}: there are {', '.join(sorted(there))}.")


def _kept(place: Place, rows: Rows, off: Collection[str]) -> Rows:
    """Those rows of a place whose neurons are not switched off."""
    keep = [i for i, n in enumerate(rows.neurons.tolist()) if neuron_label(place[0], n) not in off]
    return Rows(rows.neurons[keep], rows.values[keep])


def _card(patch: Patch) -> Concept:
    if not patch.concepts:
        raise TarsError(f"{patch.label!r} holds no concept card, so there is nothing to look for.")
    return Concept.from_dict(patch.concepts[0], where=patch.label)
