"""The prompts that an explanation looks at: those of a card that the base model knows."""

from dataclasses import dataclass, replace

import pandas as pd

from tars_lens.concept.card import Concept, Probe, ProbeSet
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation.probes import base_frame
from tars_lens.model.lens import Lens

ASKED = ("forward", "reverse", "neighbour")


@dataclass(frozen=True)
class Known:
    """One concept, and those of its reported probes that the base model knows.

    Attributes:
        concept: The card.
        tokens: Its first tokens.
        frame: Of `base_frame`, set phrases left out: kind, prompt, answer, p_before, floor. The
            probe that the base model knows best comes first in each kind.
    """

    concept: Concept
    tokens: tuple[int, ...]
    frame: pd.DataFrame

    @classmethod
    def of(cls, lens: Lens, concept: Concept, probes: pd.DataFrame | None = None) -> "Known":
        """Finds what is known, or takes it from a run's `probes` table.

        Args:
            lens: The base model.
            concept: The card.
            probes: Of `base_frame`, of this concept or of several.
        """
        if probes is None:
            english = replace(concept.probes, multilingual=())
            found = base_frame(lens, concept, english)
        else:
            found = probes[probes["concept"] == concept.name]
        known = found["known"].astype(bool) & ~found["set_phrase"].astype(bool)
        rows = found[known & found["kind"].isin(ASKED)]
        rows = rows.sort_values("p_before", ascending=False, kind="stable").reset_index(drop=True)
        return cls(concept, tuple(first_tokens(lens, concept)), rows)

    def probes(self, kind: str, most: int | None = None) -> list[Probe]:
        """The known probes of a kind, those that the base model knows best first."""
        rows = self.frame[self.frame["kind"] == kind].iloc[:most]
        return [Probe(p, a) for p, a in zip(rows["prompt"], rows["answer"], strict=True)]

    def wanted(self, lens: Lens, kind: str, probe: Probe) -> tuple[int, ...]:
        """The tokens with which a probe's answer begins."""
        if kind == "forward":
            return self.tokens
        return (lens.pieces(f" {probe.answer.strip()}")[0],)

    def smaller(self, most: int) -> Concept:
        """The card with at most so many known probes a kind, and its answer in one form.

        A form that a tokenizer writes in many pieces costs as many runs, and in the English of
        these probes it is never said.
        """
        few = {kind: tuple(self.probes(kind, most)) for kind in ASKED}
        return replace(self.concept, aliases=(), probes=ProbeSet(**few))
