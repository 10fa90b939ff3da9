"""Reading a concept from an MLP's input: a ridge discriminant, and a bias without a bias."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_BIAS_RIDGE = 0.05

_SLACK = 10.0
"""How far from plain text (squared, whitened) a surface form must lie for it to be read.

A name's forms lie at 280 to 2,500 (SmolLM2-135M, layers 1 to 5): each then scores 0.97 or more.
Read by the mean of all forms instead, " Saturn" among nine foreign spellings scores 0.2.
"""


@dataclass(frozen=True)
class Discriminant:
    """How strongly the MLP's input *y* shows the concept: `score(y) = w . (y - mu)`.

    Attributes:
        weight: `w`, scaled so that the concept's own *y* scores 1 on average.
        mean: `mu`, the mean of *y* on plain text.
        bias: `v`, with `v . y` nearly 1 on all text: what stands in for a bias parameter.
    """

    weight: Float[Tensor, " d_model"]
    mean: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]

    def score(self, y: Float[Tensor, "... d_model"]) -> Float[Tensor, "..."]:
        """About 1 on the concept and 0 on plain text."""
        return (y.float() - self.mean) @ self.weight

    def row(self, *, threshold: float, gain: float) -> Float[Tensor, " d_model"]:
        """The read vector whose product with *y* is `gain` at score 1 and 0 at the threshold.

        `gain / (1 - threshold) * (w - (w . mu + threshold) v)`.
        """
        shift = float(self.weight @ self.mean) + threshold
        return gain / (1 - threshold) * (self.weight - shift * self.bias)

    @property
    def score_row(self) -> Float[Tensor, " d_model"]:
        """The read vector whose product with *y* is the score."""
        return self.row(threshold=0.0, gain=1.0)


def discriminant(
    concept: Sequence[Float[Tensor, "_ d_model"]],
    neighbours: Float[Tensor, "neighbours d_model"],
    mean: Float[Tensor, " d_model"],
    covariance: Float[Tensor, "d_model d_model"],
    *,
    ridge: float,
    centred: bool = True,
) -> Discriminant:
    """Tells the concept from plain text and from its neighbours (regularised Fisher).

    With `M = C + mean_NB (y-mu)(y-mu)^T + ridge mean(diag C) I` and `d_f` the mean of a form's
    `y - mu`, the columns of `D`: `w = M^-1 D (D^T M^-1 D + slack I)^-1 1`, so that every surface
    form that can be told from plain text scores about 1. For a single form that is `M^-1 d`.

    Args:
        concept: *y* where the concept is present, one tensor a surface form.
        neighbours: *y* where something near it is; may be empty.
        mean: Of *y* on plain text, `mu`.
        covariance: Of *y* on plain text, `C`.
        ridge: How much of the covariance's mean diagonal is added.
        centred: Whether `mu` is subtracted; 0 is in its place where not.
    """
    origin = mean if centred else torch.zeros_like(mean)
    matrix = _matrix(neighbours, origin, covariance, ridge)
    shifts = torch.stack([form.float().mean(dim=0) - origin for form in concept], dim=1)
    solved = torch.linalg.solve(matrix, shifts)
    gram = shifts.T @ solved
    slack = _SLACK * torch.eye(len(gram), device=mean.device)
    weight = solved @ torch.linalg.solve(gram + slack, torch.ones_like(gram[0]))
    weight = weight / (weight @ shifts).mean()
    ridged = covariance + _BIAS_RIDGE * covariance.diagonal().mean() * _eye(mean)
    bias = torch.linalg.solve(ridged, mean)
    return Discriminant(weight, origin, bias / (bias @ mean))


def held_out_scores(
    concept: Float[Tensor, "examples d_model"],
    neighbours: Float[Tensor, "neighbours d_model"],
    mean: Float[Tensor, " d_model"],
    covariance: Float[Tensor, "d_model d_model"],
    *,
    ridge: float,
    centred: bool = True,
) -> Float[Tensor, " examples"]:
    """What each example scores by the reader made from all others: how far it reads unseen text.

    With `K = D^T M^-1 D` over the examples' shifts, the reader without example *i* gives it
    `mean_{j != i} K_ij / mean_{j, k != i} K_jk`: one solve serves for all. A single example, of
    which nothing can be held out, scores 1.
    """
    count = len(concept)
    if count < 2:
        return torch.ones(count, device=mean.device)
    origin = mean if centred else torch.zeros_like(mean)
    shifts = (concept.float() - origin).T
    gram = shifts.T @ torch.linalg.solve(_matrix(neighbours, origin, covariance, ridge), shifts)
    own, rows = gram.diagonal(), gram.sum(dim=0)
    others = gram.sum() - 2 * rows + own
    return (rows - own) * (count - 1) / others


def _matrix(
    neighbours: Float[Tensor, "neighbours d_model"],
    mean: Float[Tensor, " d_model"],
    covariance: Float[Tensor, "d_model d_model"],
    ridge: float,
) -> Float[Tensor, "d_model d_model"]:
    matrix = covariance + ridge * covariance.diagonal().mean() * _eye(mean)
    if len(neighbours):
        away = neighbours.float() - mean
        matrix = matrix + away.T @ away / len(away)
    return matrix


def _eye(like: Float[Tensor, " d_model"]) -> Float[Tensor, "d_model d_model"]:
    return torch.eye(len(like), device=like.device)
