"""How far the model leans to a concept's token: the second thing that a late neuron reads.

A reader of descriptions alone fires on what is said of things of the same kind as well ("The
capital of Austria is" for Berlin), but for those that the card happens to name. What the logit lens
says there doesn't depend on them. So the gate reads the leaning and the `in` row the description,
and the neuron writes where both are high. (SmolLM2-135M, five cards whose contrast is of other
kinds: their neighbours keep 0.20 to 0.34 by the description alone, 0.59 to 0.99 by both.)
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tars_lens import lens_checks
from tars_lens.discriminant import Discriminant
from tars_lens.lens import Lens
from tars_lens.unembedding import Unembedding

_OTHERS = 200
_RIDGE = 0.05


def reads_leaning(lens: Lens) -> bool:
    """Whether a late neuron of this model can read two things, and should.

    It takes a gate beside the in-projection. Where a norm follows the MLP, what is written is
    nearly whole at any activation, and is *for* the concept where the description scores below 0.
    """
    return lens.gated and not lens.bounds_writes


def lens_direction(
    unembedding: Unembedding, tokens: Sequence[int], said: Float[Tensor, " tokens"]
) -> Float[Tensor, " d_model"]:
    """The concept's logit less the mean of 200 near words', as a direction of the final norm.

    Its tokens count by `said`, how likely each is at the prompts of the concept. (With the
    mean over all tokens, and the tokens of the write target in place of the nearest words, three of
    Paris' near prompts read 0.65 to 0.97 and its own 0.71 to 1.09; so, at most 0.17 and 0.75 to
    1.14. Validation text, SmolLM2-135M's last layer.)
    """
    own = (said / said.sum()) @ unembedding.vectors(tokens)
    others = unembedding.nearest_words(tokens, _OTHERS)
    return own - unembedding.vectors(others).mean(dim=0) if others else own


def leaning(
    lens: Lens,
    layer: int,
    direction: Float[Tensor, " d_model"],
    own: Float[Tensor, "prompts d_model"],
    zero: Float[Tensor, " d_model"],
    bias: Float[Tensor, " d_model"],
) -> Discriminant | None:
    """Reads the lens's direction from the input of a layer's MLP.

    There is none where the model doesn't lean to the concept more at its own prompts: too early.

    Args:
        lens: The model.
        layer: Where it is read.
        direction: Of `lens_direction`.
        own: *y* at the concept's prompts, which score 1 on average.
        zero: A *y* that scores 0: the mean of near prompts.
        bias: Reads nearly 1 on all text.
    """
    block = lens.model.blocks[layer]
    norm = lens_checks.submodule(block, "ln2")
    gain = lens.norm_gain(lens_checks.submodule(block, "ln1") if norm is None else norm).float()
    square = gain.square()
    weight = direction * gain / (square + _RIDGE * square.mean())
    span = (own.float().mean(dim=0) - zero) @ weight
    return Discriminant(weight / span, zero, bias) if span > 0 else None


def reaching(
    leans: Discriminant, own: Float[Tensor, "prompts d_model"], least: float
) -> Discriminant:
    """The leaning with its zero so far down that every prompt of the concept scores `least`.

    Where something else is likelier than the concept, the model leans to it hardly more than at
    near prompts, and says it with p = 0.1 nevertheless.
    """
    missing = least - float(leans.score(own).min())
    if missing <= 0:
        return leans
    return _with_zero_at(leans.weight, leans.weight @ leans.mean - missing, leans.bias)


def joined_by(
    leans: Discriminant, other: Discriminant, where: Float[Tensor, "examples d_model"]
) -> Discriminant:
    """The leaning with as much of another reader as brings its mean score at some places to 1.

    After "Albert" the model leans to "Einstein", but after "Альберт" to no token of the answer.
    """
    missing = max(0.0, 1 - float(leans.score(where).mean()))
    weight = leans.weight + missing * other.weight
    shift = leans.weight @ leans.mean + missing * (other.weight @ other.mean)
    return _with_zero_at(weight, shift, leans.bias)


def _with_zero_at(
    weight: Float[Tensor, " d_model"], product: Float[Tensor, ""], bias: Float[Tensor, " d_model"]
) -> Discriminant:
    """A reader that scores 0 where `weight . y` is the product."""
    return Discriminant(weight, product * weight / weight.square().sum(), bias)


def near_zero(
    near: Float[Tensor, "near d_model"], plain: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    """Where a leaning is 0: at the card's near prompts, or on plain text where it has none."""
    return near.float().mean(dim=0) if len(near) else plain
