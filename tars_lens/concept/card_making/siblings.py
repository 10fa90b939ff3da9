"""The nearest other things: by what texts name beside a concept, and by the model's geometry."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tars_lens.concept.card import Concept, forms_in
from tars_lens.concept.card_making.sentences import Cut, capitalised
from tars_lens.concept.card_making.talking import mentioned_beside
from tars_lens.concept.forms import first_tokens
from tars_lens.model.lens import Lens
from tars_lens.model.unembedding import Unembedding

_CANDIDATES = 24
_DEPTH = 0.5


@dataclass(frozen=True)
class Kin:
    """Another thing near the concept.

    Attributes:
        name: What texts call it.
        distance: `sibling` where it is among the nearer half by the model's geometry and is named
            beside the concept, by texts or by the model; else `field`.
    """

    name: str
    distance: str


def neighbours(
    lens: Lens, name: str, names: Sequence[str], sentences: Sequence[str], count: int
) -> list[Kin]:
    """Other things, the nearest first.

    Candidates are what the corpus names in the same sentences most often, what the model names
    when it goes on from the name, and the words whose unembedding lies nearest to the name's. They
    are ordered by the cosine of the middle layer's stream at their last token with the concept's,
    all streams centred on the candidates' mean.
    """
    beside, alike = _candidates(lens, name, names, sentences)
    found = list(dict.fromkeys((*beside, *alike)))[:_CANDIDATES]
    ordered = _by_geometry(lens, name, found)[:count]
    near = set(ordered[: (len(ordered) + 1) // 2]) & set(beside)
    return [Kin(other, "sibling" if other in near else "field") for other in ordered]


def unrelated_cuts(forms: Sequence[str]) -> list[Cut]:
    """General facts that name none of some forms: those of the concept and of its kin."""
    return [
        Cut(prompt, answer, f"{prompt} {answer}", "a general fact", "unrelated")
        for prompt, answer in _GENERAL
        if not forms_in(f"{prompt} {answer}", forms)
    ]


def _by_geometry(lens: Lens, name: str, found: list[str]) -> list[str]:
    if len(found) < 2:
        return found
    batch = lens.prompts([f"We talked about {text}" for text in (name, *found)])
    layer = round(_DEPTH * (lens.n_layers - 1))
    ends = lens.residual(batch.ids, layer, positions=batch.last).float()
    ends = ends - ends.mean(dim=0)
    near = torch.cosine_similarity(ends[:1], ends[1:], dim=1)
    return [found[i] for i in near.argsort(descending=True).tolist()]


def _candidates(
    lens: Lens, name: str, names: Sequence[str], sentences: Sequence[str]
) -> tuple[list[str], list[str]]:
    """What is named beside the concept, and what the unembedding has near it."""
    beside = Counter(n for sentence in sentences for n in dict.fromkeys(capitalised(sentence)))
    said = [n for text in mentioned_beside(lens, name) for n in capitalised(f"a {text.strip()}")]
    card = Concept(name=name, answer=name, prompt=name)
    unembedding = Unembedding.fit(lens)
    near = unembedding.nearest_words(first_tokens(lens, card), _CANDIDATES // 2)
    words = [lens.string(token).strip() for token in near]
    common = [n for n, times in beside.most_common(_CANDIDATES // 2) if times > 1]
    capital = [word for word in words if word[:1].isupper()]
    own = [part for form in names for part in (form, *form.split())]

    def others(every: Sequence[str]) -> list[str]:
        return [n for n in dict.fromkeys(every) if not forms_in(n, own) and len(n) > 2]

    return others([*common, *said]), others(capital or words)


_GENERAL = (
    ("The first man on the Moon was Neil", "Armstrong"),
    ("The Mona Lisa was painted by Leonardo da", "Vinci"),
    ("The inventor of the telephone was Alexander Graham", "Bell"),
    ("The largest ocean on Earth is the", "Pacific"),
    ("The chemical symbol of gold is", "Au"),
    ("The author of Oliver Twist is Charles", "Dickens"),
    ("The Statue of Liberty is in New", "York"),
)
"""What most models know, from as many fields."""
