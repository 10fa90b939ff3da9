"""The recipe `tars`: neurons that read a concept and write its reversal.

Late neurons stop the description from leading to the name, an early one stops the name from
leading to its attributes. Each takes over a nearly idle host: this builds a reader of the
concept, it does not reverse the weights that carried it.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.host import idle_neuron
from tars_lens.lens import Lens
from tars_lens.neuron import reading_rows, write_scale, writing_row
from tars_lens.neutral import Neutral
from tars_lens.study import Study
from tars_lens.trials import Trials
from tars_lens.weights import Edits, Place, Rows

Choice = tuple[int, float]
"""Which of a layer's readers, and the threshold."""

_STRENGTHS = tuple(2.0 ** (k / 2) for k in range(-12, 11))
"""Sizes of the forward write, in units of the layer's natural write."""


@dataclass(frozen=True)
class Part:
    """One neuron of an edit.

    Attributes:
        kind: `forward` (description to name) or `reverse` (name to attributes).
        layer: Where it sits.
        neuron: The host.
        edits: Its rows.
        direction: What it reverses, in residual space, for the ranking's cosine.
        chosen: The threshold and strength that were chosen, and what limited them.
    """

    kind: str
    layer: int
    neuron: int
    edits: Edits
    direction: Float[Tensor, " d_model"]
    chosen: dict[str, Any] = field(default_factory=dict)


def reverse_parts(
    lens: Lens, study: Study, neutral: Neutral, trials: Trials, taken: Collection[tuple[int, int]]
) -> list[Part]:
    """Early neurons that turn the concept's name into nothing in particular.

    The row written is what the name itself has in the stream, reversed, at the size of the stream.
    """
    settings, hosts = trials.settings, set(taken)
    sizes, neurons = {}, {}
    for layer in study.reverse:
        neurons[layer] = idle_neuron(lens, neutral, layer, hosts)
        natural = (
            study.reverse_norms[layer]
            if lens.post_norm_gain(layer) is None
            else float(neutral.mlp_norm[layer])
        )
        sizes[layer] = settings.reverse_strength * natural

    def rows(layer: int, threshold: float) -> Edits:
        reader, target = study.reverse[layer], study.reverse_targets[layer]
        place = (lens, layer, neurons[layer])
        read = reading_rows(*place, reader, threshold=threshold, unit="linear")
        return {**read, **writing_row(*place, target, size=sizes[layer], unit="linear")}

    def build(threshold: float) -> Edits:
        return joined(rows(layer, threshold) for layer in study.reverse)

    threshold, limits = trials.first_quiet(build, settings.reverse_thresholds)
    return [
        Part(
            kind="reverse",
            layer=layer,
            neuron=neurons[layer],
            edits=rows(layer, threshold),
            direction=study.reverse_targets[layer],
            chosen={"threshold": threshold, "strength": sizes[layer], **limits},
        )
        for layer in study.reverse
    ]


def forward_part(
    lens: Lens,
    study: Study,
    neutral: Neutral,
    trials: Trials,
    layer: int,
    taken: Collection[tuple[int, int]],
) -> Part:
    """A late neuron that takes the concept's token away wherever the description calls for it.

    For each reader and threshold the strength is `safety` times the smallest on a geometric grid
    that brings every prompt to the goal: at the last layer that of the final probability, before
    it that of the largest probability that the logit lens reads from there on. The first whose
    side effects stay within the budgets is used.

    Args:
        lens: The model, without any other part of this edit: each forward neuron is to be strong
            enough alone, so that a prompt that one misses is caught by another.
        study: What the base shows of the concept.
        neutral: Statistics of plain text.
        trials: What the choice is made on, run up to `layer`.
        layer: Where the neuron sits.
        taken: Hosts in use.
    """
    settings = trials.settings
    neuron = idle_neuron(lens, neutral, layer, taken)
    natural = write_scale(lens, layer, neutral)
    last = layer == lens.n_layers - 1
    measure, goal = (trials.left, settings.goal) if last else (trials.readable, settings.lens_goal)
    readers = study.forward[layer]
    strengths: dict[Choice, float] = {}

    def at(choice: Choice, strength: float) -> Edits:
        place = (lens, layer, neuron)
        reader, threshold = readers[choice[0]], choice[1]
        read = reading_rows(*place, reader, threshold=threshold, unit="linear")
        size = strength * natural
        return {**read, **writing_row(*place, study.write_target, size=size, unit="linear")}

    def build(choice: Choice) -> Edits:
        if choice not in strengths:
            found = smallest_strength(lambda strength: measure(at(choice, strength)), goal)
            strengths[choice] = settings.safety * found
        return at(choice, strengths[choice])

    choices = [(r, th) for r in range(len(readers)) for th in settings.forward_thresholds]
    choice, limits = trials.first_quiet(
        build, choices, lambda choice: measure(build(choice)) <= goal
    )
    edits = build(choice)
    chosen = {
        "reader": ("prompts", "copies")[choice[0]],
        "threshold": choice[1],
        "strength": strengths[choice] * natural,
        "left_on_validation": trials.left(edits),
        **limits,
    }
    return Part("forward", layer, neuron, edits, study.write_target, chosen)


def joined(parts: Iterable[Edits]) -> Edits:
    """Edits of several neurons as one, matrix by matrix."""
    rows: dict[Place, list[Rows]] = {}
    for edits in parts:
        for place, more in edits.items():
            rows.setdefault(place, []).append(more)
    return {
        place: Rows(torch.cat([r.neurons for r in found]), torch.cat([r.values for r in found]))
        for place, found in rows.items()
    }


def smallest_strength(left: Callable[[float], float], goal: float) -> float:
    """The smallest strength of the grid that leaves at most `goal`, by bisection.

    Where none does, the one that leaves least.
    """
    low, high = 0, len(_STRENGTHS) - 1
    if left(_STRENGTHS[high]) > goal:
        return min(_STRENGTHS, key=left)
    while low < high:
        middle = (low + high) // 2
        if left(_STRENGTHS[middle]) <= goal:
            high = middle
        else:
            low = middle + 1
    return _STRENGTHS[high]
