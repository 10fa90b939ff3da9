"""`make_card`: a name in, a card out, with an account of where it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tars_lens.common.cache import Advance, silent
from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept, forms_in
from tars_lens.concept.card_making.choosing import Chosen, Kept, Split, choose, dealt, places
from tars_lens.concept.card_making.sentences import (
    INSIDE,
    Cut,
    forward_cuts,
    reverse_cuts,
    sentences_of,
)
from tars_lens.concept.card_making.siblings import Kin, neighbours, unrelated_cuts
from tars_lens.concept.card_making.talking import talk
from tars_lens.concept.card_making.writing import toml_text
from tars_lens.model.lens import Lens
from tars_lens.text.corpus import Corpus, load_corpus

FEWEST_SENTENCES = 12
"""With fewer sentences in the corpus, the model's own text serves as well."""

_OPENINGS = 16
_KIN = 5
_KIN_OPENINGS = 5
_FORWARD: dict[Split, int] = {"prompts": 7, "probes": 8, "validation": 4}  # served in this order
_REVERSE: dict[Split, int] = {"probes": 8, "validation": 4}
_NEIGHBOUR: dict[Split, int] = {"prompts": 4, "probes": 8, "validation": 5}
_UNRELATED: dict[Split, int] = {"probes": 2, "validation": 1}


@dataclass(frozen=True)
class Draft:
    """A card that was made, and what was dropped on the way.

    Attributes:
        table: The card, as `Concept.from_dict` takes it.
        notes: One line each: sources, counts, what was dropped.
        dropped: Counts by name.
    """

    table: dict[str, Any]
    notes: tuple[str, ...]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def concept(self) -> Concept:
        """The card."""
        return Concept.from_dict(self.table, where="the card that was made")

    def to_toml(self) -> str:
        """The card as a person would write it, with the notes as comments."""
        return toml_text(self.table, self.notes)


@undisturbed
def make_card(
    lens: Lens, name: str, corpus: Corpus | None = None, *, advance: Advance | None = None
) -> Draft:
    """Makes a card for a name, from a corpus and from what the model says.

    Args:
        lens: The base model, which decides what is known.
        name: The concept's name, in the spelling that a text would use.
        corpus: Where it may be mentioned; the built-in sample of Wikipedia by default.
        advance: Told of the progress.

    Raises:
        TarsError: An empty name, or no prompt at all that leads the model to it.
    """
    say = advance or silent
    name = " ".join(name.split())
    if not name:
        raise TarsError("a card needs a name: tars-lens card 'Marie Curie'.")
    corpus, names = corpus or load_corpus(), _names(name)
    say("reading the corpus", 0, 4)
    found = list(sentences_of(corpus.documents, names))
    own = len(found) < FEWEST_SENTENCES
    say("listening to the model", 1, 4)
    said = list(sentences_of(talk(lens, [name], openings=_OPENINGS), names)) if own else []
    sentences = [*found, *(s for s in said if s not in found)]
    say("finding its neighbours", 2, 4)
    kin = neighbours(lens, name, names, sentences, _KIN)
    substitute = kin[0].name if kin else ""
    say("asking the model", 3, 4)
    forward = choose(lens, [c for s in sentences for c in forward_cuts(s, name, names)], names)
    plain = tuple(one for one in forward.kept if one.cut.kind != INSIDE)
    forward = replace(forward, kept=plain or forward.kept)
    reverse = choose(
        lens,
        [c for s in sentences for c in reverse_cuts(s, names)],
        names=names,
        substitute=substitute,
    )
    near = choose(lens, _near_cuts(lens, corpus, kin, names))
    far = choose(lens, unrelated_cuts((*names, *(one.name for one in kin))))
    say("asking the model", 4, 4)
    if not forward.kept:
        raise TarsError(
            f"nothing leads {lens.name} to {name!r}: {forward.unknown} prompts were tried, cut "
            f"from {len(found)} sentences of {corpus.name} and {len(said)} of the model's own. It "
            "may not know it; else give a corpus that tells of it (--corpus), or write a card."
        )
    table = _table(name, names, substitute, forward.kept, reverse.kept, near.kept, far.kept)
    notes = _notes(lens, corpus, len(found), len(said), kin, (forward, reverse, near))
    dropped = {
        "unknown_forward": forward.unknown,
        "unknown_reverse": reverse.unknown,
        "set_phrases": reverse.set_phrases,
        "unknown_neighbour": near.unknown,
    }
    return Draft(table, notes, dropped)


