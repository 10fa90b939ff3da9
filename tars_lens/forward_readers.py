"""Readers of a concept's description, where its name is about to be said."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept import Concept
from tars_lens.discriminant import Discriminant, discriminant, held_out_scores
from tars_lens.forms import first_tokens
from tars_lens.leaning import joined_by, leaning, near_zero, reaching
from tars_lens.lens import Lens, Point
from tars_lens.neutral import Neutral
from tars_lens.settings import Settings

_COPIED = 8
_READABLE = 0.03

COPIES = (
    "{0}, {0}, {0},",
    "The word is {0}. Again, the word is",
    "1. {0}\n2. {0}\n3.",
    "{0} and {0} and",
    "Answer: {0}\nAnswer: {0}\nAnswer:",
)
"""Texts that go on with a name because they have said it before."""


class Reach(NamedTuple):
    """The least score of a reader at a concept prompt: seen, and held out."""

    seen: float
    unseen: float


class LateReaders(NamedTuple):
    """What a late neuron of one layer may read.

    Attributes:
        description: Readers of the description, the preferred one first.
        reach: How far each of them reaches.
        leaning: How far the model leans to the concept there, where that is read as well.
    """

    description: tuple[Discriminant, ...]
    reach: tuple[Reach, ...]
    leaning: Discriminant | None


def forward_readers(
    lens: Lens,
    concept: Concept,
    prompts: Sequence[str],
    near_names: Sequence[str],
    half: Sequence[Sequence[str]],
    towards: Float[Tensor, " d_model"] | None,
    neutral: Neutral,
    settings: Settings,
) -> dict[int, LateReaders]:
    """Readers at the layer where the concept first becomes readable, and at the last layer.

    The first of each layer is made from the concept prompts, and from names half said that a
    reader of the prompts alone would pass over; the second from copies of the answer too. That
    reads descriptions unlike the card's (oxygen on Gemma-3-270M: 0.00 left on prompts it has not
    seen, where the first leaves 0.03), and disturbs other text more.
    """
    last = lens.n_layers - 1
    seen, readable = _own(lens, concept, prompts, settings)
    points = [Point("mlp_in", layer) for layer in sorted({readable, last})]
    own = {at: seen[at] for at in points}
    near = at_end(lens, [probe.prompt for probe in concept.contrast], points)
    copies = at_end(lens, [text.format(concept.answer) for text in COPIES], points)
    names = near_names[:_COPIED]
    begun = at_end(lens, [text for form in half for text in form], points)
    sizes = [len(form) for form in half]
    read = max(settings.late_thresholds(lens.bounds_writes))
    others = at_end(lens, [text.format(n) for n in names for text in COPIES[:3]], points)
    ridge, centred = settings.forward_ridge, settings.centred

    def readers(at: Point) -> LateReaders:
        plain = neutral.of(at.layer)
        found, reach = [], []
        leading = [own[at]]
        if half:
            described = discriminant(leading, near[at], *plain, ridge=ridge, centred=centred)
            started = begun[at].split(sizes)
            leading += [form for form in started if described.score(form).mean() < read]
        for forms, rest in (
            (leading, near[at]),
            ([*leading, copies[at]], torch.cat([near[at], others[at]])),
        ):
            found.append(discriminant(forms, rest, *plain, ridge=ridge, centred=centred))
            unseen = held_out_scores(own[at], rest, *plain, ridge=ridge, centred=centred)
            reach.append(Reach(float(found[-1].score(own[at]).min()), float(unseen.min())))
        leans = None
        if towards is not None:
            zero = near_zero(near[at], plain[0])
            leans = leaning(lens, at.layer, towards, own[at], zero, found[0].bias)
        if leans is not None:
            if at.layer == last:  # which no other neuron comes after
                leans = reaching(leans, own[at], settings.forward_cap)
            if unlike := leading[1:]:
                begins = discriminant(unlike, near[at], *plain, ridge=ridge, centred=centred)
                leans = joined_by(leans, begins, torch.cat(unlike))
        return LateReaders(tuple(found), tuple(reach), leans)

    return {at.layer: readers(at) for at in points}


def _own(
    lens: Lens, concept: Concept, prompts: Sequence[str], settings: Settings
) -> tuple[dict[Point, Float[Tensor, "prompts d_model"]], int]:
    """What MLPs read at the end of the concept prompts, and where a late neuron comes first.

    That is the first layer after which the logit lens reads the concept, within the depths allowed.
    """
    layers = settings.readable_layers(lens.n_layers)
    tokens = first_tokens(lens, concept)
    inputs = [Point("mlp_in", layer) for layer in {*layers, lens.n_layers - 1}]
    points = [Point("resid_post", layer) for layer in layers]
    seen = at_end(lens, prompts, [*inputs, *points])
    for layer, point in zip(layers, points, strict=True):
        mass = lens.read_out(seen[point]).softmax(dim=-1)[:, tokens].sum(dim=1)
        if float(mass.max()) > _READABLE:
            return seen, layer
    return seen, layers[-1]


def at_end(
    lens: Lens, texts: Sequence[str], points: Sequence[Point]
) -> dict[Point, Float[Tensor, "examples d_model"]]:
    """What passes the points at the last token of each text."""
    if not texts:
        empty = torch.zeros(0, lens.d_model, device=lens.device)
        return dict.fromkeys(points, empty)
    batch = lens.prompts(texts)
    return lens.capture(batch.ids, points, positions=batch.last)
