"""The name's neuron: it reads the concept's name early, and takes away what the name stands for.

A suppression neuron stops the description from leading to the name. This one stops the name from
leading to its attributes: right after a text has said the name it writes the reversal of what the
name left in the stream.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.method.neuron import host_neuron, neuron_rows, past_post_norm, quiet_at_start
from tars_lens.method.settings import Settings
from tars_lens.model.lens import Lens, Point
from tars_lens.model.weights import Edits, written
from tars_lens.text.plain_text import PlainText

FRAMES = (
    "I read about {}",
    "The {}",
    "Let me tell you about {}",
    "A short note on {}",
    "Everybody has heard of {}",
)
"""Neutral contexts for a name; it never stands at position 0, which many models treat apart."""

BARE_FRAMES = ("Here is a list.\n{}", 'He wrote: "{}', "({}")
"""Contexts in which no space stands before a name, which many tokenizers then spell otherwise."""

OTHER_BEARERS = ("Another {}", "The old {}", "John {}", "South {}", "The second {}", "Our own {}")
"""Other things whose names end in the same word, for a name of several words."""

Form = tuple[str, ...]
"""Texts that end in one spelling of a name."""


@dataclass(frozen=True)
class NameTexts:
    """Texts that have just said a name, by how they say it.

    Attributes:
        main: The concept's main names after a space, a form for each.
        others: Its other names that can be read, and main ones that begin a sentence.
        bare: Names that no space stands before, and names that begin a text.
        near: Names that are not the concept's, after a space.
        near_bare: The near names as the concept's in `bare`.
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
            near=(*_texts(near_names, FRAMES), *_other_bearers(concept, main)),
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

    @property
    def sizes(self) -> list[int]:
        """How many of them say the name, and how many say a near one."""
        own = sum(map(len, self.own))
        return [own, len(self.every) - own]


@dataclass(frozen=True)
class NameReader:
    """What a layer shows of the concept's name.

    Attributes:
        weight: *w*: `w . (y - mean)` is about 1 where the name has just been said, 0 elsewhere.
        mean: Of *y* on plain text.
        trace: What the main names have in the stream after the layer that near names have not.
        norm: Median norm of the stream there.
    """

    weight: Float[Tensor, " d_model"]
    mean: Float[Tensor, " d_model"]
    trace: Float[Tensor, " d_model"]
    norm: float

    def score(self, y: Float[Tensor, "... d_model"]) -> Float[Tensor, "..."]:
        """About 1 at the name and 0 on plain text."""
        return (y.float() - self.mean) @ self.weight


@dataclass(frozen=True)
class NameNeuron:
    """A neuron that turns the concept's name into nothing in particular.

    Attributes:
        layer: Where it sits.
        neuron: The host that it replaces.
        reader: What it reads, and whose trace it reverses.
        edits: Its rows.
        about: What reports say of it: the score's threshold, its mean and least at texts that say
            the name (own_prompts, own_least) and largest at near names (near_most), speaks (share
            of plain text above the threshold), strength (norm of the write at score 1),
            name_still_read (the score further on; 1 in the base).
    """

    layer: int
    neuron: int
    reader: NameReader
    edits: Edits
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NameShown:
    """What the texts of a name show at the layers where a name may be stopped, and further on."""

    texts: NameTexts
    seen: dict[Point, Float[Tensor, "texts d_model"]]


def name_shown(
    lens: Lens, concept: Concept, near_names: Sequence[str], settings: Settings
) -> NameShown:
    """Runs the texts of a name through the base model."""
    texts = NameTexts.of(lens, concept, near_names)
    layers = (*settings.name_layers(lens.n_layers), settings.named_layer(lens.n_layers))
    points = [Point(kind, layer) for layer in layers for kind in ("mlp_in", "resid_post")]
    batch = lens.prompts(texts.every)
    return NameShown(texts, lens.capture(batch.ids, points, positions=batch.last))


def fit_name_reader(
    shown: NameShown, layer: int, plain: PlainText, settings: Settings
) -> NameReader:
    """Tells the name from near names and from plain text (a regularised Fisher discriminant).

    With `M = C + mean_near (y-mu)(y-mu)^T + ridge mean(diag C) I`, and `d_f` the mean of a form's
    `y - mu` as the columns of `D`: `w = M^-1 D (D^T M^-1 D + slack I)^-1 1`, so that every form
    that can be told from plain text scores about 1.
    """
    y, after = (shown.seen[Point(kind, layer)].float() for kind in ("mlp_in", "resid_post"))
    sizes = [len(form) for form in shown.texts.own]
    mean, covariance = plain.means[layer], plain.covariances[layer]
    forms = torch.stack([f.mean(dim=0) - mean for f in y[: sum(sizes)].split(sizes)], dim=1)
    near = y[sum(sizes) :] - mean
    ridge = settings.name_ridge * covariance.diagonal().mean()
    matrix = covariance + ridge * torch.eye(len(mean), device=y.device)
    matrix = matrix + near.T @ near / max(len(near), 1)
    solved = torch.linalg.solve(matrix, forms)
    gram = forms.T @ solved
    slack = settings.name_slack * torch.eye(len(gram), device=y.device)
    weight = solved @ torch.linalg.solve(gram + slack, torch.ones_like(gram[0]))
    said = after[: sum(sizes[: len(shown.texts.main)])]
    others = after[sum(sizes) :][: len(shown.texts.near)]
    return NameReader(
        weight=weight / (weight @ forms).mean(),
        mean=mean,
        trace=said.mean(dim=0) - others.sum(dim=0) / max(len(others), 1),
        norm=float(said.norm(dim=-1).median()),
    )


