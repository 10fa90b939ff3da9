"""Which cuts are kept: what the base model knows, and what depends on the concept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tars_lens.concept.card import substituted
from tars_lens.concept.card_making.sentences import Cut
from tars_lens.concept.probability import answer_probabilities
from tars_lens.model.lens import Lens


@dataclass(frozen=True)
class Kept:
    """A cut that the base model knows, with the probability that it gives the answer."""

    cut: Cut
    p: float


@dataclass(frozen=True)
class Chosen:
    """What came of some cuts.

    Attributes:
        kept: Known and dependent on the concept, the best known first.
        unknown: How many the base model doesn't know.
        set_phrases: How many it knows without the concept.
    """

    kept: tuple[Kept, ...]
    unknown: int
    set_phrases: int = 0


def choose(
    lens: Lens,
    cuts: Sequence[Cut],
    forms: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    substitute: str = "",
) -> Chosen:
    """Asks the base model.

    Args:
        lens: The base.
        cuts: Prompts with answers.
        forms: Further texts that answer every one of them.
        names: How the prompts name the concept, for the floor.
        substitute: What stands in the name's place in the floor's prompt; no floor without one.
    """
    distinct = list({cut.prompt: cut for cut in cuts}.values())
    if not distinct:
        return Chosen((), 0)
    answers = [(cut.answer, *forms) for cut in distinct]
    said = answer_probabilities(lens, [cut.prompt for cut in distinct], answers)
    known = [
        Kept(cut, p)
        for cut, p, knows in zip(distinct, said.probability.tolist(), said.known, strict=True)
        if knows
    ]
    unknown = len(distinct) - len(known)
    kept = known
    if substitute and known:
        floors = [substituted(k.cut.prompt, names, substitute) for k in known]
        found = answer_probabilities(lens, floors, [(k.cut.answer,) for k in known])
        pairs = zip(known, found.probability.tolist(), strict=True)
        kept = [k for k, floor in pairs if floor <= k.p / 2]
    kept.sort(key=lambda k: -k.p)
    return Chosen(tuple(kept), unknown, len(known) - len(kept))


Split = Literal["prompts", "probes", "validation"]
"""What the vector is made from, what is reported, what settings are chosen on."""


def dealt(
    kept: Sequence[Kept],
    sizes: Mapping[Split, int],
    placed: Mapping[str, Split] | None = None,
    each: int = 2,
) -> dict[Split, list[Kept]]:
    """Deals cuts into splits in turn, all of one sentence into one split.

    Args:
        kept: The best first.
        sizes: The most that each split takes, in the order in which they are served.
        placed: Sentences of which other cuts stand in a split already: theirs go there too, or
            nowhere.
        each: The most cuts of one sentence.
    """
    by_sentence: dict[str, list[Kept]] = {}
    for one in kept:
        by_sentence.setdefault(one.cut.sentence, []).append(one)
    splits: dict[Split, list[Kept]] = {split: [] for split in sizes}
    for sentence, group in by_sentence.items():
        own = (placed or {}).get(sentence)
        open_splits = [
            split
            for split, size in sizes.items()
            if len(splits[split]) < size and own in (None, split)
        ]
        if open_splits:
            # the emptiest by share, so that a small card still has something in each split
            place = min(open_splits, key=lambda split: len(splits[split]) / sizes[split])
            splits[place] += group[: min(each, sizes[place] - len(splits[place]))]
    return splits


def places(splits: Mapping[Split, Sequence[Kept]]) -> dict[str, Split]:
    """The split of each sentence that was dealt."""
    return {one.cut.sentence: split for split, rows in splits.items() for one in rows}
