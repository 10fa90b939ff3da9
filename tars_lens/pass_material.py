"""The texts that one concept is removed by, in tokens: what its forward passes are counted from."""

from collections.abc import Sequence
from dataclasses import dataclass

from tars_lens import study
from tars_lens.concept import Concept, substituted
from tars_lens.forms import text_forms
from tars_lens.forward_readers import COPIES
from tars_lens.grouping import padded, run_cost
from tars_lens.lens import Lens
from tars_lens.measure import probability
from tars_lens.name_readers import NameTexts

_COPIED_NAMES = 8
_COPIES_OF_A_NAME = 3


@dataclass(frozen=True)
class Material:
    """Tokens of each group of texts, what padding there is included.

    The defaults are the means of the 14 built-in cards, by SmolLM2's tokenizer.

    Attributes:
        prompts: The concept prompts.
        forward: Those and the validation's, where the concept's token is to vanish.
        contrast: The card's contrast.
        near: What is to go on as it did: contrast, neighbours, and texts about near names.
        names: The concept's and the near names, each in every frame.
        copies: Texts that repeat a name.
        probes: The reported probes, once for each sequence that their answers' forms need.
        floors: The reverse probes with the substitute in the name's place.
    """

    prompts: float = 112.0
    forward: float = 184.0
    contrast: float = 62.0
    near: float = 199.0
    names: float = 1330.0
    copies: float = 385.0
    probes: float = 4602.0
    floors: float = 219.0

    @classmethod
    def of(
        cls, lens: Lens, concept: Concept, near_names: Sequence[str] | None = None
    ) -> "Material":
        """Counts a card's texts.

        Args:
            lens: Whose tokenizer counts; the model isn't run.
            concept: The card.
            near_names: `Study.near_names`; as many as there may be, each as long as the
                substitute, where not given.
        """
        near = near_names
        if near is None:
            like = concept.substitute or concept.answer
            near = [f"{like}{chr(ord('a') + at)}" for at in range(study._NEAREST_NAMES)]
        contrast = [probe.prompt for probe in concept.contrast]
        own = [*concept.concept_prompts, *(p.prompt for p in concept.validation.forward)]
        about = _filled(study.BEGINNINGS, near[: study._NEAR_TEXTS])
        others = [*contrast, *(p.prompt for p in concept.validation.neighbour), *about]
        few = _filled(COPIES[:_COPIES_OF_A_NAME], near[:_COPIED_NAMES])
        return cls(
            prompts=_padded(lens, concept.concept_prompts),
            forward=_padded(lens, own),
            contrast=_padded(lens, contrast),
            near=_padded(lens, others),
            names=_padded(lens, NameTexts.of(lens, concept, near).every),
            copies=_padded(lens, _filled(COPIES, [concept.answer])) + _padded(lens, few),
            probes=_asked(lens, _probes(concept)),
            floors=_asked(lens, _floors(concept)),
        )


def _filled(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    return [text.format(name) for name in names for text in texts]


def _padded(lens: Lens, texts: Sequence[str]) -> float:
    return float(padded([len(lens.tokens(text)) for text in texts], run_cost(lens.device)))


def _probes(concept: Concept) -> list[tuple[str, tuple[str, ...]]]:
    """The prompts and surface forms of the reported probes."""
    probes = concept.probes
    others = (*probes.reverse, *probes.neighbour, *probes.multilingual)
    return [
        *((probe.prompt, concept.surface_forms) for probe in probes.forward),
        *((probe.prompt, (probe.answer,)) for probe in others),
    ]


def _floors(concept: Concept) -> list[tuple[str, tuple[str, ...]]]:
    """The same of what tells set phrases among the reverse probes."""
    if not concept.substitute:
        return []
    return [
        (substituted(probe.prompt, concept.names, concept.substitute), (probe.answer,))
        for probe in concept.probes.reverse
    ]


def _asked(lens: Lens, answered: Sequence[tuple[str, tuple[str, ...]]]) -> float:
    """Tokens of the runs that answers need at most."""
    rows = [
        len(ids)
        for prompt, texts in answered
        for ids in probability.rows_needed(lens.tokens(prompt), text_forms(lens, texts))
    ]
    return float(padded(rows, run_cost(lens.device)))
