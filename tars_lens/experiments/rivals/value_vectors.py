"""Which neurons write a concept's tokens: by what their out vectors say, and how they fire."""

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.experiments.rivals.choosing import forward_prompts
from tars_lens.model.lens import Lens, Point
from tars_lens.model.unembedding import Unembedding


def token_scores(
    lens: Lens, concept: Concept, unembedding: Unembedding | None = None
) -> Float[Tensor, "layers d_mlp"]:
    """How far the concept's tokens stand above the vocabulary in what each out vector says.

    In standard deviations of the vector's logits over the vocabulary, after the final gain.
    """
    known = unembedding or Unembedding.fit(lens)
    towards = known.vectors(first_tokens(lens, concept)).mean(dim=0)
    found = []
    for layer in range(lens.n_layers):
        rows, gain = lens.vectors(layer, "out").float(), lens.post_norm_gain(layer)
        rows = rows if gain is None else rows * gain.float()
        spread = ((rows @ known.covariance) * rows).sum(dim=1).clamp(min=1e-30).sqrt()
        found.append(rows @ towards / spread)
    return torch.stack(found)


def firing(lens: Lens, concept: Concept) -> Float[Tensor, "layers d_mlp"]:
    """The neurons' mean activation at the last tokens of prompts that lead to the concept."""
    points = [Point("mlp_post", layer) for layer in range(lens.n_layers)]
    batch = lens.prompts(forward_prompts(concept))
    seen = lens.capture(batch.ids, points, positions=batch.last)
    return torch.stack([seen[point].float().mean(dim=0) for point in points])
