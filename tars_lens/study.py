"""What the base model shows of a concept, gathered before the first edit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept import Concept, Probe
from tars_lens.discriminant import Discriminant, discriminant, held_out_scores
from tars_lens.forms import first_tokens
from tars_lens.leading import check_leads
from tars_lens.lens import Lens, Point
from tars_lens.neutral import Neutral
from tars_lens.settings import Settings
from tars_lens.unembedding import Unembedding

_KNOWN = 0.05
_NEAREST_TOKENS = 24
_TOP_PREDICTIONS = 16
_NEAREST_NAMES = 12
_COPIED = 8
_NEAR_TEXTS = 4
_READABLE = 0.03

FRAMES = (
    "I read about {}",
    "The {}",
    "Let me tell you about {}",
    "We talked about {}",
    "This is a text about {}",
    "A short note on {}",
    "Everybody has heard of {}",
    "My question is about {}",
)
"""Neutral contexts for a name; it never stands at position 0, which many models treat apart."""

COPIES = (
    "{0}, {0}, {0},",
    "The word is {0}. Again, the word is",
    "1. {0}\n2. {0}\n3.",
    "{0} and {0} and",
    "Answer: {0}\nAnswer: {0}\nAnswer:",
)
"""Texts that go on with a name because they have said it before."""

BEGINNINGS = ("{} is the", "{} is known for", "{} was")
"""Beginnings of texts about anything."""


class Reach(NamedTuple):
    """The least score of a reader at a concept prompt: seen, and held out."""

    seen: float
    unseen: float


@dataclass(frozen=True)
class Study:
    """All that an edit of one concept is made from.

    Attributes:
        concept: The card.
        tokens: First tokens of its surface forms.
        neighbours: Tokens whose logits are to stay.
        known_prompts: The concept prompts where the base knows the answer.
        write_target: The direction that speaks the concept's token and no other (unit norm).
        forward: Readers of the description at each forward layer, the preferred one first.
        reach: For each of them the least score at a concept prompt: of those that it is made from,
            and of one that is held out.
        reverse: A reader of the name at each reverse layer.
        reverse_targets: What the concept's main names have in the residual stream after each
            reverse layer that the near names have not.
        reverse_norms: Median residual norm at the main names, after each reverse layer.
        main_names: The names that are the card's name or answer: those that texts in the
            answer's own language use.
        near_names: The neighbours' names that the reverse reader tells the concept from.
        near_texts: Beginnings of texts about them, which are to go on as they did.
    """

    concept: Concept
    tokens: tuple[int, ...]
    neighbours: tuple[int, ...]
    known_prompts: tuple[str, ...]
    write_target: Float[Tensor, " d_model"]
    forward: dict[int, tuple[Discriminant, ...]]
    reach: dict[int, tuple[Reach, ...]]
    reverse: dict[int, Discriminant]
    reverse_targets: dict[int, Float[Tensor, " d_model"]]
    reverse_norms: dict[int, float]
    main_names: tuple[str, ...]
    near_names: tuple[str, ...]
    near_texts: tuple[str, ...]


def study(
    lens: Lens, concept: Concept, neutral: Neutral, unembedding: Unembedding, settings: Settings
) -> Study:
    """Gathers a concept's readers and write targets from the base model.

    Args:
        lens: The base model, before any edit.
        concept: The card; its probes are not looked at.
        neutral: Statistics of plain text at the layers of `settings`.
        unembedding: Statistics of the unembedding.
        settings: Depths and ridges.

    Raises:
        TarsError: No prompt of the card leads to the concept.
    """
    tokens = tuple(first_tokens(lens, concept))
    check_leads(lens, concept, concept.concept_prompts, tokens)
    prompts, predictions = _known_prompts(lens, concept.concept_prompts, tokens)
    nearest = unembedding.nearest_words(tokens, max(_NEAREST_TOKENS, 4 * _NEAREST_NAMES))
    neighbours = _neighbour_tokens(
        lens, unembedding, tokens, nearest[:_NEAREST_TOKENS], predictions, concept.contrast
    )
    names = _near_names(lens, concept, nearest)
    reverse_layers = settings.reverse_layers(lens.n_layers)
    main = main_names(concept)
    others = [n for n in concept.names if n not in main and _distinct(lens, n)]
    own = _at_names(lens, [*main, *others], reverse_layers)
    near = _at_names(lens, names, reverse_layers)
    forward = _forward_readers(lens, concept, prompts, names, neutral, settings)
    return Study(
        concept=concept,
        tokens=tokens,
        neighbours=neighbours,
        known_prompts=prompts,
        write_target=unembedding.write_target(
            tokens,
            neighbours,
            ridge=settings.write_ridge,
            neighbour_weight=settings.neighbour_weight,
        ),
        forward={layer: readers for layer, (readers, _) in forward.items()},
        reach={layer: reach for layer, (_, reach) in forward.items()},
        reverse={
            layer: discriminant(
                own[Point("mlp_in", layer)].split(len(FRAMES)),  # one form of the name each
                near[Point("mlp_in", layer)],
                *neutral.of(layer),
                ridge=settings.reverse_ridge,
            )
            for layer in reverse_layers
        },
        reverse_targets={
            layer: _main(own, layer, main).mean(0) - _mean(near[_after(layer)])
            for layer in reverse_layers
        },
        reverse_norms={
            layer: float(_main(own, layer, main).norm(dim=-1).median()) for layer in reverse_layers
        },
        main_names=main,
        near_names=names,
        near_texts=tuple(text.format(n) for n in names[:_NEAR_TEXTS] for text in BEGINNINGS),
    )


def main_names(concept: Concept) -> tuple[str, ...]:
    """The names that are the card's name or answer, else the first name.

    A name in another script has a trace of its own (cosine 0 to 0.3 with that of the main name,
    SmolLM2-135M, layer 2): the mean over all of them is no name's.
    """
    own = {concept.name.casefold(), concept.answer.casefold()}
    return tuple(n for n in concept.names if n.casefold() in own) or concept.names[:1]


def _distinct(lens: Lens, name: str) -> bool:
    """Whether a name's last token tells it from other words.

    Where a tokenizer spells a script in bytes, the last one or two letters end many words: read
    early, they would be taken for the name in any text of that script.
    """
    last = name.split()[-1]
    token = lens.string(lens.pieces(f" {name}")[-1]).strip()
    return "\ufffd" not in token and 2 * len(token) > len(last)


def _forward_readers(
    lens: Lens,
    concept: Concept,
    prompts: Sequence[str],
    near_names: Sequence[str],
    neutral: Neutral,
    settings: Settings,
) -> dict[int, tuple[tuple[Discriminant, ...], tuple[Reach, ...]]]:
    """Readers at the layer where the concept first becomes readable, and at the last layer.

    The first of each layer is made from the concept prompts; the second from copies of the answer
    too. It reads descriptions unlike the card's (oxygen on Gemma-3-270M: 0.00 left on prompts it
    has not seen, where the first leaves 0.03), and disturbs other text more.
    """
    last = lens.n_layers - 1
    layers = sorted({_first_readable(lens, concept, prompts, settings), last})
    points = [Point("mlp_in", layer) for layer in layers]
    own = _at_end(lens, prompts, points)
    near = _at_end(lens, [probe.prompt for probe in concept.contrast], points)
    copies = _at_end(lens, [text.format(concept.answer) for text in COPIES], points)
    names = near_names[:_COPIED]
    others = _at_end(lens, [text.format(n) for n in names for text in COPIES[:3]], points)

    def readers(at: Point) -> tuple[tuple[Discriminant, ...], tuple[Reach, ...]]:
        plain, ridge = neutral.of(at.layer), settings.forward_ridge
        found, reach = [], []
        for forms, rest in (
            ([own[at]], near[at]),
            ([own[at], copies[at]], torch.cat([near[at], others[at]])),
        ):
            found.append(discriminant(forms, rest, *plain, ridge=ridge))
            unseen = held_out_scores(own[at], rest, *plain, ridge=ridge)
            reach.append(Reach(float(found[-1].score(own[at]).min()), float(unseen.min())))
        return tuple(found), tuple(reach)

    return {at.layer: readers(at) for at in points}


def _first_readable(
    lens: Lens, concept: Concept, prompts: Sequence[str], settings: Settings
) -> int:
    """The first layer after which the logit lens reads the concept, within the depths allowed."""
    layers = settings.readable_layers(lens.n_layers)
    tokens = first_tokens(lens, concept)
    points = [_after(layer) for layer in layers]
    seen = _at_end(lens, prompts, points)
    for layer, point in zip(layers, points, strict=True):
        mass = lens.read_out(seen[point]).softmax(dim=-1)[:, tokens].sum(dim=1)
        if float(mass.max()) > _READABLE:
            return layer
    return layers[-1]


def _known_prompts(
    lens: Lens, prompts: Sequence[str], tokens: Sequence[int]
) -> tuple[tuple[str, ...], list[int]]:
    """The prompts that lead to the concept, or the best one; and the top predictions of all."""
    probabilities = lens.next_logits(lens.prompts(prompts)).softmax(dim=-1)
    mass = probabilities[:, list(tokens)].sum(dim=1)
    known = [p for p, share in zip(prompts, mass.tolist(), strict=True) if share >= _KNOWN]
    top = probabilities.topk(_TOP_PREDICTIONS).indices.flatten().tolist()
    return tuple(known) or (prompts[int(mass.argmax())],), top


def _neighbour_tokens(
    lens: Lens,
    unembedding: Unembedding,
    tokens: Sequence[int],
    nearest: Sequence[int],
    predictions: Sequence[int],
    contrast: Sequence[Probe],
) -> tuple[int, ...]:
    answers = [lens.pieces(f" {probe.answer.strip()}")[0] for probe in contrast]
    found = dict.fromkeys([*nearest, *predictions, *answers])
    return tuple(t for t in found if not unembedding.is_variant(t, tokens))


def _near_names(lens: Lens, concept: Concept, nearest: Sequence[int]) -> tuple[str, ...]:
    """Names of the concept's kind: the card's first, then the nearest words of the vocabulary."""
    listed = [concept.substitute, *(probe.answer for probe in concept.contrast)]
    words = [lens.string(token).strip() for token in nearest]
    own = {name.casefold() for name in (*concept.names, *concept.surface_forms)}
    found = dict.fromkeys(n.strip() for n in [*listed, *words] if n.strip())
    return tuple(n for n in found if n.casefold() not in own)[:_NEAREST_NAMES]


def _at_names(
    lens: Lens, names: Sequence[str], layers: Sequence[int]
) -> dict[Point, Float[Tensor, "examples d_model"]]:
    texts = [frame.format(name) for name in names for frame in FRAMES]
    points = [p for layer in layers for p in (Point("mlp_in", layer), _after(layer))]
    return _at_end(lens, texts, points)


def _at_end(
    lens: Lens, texts: Sequence[str], points: Sequence[Point]
) -> dict[Point, Float[Tensor, "examples d_model"]]:
    """What passes the points at the last token of each text."""
    if not texts:
        empty = torch.zeros(0, lens.d_model, device=lens.device)
        return dict.fromkeys(points, empty)
    batch = lens.prompts(texts)
    return lens.capture(batch.ids, points, positions=batch.last)


def _main(
    own: dict[Point, Float[Tensor, "examples d_model"]], layer: int, main: Sequence[str]
) -> Float[Tensor, "examples d_model"]:
    """What follows a layer at the main names, which come first among a concept's own."""
    return own[_after(layer)][: len(main) * len(FRAMES)].float()


def _mean(states: Float[Tensor, "examples d_model"]) -> Float[Tensor, " d_model"]:
    """The mean, 0 where there are none."""
    return states.float().sum(dim=0) / max(len(states), 1)


def _after(layer: int) -> Point:
    return Point("resid_post", layer)
