"""What the built-in concepts look like in a model's residual stream, to hold neurons against."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tars_lens.common.cache import cache_folder
from tars_lens.common.errors import TarsError
from tars_lens.common.files import whole_file
from tars_lens.concept.card import Concept, builtin_concepts
from tars_lens.concept.forms import first_tokens
from tars_lens.concept.leading import check_leads
from tars_lens.method.targeting import PLAIN, approximate
from tars_lens.model.lens import Lens
from tars_lens.model.unembedding import Unembedding
from tars_lens.patch import stack

logger = logging.getLogger(__name__)

KINDS = ("raw", "centred", "write_target")
"""`raw`: the approximate targeting vector. `centred`: less what unrelated prompts share with it.
`write_target`: the whitened direction that moves the concept's token and spares the contrast's."""

_VERSION = 1


@dataclass(frozen=True)
class ConceptDirections:
    """Directions of the concepts that a model knows.

    Attributes:
        names: The concepts whose prompt leads to them.
        unknown: Those whose prompt doesn't, which have no direction.
        vectors: For each concept one of each of `KINDS`, in float32.
    """

    names: tuple[str, ...]
    unknown: tuple[str, ...]
    vectors: Float[Tensor, "concepts kinds d_model"]

    @classmethod
    def fit(
        cls, lens: Lens, concepts: Sequence[Concept], unembedding: Unembedding | None = None
    ) -> "ConceptDirections":
        """Finds the directions in the base model, whatever patches are on it."""
        unembedding = unembedding or Unembedding.fit(lens)
        names, unknown, vectors = [], [], []
        with stack.holding(lens, ()):
            shared = approximate(lens, PLAIN)
            for concept in concepts:
                tokens = first_tokens(lens, concept)
                try:
                    check_leads(lens, concept, [concept.prompt], tokens)
                except TarsError:
                    unknown.append(concept.name)
                    continue
                raw = approximate(lens, [concept.prompt])
                near = [lens.pieces(f" {probe.answer.strip()}")[0] for probe in concept.contrast]
                spared = [t for t in near if not unembedding.is_variant(t, tokens)]
                target = unembedding.write_target(tokens, spared)
                names.append(concept.name)
                vectors.append(torch.stack([raw, raw - shared, target]))
        empty = torch.zeros(0, len(KINDS), lens.d_model)
        return cls(tuple(names), tuple(unknown), torch.stack(vectors).cpu() if vectors else empty)

    @classmethod
    def cached(cls, lens: Lens, concepts: Sequence[Concept] | None = None) -> "ConceptDirections":
        """`fit`, or its result from the user's cache where model and cards are the same.

        Args:
            lens: The model.
            concepts: The cards; the built-in ones where not given.
        """
        cards = [Concept.load(n) for n in builtin_concepts()] if concepts is None else concepts
        if not lens.sha256:
            return cls.fit(lens, cards)
        what = json.dumps([card.to_dict() for card in cards])
        key = f"{_VERSION} {lens.sha256} {lens.dtype} {what}"
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        path = cache_folder() / "concepts" / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["about"])
                vectors = file.get_tensor("vectors")
            return cls(tuple(about["names"]), tuple(about["unknown"]), vectors)
        except (OSError, SafetensorError, KeyError, ValueError):
            logger.info("the concepts' directions in %s are not cached: finding them", lens.name)
        found = cls.fit(lens, cards)
        about = json.dumps({"names": found.names, "unknown": found.unknown})
        with whole_file(path) as temporary:
            save_file({"vectors": found.vectors.contiguous()}, temporary, {"about": about})
        return found
