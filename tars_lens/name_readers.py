"""Readers of a concept's name, where a text has just said it."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tars_lens.concept import Concept
from tars_lens.discriminant import Discriminant, discriminant
from tars_lens.forward_readers import at_end
from tars_lens.lens import Lens, Point
from tars_lens.neutral import Neutral
from tars_lens.settings import Settings

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

BARE_FRAMES = ("{}", "Here is a list.\n{}", "Question:\n{}", 'He wrote: "{}', "({}", "News.\n\n{}")
"""Contexts in which no space stands before a name, which many tokenizers then spell otherwise.

Gemma-3-270M reads "Saturn" as "Sat", "urn": a reader of " Saturn" gives it 0.2.
"""


@dataclass(frozen=True)
class NameReader:
    """What a layer shows of the concept's name.

    Attributes:
        reader: Tells it from near names and from plain text.
        target: What the main names have in the stream after the layer that near names have not.
        norm: Median residual norm there.
    """

    reader: Discriminant
    target: Float[Tensor, " d_model"]
    norm: float


@dataclass(frozen=True)
class Named:
    """How well a layer in the middle still reads the concept's main names.

    Attributes:
        layer: Which one.
        reader: Of all names, made from the base.
        forms: Texts that end in a main name, one tuple for each way of spelling it.
    """

    layer: int
    reader: Discriminant
    forms: tuple[tuple[str, ...], ...]

    def score(self, lens: Lens) -> float:
        """The mean score of the form that is read best by the model as it stands; 1 in the base."""
        point = Point("mlp_in", self.layer)
        seen = at_end(lens, [text for form in self.forms for text in form], [point])[point]
        parts = self.reader.score(seen).split([len(form) for form in self.forms])
        return max(float(part.mean()) for part in parts)


def name_readers(
    lens: Lens, concept: Concept, near_names: Sequence[str], neutral: Neutral, settings: Settings
) -> tuple[dict[int, NameReader], Named]:
    """Readers of the name at every layer where it may be stopped, and at one further on."""
    layers = settings.reverse_layers(lens.n_layers)
    further = settings.named_layer(lens.n_layers)
    points = [
        p for at in (*layers, further) for p in (Point("mlp_in", at), Point("resid_post", at))
    ]
    main = main_names(concept)
    others = [n for n in concept.names if n not in main and _distinct(lens, n)]
    bare = BARE_FRAMES if lens.begins else ()
    forms = [_texts([name], FRAMES) for name in (*main, *others)]
    forms += [_texts([name], bare) for name in main if bare]
    own = at_end(lens, [text for form in forms for text in form], points)
    near = at_end(lens, [*_texts(near_names, FRAMES), *_texts(near_names, bare)], points)
    sizes, main_count = [len(form) for form in forms], len(main) * len(FRAMES)
    near_count = len(near_names) * len(FRAMES)

    def at(layer: int) -> NameReader:
        y, after = Point("mlp_in", layer), Point("resid_post", layer)
        ridge = settings.reverse_ridge
        read = discriminant(own[y].split(sizes), near[y], *neutral.of(layer), ridge=ridge)
        said = own[after][:main_count].float()
        target = said.mean(dim=0) - _mean(near[after][:near_count])
        return NameReader(read, target, float(said.norm(dim=-1).median()))

    mains = (*forms[: len(main)], *forms[len(main) + len(others) :])
    return {layer: at(layer) for layer in layers}, Named(further, at(further).reader, mains)


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


def _texts(names: Sequence[str], frames: Sequence[str]) -> tuple[str, ...]:
    return tuple(frame.format(name) for name in names for frame in frames)


def _mean(states: Float[Tensor, "examples d_model"]) -> Float[Tensor, " d_model"]:
    """The mean, 0 where there are none."""
    return states.float().sum(dim=0) / max(len(states), 1)
