"""What the unembedding reads as the concept: the direction that the recipe reads and reverses."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.concept.leading import check_leads
from tars_lens.method.settings import Settings
from tars_lens.model.lens import Lens
from tars_lens.model.unembedding import Unembedding


@dataclass(frozen=True)
class ConceptDirection:
    """A concept as the final norm and the unembedding see it.

    Attributes:
        tokens: First tokens of the concept's surface forms.
        vector: `sum_t said_t u_t`, with `u_t = g * (U_t - mean_j U_j)` and each token weighted by
            how likely the base says it at the card's prompts: `vector . x / rms(x)` is the
            concept's logit at the stream *x*, in nats, less that of an average token.
        neighbours: Tokens whose logits a write is to leave alone.
        nearest: Words of the vocabulary nearest to the concept's, nearest first.
        prompts: The card's prompts after which the base says the concept with `led_p`, or the best
            one.
    """

    tokens: tuple[int, ...]
    vector: Float[Tensor, " d_model"]
    neighbours: tuple[int, ...]
    nearest: tuple[int, ...]
    prompts: tuple[str, ...]


def concept_direction(
    lens: Lens,
    concept: Concept,
    unembedding: Unembedding | None = None,
    settings: Settings | None = None,
) -> ConceptDirection:
    """The concept's direction, found from what the base model says at the card's own prompts.

    Args:
        lens: The base model.
        concept: The card; its probes are not looked at.
        unembedding: Its statistics, where they are known already.
        settings: Which prompts count, and how many neighbours; the defaults where not given.

    Raises:
        TarsError: No prompt of the card leads to the concept, or one of its names is no token.
    """
    check_spelt(lens, concept)
    known, chosen = unembedding or Unembedding.fit(lens), settings or Settings()
    tokens = tuple(first_tokens(lens, concept))
    said = check_leads(lens, concept, concept.concept_prompts, tokens)
    own = said[:, list(tokens)]
    mass = own.sum(dim=1).tolist()
    rows = [i for i, p in enumerate(mass) if p >= chosen.led_p] or [mass.index(max(mass))]
    weights = own[rows].mean(dim=0)
    nearest = known.nearest_words(tokens, 4 * chosen.nearest_words)
    likely = said.topk(chosen.likely_tokens).indices.flatten().tolist()
    near = [lens.pieces(f" {probe.answer.strip()}")[0] for probe in concept.contrast]
    around = dict.fromkeys([*nearest[: chosen.nearest_words], *likely, *near])
    return ConceptDirection(
        tokens=tokens,
        vector=(weights / weights.sum()) @ known.vectors(tokens),
        neighbours=tuple(t for t in around if not known.is_variant(t, tokens)),
        nearest=tuple(nearest),
        prompts=tuple(concept.concept_prompts[i] for i in rows),
    )


def near_names(
    lens: Lens, concept: Concept, nearest: Sequence[int], count: int = 12
) -> tuple[str, ...]:
    """Names of the concept's kind: the card's first, then the nearest words of the vocabulary."""
    listed = [concept.substitute, *(probe.answer for probe in concept.contrast)]
    words = [word for word in (lens.string(t).strip() for t in nearest) if lens.pieces(word)]
    own = {name.casefold() for name in concept.mentions}
    found = dict.fromkeys(name.strip() for name in [*listed, *words] if name.strip())
    return tuple(name for name in found if name.casefold() not in own)[:count]


def check_spelt(lens: Lens, concept: Concept) -> None:
    """Refuses names that a tokenizer leaves nothing of: there is no token to read them at.

    Raises:
        TarsError: Names the key and the text.
    """
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
