"""In which language a concept is read in the depths, when it is asked for in another one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.attribution.asked import edits_of
from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept, Probe, ProbeSet
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation.probes import probe_frame
from tars_lens.model.lens import Lens
from tars_lens.model.readings import read_tokens, stream_ends
from tars_lens.model.weights import written
from tars_lens.patch.patch import Patch

WORDS = ("english", "own")
"""The answer as the card has it, and as the probe's language has it."""


@dataclass(frozen=True)
class LanguagesByLayer:
    """The logit lens at the ends of prompts in other languages, before and after an edit.

    Attributes:
        frame: See `to_frame`.
    """

    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt, word and layer (-1: the embedding).

        Returns:
            Columns concept, language, prompt, answer, word (`english`: the card's answer; `own`:
            the probe's), layer, p_before, p_after. `p` is the probability that the final norm and
            unembedding give the first tokens of the word; NaN where a word has no first token
            that tells it, and `p_after` without a patch.
        """
        return self.frame.copy()


@undisturbed
def languages_by_layer(
    lens: Lens, concept: Concept, patch: Patch | None = None
) -> LanguagesByLayer:
    """What the logit lens reads of a concept in other languages, layer by layer.

    Of the card's known multilingual probes those whose answer is one of the concept's surface
    forms: from its description to its name.

    Args:
        lens: The model as it stands before the edit.
        concept: The card.
        patch: The edit.

    Raises:
        TarsError: A patch for another model, or one that is applied already.
    """
    edits = edits_of(lens, patch)
    forms = {form.casefold() for form in concept.surface_forms}
    own = [p for p in concept.probes.multilingual if p.answer.casefold() in forms]
    known = probe_frame(lens, concept, ProbeSet(multilingual=tuple(own)))["known"]
    asked = [probe for probe, is_known in zip(own, known, strict=True) if is_known]
    index = [
        (concept.name, probe.language, probe.prompt, probe.answer, word, layer)
        for probe in asked
        for word in WORDS
        for layer in range(-1, lens.n_layers)
    ]
    columns = ["concept", "language", "prompt", "answer", "word", "layer"]
    frame = pd.DataFrame(index, columns=columns)
    frame["p_before"] = _read(lens, concept, asked)
    frame["p_after"] = np.nan
    if patch is not None:
        with written(lens, edits):
            frame["p_after"] = _read(lens, concept, asked)
    return LanguagesByLayer(frame)


def _read(lens: Lens, concept: Concept, asked: Sequence[Probe]) -> np.ndarray:
    """The probabilities in the frame's order: by prompt, word and layer."""
    if not asked:
        return np.empty(0)
    streams = stream_ends(lens, [probe.prompt for probe in asked])
    words = [[_tokens(lens, concept, text) for text in (concept.answer, p.answer)] for p in asked]
    read = [[_probability(lens, streams[:, i], word) for word in ws] for i, ws in enumerate(words)]
    return torch.stack([values for pair in read for values in pair]).flatten().cpu().numpy()


def _probability(
    lens: Lens, stream: Float[Tensor, "layers d_model"], tokens: Sequence[int]
) -> Float[Tensor, " layers"]:
    if not tokens:
        return torch.full((len(stream),), torch.nan, device=stream.device)
    return read_tokens(lens, stream, tokens).probability


def _tokens(lens: Lens, concept: Concept, answer: str) -> Sequence[int]:
    """The first tokens that tell a word, with and without a space; none where they don't."""
    try:
        return first_tokens(lens, replace(concept, answer=answer, aliases=()))
    except TarsError:  # its tokenizer begins the word with a lone space, say
        return ()
