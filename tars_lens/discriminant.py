"""Reading a concept from an MLP's input: a ridge discriminant, and a bias without a bias."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_BIAS_RIDGE = 0.05


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


def discriminant(
    concept: Float[Tensor, "examples d_model"],
    neighbours: Float[Tensor, "neighbours d_model"],
    mean: Float[Tensor, " d_model"],
    covariance: Float[Tensor, "d_model d_model"],
    *,
    ridge: float,
) -> Discriminant:
    """Tells the concept from plain text and from its neighbours (regularised Fisher).

    `w = (C + mean_NB (y-mu)(y-mu)^T + ridge mean(diag C) I)^-1 (mean y_concept - mu)`.

    Args:
        concept: *y* where the concept is present.
        neighbours: *y* where something near it is; may be empty.
        mean: Of *y* on plain text, `mu`.
        covariance: Of *y* on plain text, `C`.
        ridge: How much of the covariance's mean diagonal is added.
    """
    scale = covariance.diagonal().mean()
    eye = torch.eye(len(mean), device=mean.device)
    matrix = covariance + ridge * scale * eye
    if len(neighbours):
        away = neighbours.float() - mean
        matrix = matrix + away.T @ away / len(away)
    shift = concept.float().mean(dim=0) - mean
    weight = torch.linalg.solve(matrix, shift)
    weight = weight / (weight @ shift)
    bias = torch.linalg.solve(covariance + _BIAS_RIDGE * scale * eye, mean)
    return Discriminant(weight, mean, bias / (bias @ mean))
