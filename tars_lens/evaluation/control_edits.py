"""Controls: as many edits that should not work, and the trivial rival that only hides a word."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept, builtin_concepts, forms_in
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation.subject import BLOCKED, Subject, rewritten
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Edits, Place, Rows


def controls(
    lens: Lens, subject: Subject, concepts: Sequence[Concept], *, seed: int
) -> tuple[Subject, ...]:
    """The controls of a subject, each with its number of edits in the same matrices.

    Args:
        lens: The base.
        subject: What they stand beside. Where its edits aren't known, only the last one is made.
        concepts: What was removed.
        seed: Of the neurons and directions that are drawn.
    """
    edits = subject.edits
    found = []
    if edits:
        found = [
            rewritten("random neurons", _other_neurons(lens, edits, seed)),
            rewritten("zeroed neurons", _like(edits, lambda rows, _: torch.zeros_like(rows))),
            rewritten("wrong concept", _wrong_concept(lens, edits, concepts)),
            rewritten("random direction", _random_direction(edits, seed)),
        ]
    return (*found, blocked(lens, concepts))


def blocked(lens: Lens, concepts: Sequence[Concept]) -> Subject:
    """The base with the concepts' first tokens blocked at the unembedding, and nothing else.

    Their rows become the mean of all rows, so that their logits are nobody's. Where embedding and
    unembedding are tied, only the unembedding is changed: the word can still be read.
    """
    tokens = sorted({token for concept in concepts for token in first_tokens(lens, concept)})

    @contextmanager
    def held(base: Lens) -> Iterator[Lens]:
        with own_unembedding(base):
            rows = base.unembedding
            mean = rows.float().mean(dim=1).to(rows.dtype)
            rows[:, tokens] = mean[:, None]
            yield base

    return Subject(BLOCKED, held, digest=f"blocked {tokens}", control=True)


@contextmanager
def own_unembedding(lens: Lens) -> Iterator[None]:
    """Gives the model a copy of its unembedding that nothing else shares, then the old one back."""
    module, name = _unembedding_parameter(lens)
    shared = module._parameters[name]
    if shared is None:
        raise TarsError(f"{lens.name} has no unembedding weight that can be set apart.")
    try:
        module._parameters[name] = nn.Parameter(
            shared.detach().clone(), requires_grad=shared.requires_grad
        )
        yield
    finally:
        module._parameters[name] = shared


def _unembedding_parameter(lens: Lens) -> tuple[nn.Module, str]:
    """The module and the name under which the unembedding's weight stands."""
    address = lens.unembedding.data_ptr()
    for module in lens.model.unembed.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.data_ptr() == address:
                return module, name
    raise TarsError(
        f"{lens.name} doesn't show its unembedding as one weight, so a token can't be blocked."
    )


def _other_neurons(lens: Lens, edits: Edits, seed: int) -> Edits:
    """The same new rows on neurons that were drawn, in the same matrices.

    Where more than half of a matrix was edited there are too few others: the rest goes to edited
    ones, drawn as well.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[Place, Rows] = {}
    for place, rows in sorted(edits.items()):
        own = set(rows.neurons.tolist())
        order = torch.randperm(lens.d_mlp, generator=generator).tolist()
        drawn = sorted(order, key=lambda neuron: neuron in own)[: len(own)]  # a stable sort
        found[place] = Rows(torch.tensor(drawn), rows.values)
    return found


def _random_direction(edits: Edits, seed: int) -> Edits:
    """Gaussian rows with the norms of the new ones, on the same neurons."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: Tensor, _layer: int) -> Tensor:
        noise = torch.randn(rows.shape, generator=generator).to(rows.device)
        return _sized(noise, rows)

    return _like(edits, draw)


def _wrong_concept(lens: Lens, edits: Edits, concepts: Sequence[Concept]) -> Edits:
    """The reversed vector of a concept that has nothing to do with these, on the same neurons.

    The vector is the stream at the end of that card's prompt, after the edited layer.
    """
    prompt = _unrelated_prompt(concepts)
    batch = lens.prompts([prompt])

    def reverse(rows: Tensor, layer: int) -> Tensor:
        vector = lens.residual(batch.ids, layer, positions=batch.last)[0]
        return _sized(-vector.float().expand(rows.shape), rows)

    return _like(edits, reverse)


def _unrelated_prompt(concepts: Sequence[Concept]) -> str:
    """The prompt of the last built-in card that none of the concepts is named in or like."""
    own = [form for concept in concepts for form in (concept.name, *concept.names)]
    for name in reversed(builtin_concepts()):
        card = Concept.load(name)
        texts = (card.name, *card.concept_prompts)
        if not any(forms_in(text, own) for text in texts):
            return card.prompt
    raise TarsError("every built-in card names one of the concepts: none is left as a control.")


def _like(edits: Edits, make: Callable[[Tensor, int], Tensor]) -> Edits:
    """Other values for the same neurons."""
    return {
        (layer, role): Rows(rows.neurons, make(rows.values, layer))
        for (layer, role), rows in sorted(edits.items())
    }


def _sized(
    rows: Float[Tensor, "rows d_model"], like: Float[Tensor, "rows d_model"]
) -> Float[Tensor, "rows d_model"]:
    """Rows with the norms of others, in their dtype."""
    norms = like.float().norm(dim=1, keepdim=True)
    return (torch.nn.functional.normalize(rows.float(), dim=1) * norms).to(like)