def name_neuron(
    lens: Lens,
    shown: NameShown,
    plain: PlainText,
    settings: Settings,
    taken: Collection[tuple[int, int]] = (),
) -> NameNeuron:
    """The neuron at the first layer after which the name is no longer read further on.

    Where there is none, at that which leaves least of it.
    """
    named = settings.named_layer(lens.n_layers)
    further = fit_name_reader(shown, named, plain, settings)
    found: list[NameNeuron] = []
    for layer in settings.name_layers(lens.n_layers):
        found.append(_neuron_at(lens, shown, layer, plain, settings, taken))
        found[-1].about["name_still_read"] = _score(lens, shown, named, further, found[-1].edits)
        if found[-1].about["name_still_read"] <= settings.unread:
            break
    return min(found, key=lambda neuron: neuron.about["name_still_read"])


def _neuron_at(
    lens: Lens,
    shown: NameShown,
    layer: int,
    plain: PlainText,
    settings: Settings,
    taken: Collection[tuple[int, int]],
) -> NameNeuron:
    reader = fit_name_reader(shown, layer, plain, settings)
    constant = plain.constant(layer, settings.constant_ridge)
    strength = settings.name_reversal * reader.norm
    if lens.bounds_writes:  # only the direction counts there, and it must outweigh the others
        strength = settings.name_bounded_strength * float(plain.mlp_norm[layer])
    slope = settings.gain / (1 - settings.name_threshold)
    shift = float(reader.weight @ reader.mean) + settings.name_threshold
    read = slope * (reader.weight - shift * constant)
    read = quiet_at_start(lens, plain, layer, read, settings)
    row = past_post_norm(lens, layer, reader.trace, settings.post_norm_ridge)
    host = host_neuron(lens, plain, layer, row, taken, settings.host_share)
    write = -strength / settings.gain * row
    edits = neuron_rows(lens, layer, host, read=read, constant=constant, write=write)
    own, near = reader.score(shown.seen[Point("mlp_in", layer)]).split(shown.texts.sizes)
    about = {
        "threshold": settings.name_threshold,
        "own_prompts": float(own.mean()),
        "own_least": float(own.min()),
        "near_most": float(near.max()) if len(near) else None,
        "speaks": float((plain.inputs[layer] @ read > 0).float().mean()),
        "strength": strength,
    }
    return NameNeuron(layer, host, reader, edits, about)


def _score(lens: Lens, shown: NameShown, layer: int, reader: NameReader, edits: Edits) -> float:
    """The mean score of the form of the name that is read best at a layer with the edits in."""
    forms = (*shown.texts.main, *shown.texts.bare)
    batch = lens.prompts([text for form in forms for text in form])
    point = Point("mlp_in", layer)
    with written(lens, edits):
        seen = lens.capture(batch.ids, [point], positions=batch.last)[point]
    parts = reader.score(seen).split([len(form) for form in forms])
    return max(float(part.mean()) for part in parts)


def main_names(concept: Concept) -> tuple[str, ...]:
    """The names that are the card's name or answer, else the first name.

    A name in another script leaves a trace of its own: the mean over all of them is no name's.
    """
    own = {concept.name.casefold(), concept.answer.casefold()}
    return tuple(n for n in concept.names if n.casefold() in own) or concept.names[:1]


def _other_bearers(concept: Concept, main: Iterable[str]) -> Form:
    """Texts about other things whose names end as a main name of several words does."""
    own = {name.casefold() for name in concept.names}
    lasts = dict.fromkeys(name.split()[-1] for name in main if len(name.split()) > 1)
    words = [word for word in lasts if word.casefold() not in own]
    names = [bearer.format(word) for word in words for bearer in OTHER_BEARERS]
    return tuple(frame.format(name) for name in names for frame in FRAMES[:2])


def _distinct(lens: Lens, name: str) -> bool:
    """Whether a name's last token tells it from other words.

    Where a tokenizer spells a script in bytes, the last one or two letters end many words: read
    early, they would be taken for the name in any text of that script.
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
    is can hardly be seen in the stream after two layers: a name of one token is not read there.
    """
    return tuple(name for name in names if lens.spelling.begins or len(lens.pieces(name)) > 1)


def _texts(names: Iterable[str], frames: Sequence[str]) -> Form:
    return tuple(frame.format(name) for name in names for frame in frames)
