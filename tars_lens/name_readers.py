"""Readers of a concept's name, where a text has just said it."""

from collections.abc import Iterable, Sequence
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

BARE_FRAMES = ("Here is a list.\n{}", "Question:\n{}", 'He wrote: "{}', "({}", "News.\n\n{}")
"""Contexts in which no space stands before a name, which many tokenizers then spell otherwise.

SmolLM2-135M and Gemma-3-270M read "Saturn" as "Sat", "urn": a reader of " Saturn" gives it 0.05
and 0.2. A name that begins a text is a context of its own (`_begun`).
"""

Form = tuple[str, ...]
"""Texts that end in one spelling of a name."""


@dataclass(frozen=True)
class NameTexts:
    """Texts that have just said a name, by how they say it.

    Attributes:
        main: The concept's main names after a space, a form for each.
        others: Its other names that can be read, and main ones that begin a sentence.
        bare: Names that no space stands before, and names that begin a text.
        near: Near names after a space.
        near_bare: The same names as the concept's in `bare`.
    """

    main: tuple[Form, ...]
    others: tuple[Form, ...]
    bare: tuple[Form, ...]
    near: Form
    near_bare: Form

    @classmethod
    def of(cls, lens: Lens, concept: Concept, near_names: Sequence[str]) -> "NameTexts":
        """The texts for a card; no text is run.

        Args:
            lens: Whose tokenizer says which names can be read where.
            concept: The card.
            near_names: What its names are to be told from.
        """
        main = main_names(concept)
        read = [n for n in concept.names if n not in main and _distinct(lens, n)]
        spelt = [n for n in concept.names if n in main or (n in read and _spells(n, main))]
        begun = _sentence_starts(lens, spelt)
        others = dict.fromkeys([*read, *(n for n in begun if n not in concept.names)])
        bare = dict.fromkeys([*begun, *main, *read])
        near_begun = _sentence_starts(lens, near_names)
        return cls(
            main=tuple(_texts([name], FRAMES) for name in main),
            others=tuple(_texts([name], FRAMES) for name in others),
            bare=(
                *((name,) for name in _begun(lens, bare)),
                *(_texts([name], BARE_FRAMES) for name in _spelt_bare(lens, bare)),
            ),
            near=_texts(near_names, FRAMES),
            near_bare=(
                *_begun(lens, near_begun),
                *_texts(_spelt_bare(lens, near_begun), BARE_FRAMES),
            ),
        )

    @property
    def own(self) -> tuple[Form, ...]:
        """All forms of the concept's names."""
        return (*self.main, *self.others, *self.bare)

    @property
    def every(self) -> list[str]:
        """All texts, in the order of the fields."""
        return [*(text for form in self.own for text in form), *self.near, *self.near_bare]


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
    forms: tuple[Form, ...]

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
    texts = NameTexts.of(lens, concept, near_names)
    sizes = [len(form) for form in texts.own]
    main_count = sum(sizes[: len(texts.main)])
    seen = at_end(lens, texts.every, points)
    own = {point: states[: sum(sizes)] for point, states in seen.items()}
    near = {point: states[sum(sizes) :] for point, states in seen.items()}

    def at(layer: int) -> NameReader:
        y, after = Point("mlp_in", layer), Point("resid_post", layer)
        ridge = settings.reverse_ridge
        read = discriminant(
            own[y].split(sizes), near[y], *neutral.of(layer), ridge=ridge, centred=settings.centred
        )
        said = own[after][:main_count].float()
        target = said.mean(dim=0) - _mean(near[after][: len(texts.near)])
        return NameReader(read, target, float(said.norm(dim=-1).median()))

    mains = (*texts.main, *texts.bare)
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
    "Saturne" ends in "ne" on SmolLM2-135M, and so does "Atarne": read there, it had a KL of 5.6.
    """
    return _tells_end(lens, name, f" {name}")


def _tells_end(lens: Lens, name: str, text: str) -> bool:
    last, token = name.split()[-1], lens.string(lens.pieces(text)[-1]).strip()
    return "\ufffd" not in token and 2 * len(token) > len(last)


def _spelt_bare(lens: Lens, names: Iterable[str]) -> tuple[str, ...]:
    """The names whose last token tells them where no space stands before.

    A tokenizer that puts a space of its own before every text has few tokens for words without
    one: "(Saturn" may end in "n", which ends other words as well.
    """
    return tuple(n for n in names if not lens.spelling.adds_space or _tells_end(lens, n, n))


def _spells(name: str, main: Sequence[str]) -> bool:
    """Whether a name has a main one in it ("elephants")."""
    return any(one.casefold() in name.casefold() for one in main)


def _sentence_starts(lens: Lens, names: Iterable[str]) -> tuple[str, ...]:
    """The names as they begin a sentence, if the tokenizer has tokens for that."""
    begun = dict.fromkeys(name[:1].upper() + name[1:] for name in names)
    unknown = lens.tokenizer.unk_token_id
    return tuple(name for name in begun if unknown not in lens.pieces(name))


def _begun(lens: Lens, names: Iterable[str]) -> tuple[str, ...]:
    """The names that can be read where they begin a text.

    Without a token of its own that begins a text, attention rests on the first one, and what that
    is can hardly be seen in the stream after two layers: a name of one token is not read there
    (nor is it much of a name to the model: "Microsoft was founded by Bill" has no Gates after it).
    """
    return tuple(name for name in names if lens.spelling.begins or len(lens.pieces(name)) > 1)


def _texts(names: Iterable[str], frames: Sequence[str]) -> Form:
    return tuple(frame.format(name) for name in names for frame in frames)


def _mean(states: Float[Tensor, "examples d_model"]) -> Float[Tensor, " d_model"]:
    """The mean, 0 where there are none."""
    return states.float().sum(dim=0) / max(len(states), 1)
