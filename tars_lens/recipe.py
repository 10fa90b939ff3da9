"""The recipe `tars`: neurons that read a concept and write its reversal.

Late neurons stop the description from leading to the name, an early one stops the name from
leading to its attributes. Each takes over a nearly idle host: this builds a reader of the
concept, it does not reverse the weights that carried it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tars_lens.host import host_neuron
from tars_lens.late_neuron import Choice, LateNeuron
from tars_lens.lens import Lens
from tars_lens.neuron import reading_rows, writing_row
from tars_lens.neutral import Neutral
from tars_lens.settings import Settings
from tars_lens.study import Study
from tars_lens.trials import Trials
from tars_lens.weights import Edits, written

_SHARES = (0.7, 0.5)
"""Of the full strength, tried in order: less margin where no reading keeps the budgets."""

_OUTWEIGHS = 2.0
"""Where a norm follows the MLP, only its direction counts: a write must outweigh the other neurons.

At 1.5 times the MLP's usual output 0.11, 0.03 and 0.95 of Saturn's, Egypt's and photosynthesis'
validation attributes are left, at 3 times 0.14, 0.00 and 0.62 (Gemma-3-270M, layer 3).
"""


@dataclass(frozen=True)
class Part:
    """One or two neurons of an edit that do one thing.

    Attributes:
        kind: `forward` (description to name) or `reverse` (name to attributes).
        layer: Where they sit.
        neurons: The hosts.
        edits: Their rows.
        direction: What they reverse, in residual space, for the ranking's cosine.
        chosen: The threshold and strength that were chosen, and what limited them.
    """

    kind: str
    layer: int
    neurons: tuple[int, ...]
    edits: Edits
    direction: Float[Tensor, " d_model"]
    chosen: dict[str, Any] = field(default_factory=dict)


def reverse_part(
    lens: Lens, study: Study, neutral: Neutral, trials: Trials, taken: Collection[tuple[int, int]]
) -> Part:
    """An early neuron that turns the concept's name into nothing in particular.

    The row written is what the name itself has in the stream, reversed, at the size of the stream.
    It sits at the first layer after which the name is no longer read further on; where there is
    none, at that which leaves least of it. (Gemma-3-270M, whose post-norms hardly let the MLPs of
    its first layers write against a name: 0.7 of oxygen is read after layers 1, 2 and 4, 0.1 after
    layer 3, and of its attributes 1.0 and 0.01 are left.)
    """
    settings, thresholds = trials.settings, trials.settings.reverse_thresholds
    names = [text for form in study.named.forms for text in form]
    neurons = {
        layer: host_neuron(lens, neutral, layer, taken, settings.host, names, name.target)
        for layer, name in study.reverse.items()
    }
    scale = {
        layer: _OUTWEIGHS * float(neutral.mlp_norm[layer]) if lens.bounds_writes else name.norm
        for layer, name in study.reverse.items()
    }

    def build(layer: int, threshold: float) -> Edits:
        name, place = study.reverse[layer], (lens, layer, neurons[layer])
        size = settings.reverse_strength * scale[layer]
        read = reading_rows(*place, name.reader, threshold=threshold, unit="linear")
        return {**read, **writing_row(*place, name.target, size=size, unit="linear")}

    layer, read = _where_unread(lens, study, settings, lambda layer: build(layer, thresholds[0]))
    threshold, limits = trials.first_quiet(lambda t: build(layer, t), thresholds)
    return Part(
        kind="reverse",
        layer=layer,
        neurons=(neurons[layer],),
        edits=build(layer, threshold),
        direction=study.reverse[layer].target,
        chosen={
            "threshold": threshold,
            "strength": settings.reverse_strength * scale[layer],
            "name_still_read": read,
            **limits,
        },
    )


def _where_unread(
    lens: Lens, study: Study, settings: Settings, build: Callable[[int], Edits]
) -> tuple[int, float]:
    """The layer for the reverse neuron, and how well the name is read further on after it."""
    found: dict[int, float] = {}
    for layer in study.reverse:
        with written(lens, build(layer)):
            found[layer] = study.named.score(lens)
        if found[layer] <= settings.unread:
            break
    best = min(found, key=lambda layer: found[layer])
    return best, found[best]


def forward_part(
    lens: Lens,
    study: Study,
    neutral: Neutral,
    trials: Trials,
    layer: int,
    taken: Collection[tuple[int, int]],
    *,
    capped: bool,
) -> Part:
    """A late neuron that takes the concept's token away wherever the description calls for it.

    Each reading (`LateNeuron.readings`) is tried at the strength that it needs
    (`LateNeuron.strength`): the goal at the last layer is that of the final probability, before it
    that of the largest probability that the logit lens reads from there on. The first that reaches
    it with side effects within the budgets is used; where none of a group does, its quietest is
    tried with less margin before the next group is.

    Args:
        lens: The model, without any other part of this edit: each forward neuron is to be strong
            enough alone, so that a prompt that one misses is caught by another.
        study: What the base shows of the concept.
        neutral: Statistics of plain text.
        trials: What the choice is made on, run up to `layer`.
        layer: Where the neuron sits.
        taken: Hosts in use.
        capped: Whether a second neuron caps the write (`capped_rows`).
    """
    neuron = LateNeuron.of(lens, study, neutral, trials, layer, taken, capped=capped)
    choice, limits = _chosen(neuron, trials)
    edits = neuron.edits(choice)
    chosen = {
        "reader": ("prompts", "copies")[choice.reading.reader],
        "gated_by": "leaning" if choice.reading.leaning else "description",
        "threshold": choice.reading.threshold,
        "strength": neuron.strength(choice) * neuron.natural,
        "left_on_validation": trials.left(edits),
        **limits,
    }
    return Part("forward", layer, neuron.neurons, edits, study.write_target, chosen)


def _chosen(neuron: LateNeuron, trials: Trials) -> tuple[Choice, dict[str, Any]]:
    """The reading to use, and its side effects; the quietest where none reaches the goal."""
    known: dict[Choice, dict[str, Any]] = {}
    groups = [[Choice(reading) for reading in group] for group in neuron.readings()]
    for enough in (neuron.silences, neuron.reached):
        best: tuple[Choice, dict[str, Any]] | None = None
        for group in groups:
            if not any(enough(choice) for choice in group):
                continue
            found = _quietest(neuron, trials, group, enough, known)
            if best is None or trials.excess(found[1]) < trials.excess(best[1]):
                best = found
            if trials.excess(best[1]) <= 1:
                return best
    every = [choice for group in groups for choice in group]
    return best or _quietest(neuron, trials, every, neuron.reached, known)


def _quietest(
    neuron: LateNeuron,
    trials: Trials,
    choices: Sequence[Choice],
    enough: Callable[[Choice], bool],
    known: dict[Choice, dict[str, Any]],
) -> tuple[Choice, dict[str, Any]]:
    """The first choice that keeps the budgets, else the quietest, with less margin."""
    choice, limits = trials.first_quiet(neuron.edits, choices, enough, known)
    if "over_budget" not in limits:
        return choice, limits
    weaker = [choice, *(choice._replace(share=share) for share in _SHARES)]
    return trials.first_quiet(neuron.edits, weaker, enough, known)