def _names(name: str) -> tuple[str, ...]:
    """The name, and its last word where that is a name by itself ("Curie")."""
    words = name.split()
    last = words[-1]
    alone = len(words) > 1 and last[0].isupper() and len(last) > 3
    return (name, last) if alone else (name,)


def _near_cuts(lens: Lens, corpus: Corpus, kin: Sequence[Kin], names: Sequence[str]) -> list[Cut]:
    """Prompts about the neighbours that neither name the concept nor answer with it."""
    texts = talk(lens, [one.name for one in kin], openings=_KIN_OPENINGS) if kin else []
    cuts: list[Cut] = []
    for one in kin:
        for sentence in sentences_of([*corpus.documents[:200], *texts], [one.name]):
            if not forms_in(sentence, names):
                found = reverse_cuts(sentence, [one.name])[:2]
                cuts += [replace(cut, distance=one.distance) for cut in found]
            if len(cuts) > 200:
                return cuts
    return cuts


def _table(
    name: str,
    names: Sequence[str],
    substitute: str,
    forward: Sequence[Kept],
    reverse: Sequence[Kept],
    near: Sequence[Kept],
    far: Sequence[Kept],
) -> dict[str, Any]:
    """The card; the best known prompt of all is the one that the vector is made from."""
    onto = dealt(forward, _FORWARD)
    known = dealt(reverse, _REVERSE, places(onto))
    beside, apart = dealt(near, _NEIGHBOUR), dealt(far, _UNRELATED)
    vector = onto["prompts"]
    table: dict[str, Any] = {"name": name, "answer": name}
    if len(names) > 1:
        table["aliases"] = list(names[1:])
    table["names"] = list(names)
    if substitute:
        table["substitute"] = substitute
    table["prompt"] = vector[0].cut.prompt
    table["prompts"] = [one.cut.prompt for one in vector[1:]]
    table["contrast"] = _pairs(beside["prompts"])
    splits: tuple[Split, ...] = ("validation", "probes")
    for split in splits:
        table[split] = {
            "forward": [one.cut.prompt for one in onto[split]],
            "reverse": _pairs(known[split]),
            "neighbour": _marked([*beside[split], *apart[split]]),
        }
    return table


def _pairs(kept: Sequence[Kept]) -> list[dict[str, str]]:
    return [{"prompt": one.cut.prompt, "answer": one.cut.answer} for one in kept]


def _marked(kept: Sequence[Kept]) -> list[dict[str, str]]:
    """Neighbours' pairs, each with how near its thing is to the concept."""
    pairs = zip(_pairs(kept), kept, strict=True)
    return [{**pair, "distance": one.cut.distance} for pair, one in pairs]


def _notes(
    lens: Lens,
    corpus: Corpus,
    found: int,
    said: int,
    kin: Sequence[Kin],
    chosen: tuple[Chosen, Chosen, Chosen],
) -> tuple[str, ...]:
    forward, reverse, near = chosen
    notes = [
        f"Made for {lens.name} from {found} sentences of {corpus.name}"
        + (f" and {said} of the model's own greedy text." if said else "."),
    ]
    if said:
        notes.append(
            "The corpus says little of it, so the model's own words serve: they are what it "
            "believes, true or not."
        )
    notes += [
        f"Forward: {len(forward.kept)} known, {forward.unknown} dropped as unknown to the model.",
        f"Reverse: {len(reverse.kept)} known, {reverse.unknown} dropped as unknown, "
        f"{reverse.set_phrases} as set phrases that need no concept.",
        f"Neighbours: {_listed(kin) or 'none found'}; {len(near.kept)} prompts known, "
        f"{near.unknown} dropped.",
        "No sentence stands in two of: prompts, validation, probes. Mend what reads badly.",
    ]
    return tuple(notes)


def _listed(kin: Sequence[Kin]) -> str:
    return ", ".join(f"{one.name} ({one.distance})" for one in kin)
