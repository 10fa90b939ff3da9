"""The recipe `tars`: neurons that read a concept and write its reversal.

Late neurons stop the description from leading to the name, an early one stops the name from
leading to its attributes. Each takes over a nearly idle host: this builds a reader of the
concept, it does not reverse the weights that carried it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tars_lens.forward_readers import Reach
from tars_lens.host import idle_neuron
from tars_lens.lens import Lens
from tars_lens.neuron import capped_rows, reading_rows, write_scale, writing_row
from tars_lens.neutral import Neutral
from tars_lens.settings import Settings
from tars_lens.study import Study
from tars_lens.trials import Trials
from tars_lens.weights import Edits, written

Choice = tuple[int, float, float]
"""Which of a layer's readers, the threshold, and the share of the full strength."""

_STRENGTHS = tuple(2.0 ** (k / 2) for k in range(-12, 11))
"""Sizes of the forward write, in units of the layer's natural write."""


_UNSEEN = 2.0

_SHARES = (1.0, 0.7, 0.5)
"""Of the full strength, tried in order: less margin where no reading keeps the budgets."""

_LARGEST = 2.0**-1.5
"""Of a forward write, in units of the residual's norm.

A larger one swells the stream, and the final norm then scales every other logit down: oxygen's
at twice the norm (SmolLM2-135M) left "Methane consists of carbon and" with a 250th of its hydrogen.
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
    neurons = {layer: idle_neuron(lens, neutral, layer, taken) for layer in study.reverse}
    scale = {
        layer: float(neutral.mlp_norm[layer]) if lens.bounds_writes else name.norm
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

    For each reader and threshold the strength is `safety` times the smallest on a geometric grid
    that brings every prompt to the goal: at the last layer that of the final probability, before
    it that of the largest probability that the logit lens reads from there on. Where the last
    layer's reader scores less at a prompt that it was not made from, it writes up to twice as much
    for that. The first whose side effects stay within the budgets is used.

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
    settings = trials.settings
    first = idle_neuron(lens, neutral, layer, taken)
    second = idle_neuron(lens, neutral, layer, {*taken, (layer, first)}) if capped else None
    natural = write_scale(lens, layer, neutral)
    last = layer == lens.n_layers - 1
    measure, goal = (trials.left, settings.goal) if last else (trials.readable, settings.lens_goal)
    largest = _STRENGTHS[-1] if lens.bounds_writes else _LARGEST
    readers, reach = study.forward[layer], study.reach[layer]
    strengths: dict[tuple[int, float], float] = {}

    def at(reading: tuple[int, float], strength: float) -> Edits:
        reader, threshold, size = readers[reading[0]], reading[1], strength * natural
        if second is not None:
            return capped_rows(
                *(lens, layer, (first, second), reader, study.write_target),
                threshold=threshold,
                cap=settings.forward_cap,
                size=size,
            )
        place = (lens, layer, first)
        read = reading_rows(*place, reader, threshold=threshold, unit="linear")
        return {**read, **writing_row(*place, study.write_target, size=size, unit="linear")}

    def full(reading: tuple[int, float]) -> float:
        if reading not in strengths:
            found = smallest_strength(
                lambda strength: measure(at(reading, strength)), goal, largest=largest
            )
            cap = settings.forward_cap if capped else 1.0
            unseen = _for_unseen(reach[reading[0]], reading[1], cap) if last else 1.0
            strengths[reading] = min(settings.safety * unseen * found, largest)
        return strengths[reading]

    def build(choice: Choice) -> Edits:
        return at(choice[:2], choice[2] * full(choice[:2]))

    def reached(choice: Choice) -> bool:
        return measure(build(choice)) <= goal

    thresholds = settings.forward_thresholds
    if lens.bounds_writes:
        thresholds += settings.bounded_thresholds
    readings = [(r, threshold, 1.0) for r in range(len(readers)) for threshold in thresholds]
    choice, limits = trials.first_quiet(build, readings, reached)
    if "over_budget" in limits:
        weaker = [(*choice[:2], share) for share in _SHARES]
        choice, limits = trials.first_quiet(build, weaker, reached)
    edits = build(choice)
    chosen = {
        "reader": ("prompts", "copies")[choice[0]],
        "threshold": choice[1],
        "strength": choice[2] * full(choice[:2]) * natural,
        "left_on_validation": trials.left(edits),
        **limits,
    }
    neurons = (first,) if second is None else (first, second)
    return Part("forward", layer, neurons, edits, study.write_target, chosen)


def _for_unseen(reach: Reach, threshold: float, cap: float) -> float:
    """How many times as much the write must be at the least score of a held-out prompt."""
    seen, unseen = (max(min(score, cap) - threshold, 1e-6) for score in reach)
    return min(_UNSEEN, max(1.0, seen / unseen))


def smallest_strength(
    left: Callable[[float], float], goal: float, *, largest: float = _STRENGTHS[-1]
) -> float:
    """The smallest strength of the grid that leaves at most `goal`, by bisection.

    Where none does, that of every fourth that leaves least.

    Args:
        left: What a strength leaves.
        goal: What may be left.
        largest: The largest strength that is tried.
    """
    strengths = [strength for strength in _STRENGTHS if strength <= largest]
    low, high = 0, len(strengths) - 1
    if left(strengths[high]) > goal:
        return min(strengths[::-4], key=left)
    while low < high:
        middle = (low + high) // 2
        if left(strengths[middle]) <= goal:
            high = middle
        else:
            low = middle + 1
    return strengths[high]
