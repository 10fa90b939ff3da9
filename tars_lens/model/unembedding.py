"""The unembedding as the concept sees it: whitened write targets and neighbouring tokens.

Notation of the method's page: `u_j = g * (U_j - mean_j U_j)`, with `g` the final norm's gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.model.lens import Lens

_CHUNK = 16_384

_SAME_WORD = 8
"""Letters that two words must begin with alike to be forms of one ("photosynthetic")."""


@dataclass(frozen=True)
class Unembedding:
    """Mean and covariance of the effective unembedding vectors of the base model.

    Attributes:
        lens: Whose unembedding it is.
        mean: `mean_j U_j`.
        covariance: `S`, of all `u_j` over the vocabulary.
    """

    lens: Lens
    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]

    @classmethod
    def fit(cls, lens: Lens) -> "Unembedding":
        """Reads the unembedding twice, a chunk of tokens at a time."""
        columns = lens.unembedding
        mean = torch.zeros(lens.d_model, device=lens.device)
        for chunk in columns.split(_CHUNK, dim=1):
            mean += chunk.float().sum(dim=1).to(mean.device)
        mean /= lens.d_vocab
        covariance = torch.zeros(lens.d_model, lens.d_model, device=lens.device)
        for chunk in columns.split(_CHUNK, dim=1):
            rows = _effective(lens, chunk, mean)
            covariance += rows.T @ rows
        return cls(lens, mean, covariance / lens.d_vocab)

    def vectors(self, tokens: Sequence[int]) -> Float[Tensor, "tokens d_model"]:
        """`u_j` of some tokens, in float32."""
        index = torch.tensor(list(tokens), device=self.lens.device)
        return _effective(self.lens, self.lens.unembedding[:, index], self.mean)

    def write_target(
        self,
        tokens: Sequence[int],
        neighbours: Sequence[int],
        *,
        ridge: float = 0.01,
        neighbour_weight: float = 10.0,
        slack: float = 0.1,
    ) -> Float[Tensor, " d_model"]:
        """The direction that moves the concept's logits most and all others least (unit norm).

        With `M = S + ridge mean(diag S) I + weight mean_NB(u_n u_n^T)`, the concept's vectors as
        the columns of `U` and `G = U^T M^-1 U`: `t = M^-1 U (G + slack mean(diag G) I)^-1 1`, so
        that every spelling is lowered much alike. For a single token that is `M^-1 u`.

        Args:
            tokens: The concept's first tokens.
            neighbours: Tokens whose logits are to stay.
            ridge: How much of the covariance's mean diagonal is added.
            neighbour_weight: How much more a neighbour counts than a token of the vocabulary.
            slack: 0 lowers every token alike; well above 1, the tokens' mean is lowered.
        """
        matrix = self.covariance + ridge * self.covariance.diagonal().mean() * _eye(self.covariance)
        if neighbours and neighbour_weight:
            rows = self.vectors(neighbours)
            matrix = matrix + neighbour_weight * (rows.T @ rows) / len(rows)
        own = self.vectors(tokens).T
        solved = torch.linalg.solve(matrix, own)
        gram = own.T @ solved
        eased = gram + slack * gram.diagonal().mean() * _eye(gram)
        target = solved @ torch.linalg.solve(eased, torch.ones_like(gram[0]))
        return target / target.norm()

    def nearest_words(self, tokens: Sequence[int], count: int) -> list[int]:
        """The word tokens whose centred vectors lie nearest to the concept's, nearest first.

        A word token begins with a space and is letters; variants of the concept's own tokens
        (the same letters in another case, its beginning or its continuation) are left out.
        """
        query = torch.nn.functional.normalize(self.vectors(tokens).mean(dim=0), dim=0)
        cosines = torch.cat(
            [
                torch.nn.functional.normalize(_effective(self.lens, chunk, self.mean)) @ query
                for chunk in self.lens.unembedding.split(_CHUNK, dim=1)
            ]
        )
        order = cosines.topk(min(40 * count, len(cosines))).indices.tolist()
        found = [t for t in order if self._is_word(t) and not self.is_variant(t, tokens)]
        return found[:count]

    def is_variant(self, token: int, tokens: Sequence[int]) -> bool:
        """Whether a token is another spelling, the beginning or a continuation of the concept's."""
        text = _plain(self.lens.string(token))
        if not text:
            return True
        owns = [_plain(self.lens.string(own)) for own in tokens]
        return any(
            text.startswith(own)
            or own.startswith(text)
            or len(commonprefix([text, own])) >= _SAME_WORD
            for own in owns
        )

    def _is_word(self, token: int) -> bool:
        text = self.lens.string(token)
        return len(text) > 3 and text[0] == " " and text[1:].isalpha()


def _effective(
    lens: Lens, columns: Float[Tensor, "d_model tokens"], mean: Float[Tensor, " d_model"]
) -> Float[Tensor, "tokens d_model"]:
    here = mean.device  # the unembedding's may be another
    rows = (columns.float().to(here) - mean[:, None]).T * lens.final_gain.float().to(here)
    return rows - rows.mean(dim=1, keepdim=True) if lens.centres else rows


def _eye(like: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "d_model d_model"]:
    return torch.eye(len(like), device=like.device)


def _plain(text: str) -> str:
    return text.strip().casefold()
