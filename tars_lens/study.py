"""What the base model shows of a concept, gathered before the first edit."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tars_lens.concept import Concept, Probe
from tars_lens.discriminant import Discriminant
from tars_lens.errors import TarsError
from tars_lens.forms import first_tokens
from tars_lens.forward_readers import Reach, forward_readers
from tars_lens.half_said import half_said
from tars_lens.leading import check_leads
from tars_lens.leaning import lens_direction, reads_leaning
from tars_lens.lens import Lens
from tars_lens.name_readers import Named, NameReader, main_names, name_readers
from tars_lens.neutral import Neutral
from tars_lens.settings import Settings
from tars_lens.unembedding import Unembedding

_KNOWN = 0.05
_NEAREST_TOKENS = 24
_TOP_PREDICTIONS = 16
_NEAREST_NAMES = 12
_NEAR_TEXTS = 4

BEGINNINGS = ("{} is the", "{} is known for", "{} was")
"""Beginnings of texts about anything."""


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
        leaning: At the layers where it is read as well, how far the model leans to the concept.
        reverse: Readers of the name at each layer where it may be stopped, earliest first.
        named: What reads it further on.
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
    leaning: dict[int, Discriminant]
    reverse: dict[int, NameReader]
    named: Named
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
        TarsError: No prompt of the card leads to the concept, or one of its names is nothing to the
            tokenizer.
    """
    tokens = tuple(first_tokens(lens, concept))
    _check_spelt(lens, concept)
    next_tokens = check_leads(lens, concept, concept.concept_prompts, tokens)
    prompts, said, predictions = _known_prompts(concept.concept_prompts, next_tokens, tokens)
    nearest = unembedding.nearest_words(tokens, max(_NEAREST_TOKENS, 4 * _NEAREST_NAMES))
    neighbours = _neighbour_tokens(
        lens, unembedding, tokens, nearest[:_NEAREST_TOKENS], predictions, concept.contrast
    )
    names = _near_names(lens, concept, nearest)
    reverse, named = name_readers(lens, concept, names, neutral, settings)
    half = half_said(lens, concept, tokens)
    leans = settings.leaning and reads_leaning(lens)
    towards = lens_direction(unembedding, tokens, said) if leans else None
    forward = forward_readers(lens, concept, prompts, names, half, towards, neutral, settings)
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
        forward={layer: late.description for layer, late in forward.items()},
        reach={layer: late.reach for layer, late in forward.items()},
        leaning={layer: at.leaning for layer, at in forward.items() if at.leaning is not None},
        reverse=reverse,
        named=named,
        main_names=main_names(concept),
        near_names=names,
        near_texts=tuple(text.format(n) for n in names[:_NEAR_TEXTS] for text in BEGINNINGS),
    )


def _check_spelt(lens: Lens, concept: Concept) -> None:
    """Refuses names that a tokenizer leaves nothing of: there is no token to read them at."""
    given = [
        *(("names", name) for name in concept.names),
        *([("substitute", concept.substitute)] if concept.substitute else []),
        *(("contrast", probe.answer) for probe in concept.contrast),
    ]
    for key, text in given:
        if not all(lens.pieces(variant) for variant in (f" {text.strip()}", text.strip())):
            raise TarsError(
                f"key {key!r} of {concept.name!r} has {text!r}, which is no token at all to "
                f"{lens.name}: its tokenizer drops the whole text. Write a word that it knows, or "
                "leave it out."
            )


def _known_prompts(
    prompts: Sequence[str],
    probabilities: Float[Tensor, "prompts d_vocab"],
    tokens: Sequence[int],
) -> tuple[tuple[str, ...], Float[Tensor, " tokens"], list[int]]:
    """The prompts that lead to the concept, or the best one; how they do; all top predictions."""
    own = probabilities[:, list(tokens)]
    mass = own.sum(dim=1).tolist()
    rows = [i for i, share in enumerate(mass) if share >= _KNOWN] or [mass.index(max(mass))]
    top = probabilities.topk(_TOP_PREDICTIONS).indices.flatten().tolist()
    return tuple(prompts[i] for i in rows), own[rows].mean(dim=0), top


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
    words = [w for w in (lens.string(t).strip() for t in nearest) if lens.pieces(w)]
    own = {name.casefold() for name in (*concept.names, *concept.surface_forms)}
    found = dict.fromkeys(n.strip() for n in [*listed, *words] if n.strip())
    return tuple(n for n in found if n.casefold() not in own)[:_NEAREST_NAMES]
