"""Erasing with fewer vectors than a whole neuron takes: one `out` row, or a read and a write."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.lens import Lens, Point, Role
from tars_lens.neuron import GAIN, one_row, post_norm_row, without_bias, write_scale
from tars_lens.neutral import Neutral
from tars_lens.recipe import Part
from tars_lens.strengths import smallest_strength
from tars_lens.study import Study
from tars_lens.trials import Trials
from tars_lens.weights import Edits


@dataclass(frozen=True)
class Carrier:
    """An existing neuron that tells the concept from plain text by itself.

    Attributes:
        layer: Where it sits.
        neuron: Which one.
        activation: Its mean activation at the concept's prompts.
    """

    layer: int
    neuron: int
    activation: float


def write_only(
    lens: Lens, study: Study, neutral: Neutral, trials: Trials, taken: Iterable[tuple[int, int]]
) -> Part:
    """One `out` row: the neuron that the concept excites most, made to write against it."""
    carrier = best_carrier(lens, study, neutral, taken)
    natural = write_scale(lens, carrier.layer, neutral)
    row = -post_norm_row(lens, carrier.layer, study.write_target) / carrier.activation
    return _strongest(
        study,
        trials,
        carrier.layer,
        carrier.neuron,
        natural,
        lambda size: {(carrier.layer, "out"): one_row(lens, carrier.neuron, size * row)},
    )


def read_and_write(
    lens: Lens, study: Study, neutral: Neutral, trials: Trials, taken: Iterable[tuple[int, int]]
) -> Part:
    """A read and a write: `gate` and `out` of a gated neuron whose `in` stays, else `in` and `out`.

    The host is one whose own `in` row already gives much the same at all of the concept's prompts.
    """
    layer = max(study.forward)
    reader = study.forward[layer][0]
    y = _at_prompts(lens, study, Point("mlp_in", layer)).float()
    if lens.gated:
        given = y @ lens.vectors(layer, "in").float().T
        steady = given.mean(0).abs() / (given.std(0, unbiased=False) + given.mean(0).abs().median())
        steady[[n for where, n in taken if where == layer]] = -1
        neuron = int(steady.argmax())
        scale = float(given[:, neuron].mean())
    else:
        worth = neutral.activation_rms[layer].clone()
        worth[[n for where, n in taken if where == layer]] = torch.inf
        neuron, scale = int(worth.argmin()), 1.0
    role: Role = "gate" if lens.gated else "in"
    read = reader.row(threshold=trials.settings.forward_thresholds[-1], gain=GAIN)
    rows = {
        (layer, role): one_row(lens, neuron, without_bias(lens, layer, role, neuron, read, reader))
    }
    out = -post_norm_row(lens, layer, study.write_target) / (GAIN * scale)
    natural = write_scale(lens, layer, neutral)
    return _strongest(
        study,
        trials,
        layer,
        neuron,
        natural,
        lambda size: {**rows, (layer, "out"): one_row(lens, neuron, size * out)},
    )


def best_carrier(
    lens: Lens, study: Study, neutral: Neutral, taken: Iterable[tuple[int, int]]
) -> Carrier:
    """The neuron of the later half with the steadiest activation at the concept's prompts.

    Ranked by the least activation at any prompt (of one sign throughout) over the rms activation
    on plain text: |cosine| says nothing of how often a neuron fires.
    """
    layers = range(lens.n_layers // 2, lens.n_layers)
    points = [Point("mlp_post", layer) for layer in layers]
    batch = lens.prompts(study.known_prompts)
    seen = lens.capture(batch.ids, points, positions=batch.last)
    activation = torch.stack([seen[point].float() for point in points])
    rms = neutral.activation_rms[layers.start :].clamp_min(1e-6)
    one_sign = (activation > 0).all(1) | (activation < 0).all(1)
    score = activation.abs().amin(1) / rms * one_sign
    for layer, neuron in taken:
        if layer >= layers.start:
            score[layer - layers.start, neuron] = -1
    index, neuron = divmod(int(score.argmax()), score.shape[1])
    return Carrier(layers.start + index, neuron, float(activation[index, :, neuron].mean()))


def _strongest(
    study: Study,
    trials: Trials,
    layer: int,
    neuron: int,
    natural: float,
    build: Callable[[float], Edits],
) -> Part:
    """The part at twice the smallest strength that reaches the goal."""
    there = trials.onward(layer) if layer >= trials.forward.layer else trials
    found = smallest_strength(lambda m: there.left(build(m * natural)), trials.settings.goal)
    size = trials.settings.safety * found * natural
    edits = build(size)
    chosen = {"strength": size, "left_on_validation": there.left(edits), **there.effects(edits)}
    return Part("forward", layer, (neuron,), edits, study.write_target, chosen)


def _at_prompts(lens: Lens, study: Study, point: Point) -> Float[Tensor, "prompts width"]:
    batch = lens.prompts(study.known_prompts)
    return lens.capture(batch.ids, [point], positions=batch.last)[point]
