"""How many forward passes each stage of an erasure takes, counted from the recipe and its settings.

A pass is all layers over one window of 256 tokens. A run of other text, or of some of the layers,
counts by its tokens and its share of the layers; the unembedding is not counted apart. A test
counts the layers of a real run beside it.
"""

from dataclasses import dataclass
from math import ceil, log2

from tars_lens import recipe, strengths, trials
from tars_lens.pass_material import Material
from tars_lens.settings import Settings
from tars_lens.windows import STATISTICS_WINDOWS, WIDTH

_READERS = 2  # of each forward layer: from the concept prompts, and from copies of the answer too
_PLAIN = float(trials._PLAIN * WIDTH)  # tokens of plain text that every trial reads


@dataclass(frozen=True)
class _Depths:
    """Where an edit's neurons sit; of the layers where a name may be stopped, the first."""

    layers: int
    first: int
    reverse: tuple[int, ...]
    named: int
    readable: tuple[int, ...]

    @classmethod
    def of(cls, settings: Settings, layers: int) -> "_Depths":
        return cls(
            layers,
            settings.layers(layers)[0],
            settings.reverse_layers(layers),
            settings.named_layer(layers),
            settings.readable_layers(layers),
        )

    def share(self, start: int, stop: int | None = None) -> float:
        """Of the layers, those from `start` on, up to and without `stop`."""
        return ((self.layers if stop is None else stop) - start) / self.layers


def passes(
    settings: Settings, layers: int, material: Material | None = None, *, post_norm: bool = False
) -> dict[str, float]:
    """Forward passes by stage, of the recipe `tars` with all its neurons.

    The choice is counted at its most: every reader, threshold and share of the strength tried,
    the name readable as early as it may be, all plain text disturbed. Where the first reading
    keeps the budgets, a third of that or less is run.

    Args:
        settings: Thresholds, depths.
        layers: Of the model.
        material: Of the concept; that of an average built-in card where not given.
        post_norm: Whether the model has a norm after its MLPs, where larger writes are tried.
    """
    depths, texts = _Depths.of(settings, layers), material or Material()
    choice = _trials(texts) + _reverse(settings, depths, texts)
    last = layers - 1
    for layer in sorted({depths.readable[0], last}):
        choice += _forward(settings, depths, texts, layer, post_norm=post_norm)
    choice += texts.forward  # whether the concept is gone with all parts in the model
    return {
        "statistics of plain text, once a model": float(STATISTICS_WINDOWS),
        "study, a concept": _study(depths, texts) / WIDTH,
        "choice of edits at most, a concept": choice / WIDTH,
        "probes before and after, a concept": (2 * texts.probes + texts.floors) / WIDTH,
    }


def kl_passes(settings: Settings, layers: int, tokens: int, *, cached: bool = False) -> float:
    """Passes of the paired KL: the base; edited model and silenced base from the first edit on.

    Args:
        settings: Depths.
        layers: Of the model.
        tokens: Of the text.
        cached: Whether the base's final stream is kept from an earlier run; the layers before the
            edit are run all the same.
    """
    depths = _Depths.of(settings, layers)
    base = depths.share(0, depths.first) if cached else 1.0
    return (base + 2 * depths.share(depths.first)) * tokens / WIDTH


def bisection_steps(*, post_norm: bool = False, again: bool = False) -> int:
    """How many strengths one reading is measured at, at the most.

    Args:
        post_norm: Whether larger writes are tried.
        again: Whether another reading was measured before, whose strength is begun with.
    """
    largest = strengths.STRENGTHS[-1] if post_norm else strengths.LARGEST_BY_BOTH
    count = sum(strength <= largest for strength in strengths.STRENGTHS)
    if again:
        return 1 + 2 * ceil(log2(count))  # steps that double, then halves
    return 1 + max(ceil(log2(count)), ceil(count / 4))  # the largest; then halves, or every fourth


def _study(depths: _Depths, texts: Material) -> float:
    """Tokens, by the share of the layers that they pass: as all counts below."""
    prompts = 2 * texts.prompts  # what is said there, and what is read there
    names = texts.names * depths.share(0, depths.named + 1)
    return prompts + names + texts.contrast + texts.copies


def _trials(texts: Material) -> float:
    """The base on all that is tried on, whose stream the trials take up."""
    return texts.forward + texts.near + _PLAIN


def _reverse(settings: Settings, depths: _Depths, texts: Material) -> float:
    first, last = depths.first, depths.reverse[-1]
    one = _effects(depths, texts, first, last)
    named = texts.names * depths.share(0, depths.named + 1) * len(depths.reverse)
    return len(settings.reverse_thresholds) * one + named


def _forward(
    settings: Settings, depths: _Depths, texts: Material, layer: int, *, post_norm: bool
) -> float:
    measure = texts.forward * depths.share(layer)
    effects = _effects(depths, texts, layer, layer)
    more = len(settings.bounded_thresholds) if post_norm else 0
    readings, groups = _READERS * (len(settings.forward_thresholds) + more), 1
    if not post_norm:  # the leaning beside the description as well
        last = layer == depths.layers - 1
        readings, groups = (2 * readings, 1) if last else (readings + _READERS, 3)
    weaker = groups * len(recipe._SHARES)
    others = (readings - 1) * bisection_steps(post_norm=post_norm, again=True)
    measures = bisection_steps(post_norm=post_norm) + others + readings + weaker + 1
    if layer < depths.layers - 1:  # what is left in the end, beside what the lens reads
        measures += readings + weaker
    return measures * measure + (readings + weaker) * effects


def _effects(depths: _Depths, texts: Material, start: int, edited: int) -> float:
    """Side effects: near texts to their end, plain text twice to the edit and once on from it."""
    plain = 2 * depths.share(start, edited + 1) + depths.share(edited + 1)
    return texts.near * depths.share(start) + _PLAIN * plain
