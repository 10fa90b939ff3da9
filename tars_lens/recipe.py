"""The recipe `tars`: neurons that read a concept and write its reversal.

A late neuron stops the description from leading to the name; early ones stop the name from
leading to its attributes. Each takes over a nearly idle host: this builds a reader of the
concept, it does not reverse the weights that carried it.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept import Concept
from tars_lens.host import idle_neuron
from tars_lens.lens import Batch, Lens
from tars_lens.neuron import reading_rows, write_scale, writing_row
from tars_lens.neutral import Neutral
from tars_lens.settings import Settings
from tars_lens.study import Study
from tars_lens.trial import Bench
from tars_lens.weights import Edits, Place, Rows
from tars_lens.windows import Windows

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


@dataclass(frozen=True)
class Trials:
    """The material that settings are chosen on, ready to be run; never the reported probes.

    Attributes:
        forward: The concept's own prompts and its card's validation, where its token is to vanish.
        near: Prompts about other things, whose continuation is to stay; `None` without any.
        plain: Windows of plain text.
        tokens: The concept's first tokens.
        settings: The budgets.
    """

    forward: Bench
    near: Bench | None
    plain: Bench
    tokens: tuple[int, ...]
    settings: Settings

    @classmethod
    def of(
        cls,
        lens: Lens,
        concept: Concept,
        prompts: Sequence[str],
        tokens: Sequence[int],
        windows: Windows,
        settings: Settings,
        layer: int,
    ) -> "Trials":
        """Runs the material up to `layer`, the first that any edit on trial will touch.

        Args:
            lens: The model as it stands.
            concept: The card, whose validation and contrast are used.
            prompts: The concept prompts that lead to the concept.
            tokens: The concept's first tokens.
            windows: Whose validation windows are the plain text.
            settings: The budgets.
            layer: Where to stop.
        """
        forward = [*prompts, *(p.prompt for p in concept.validation.forward)]
        near = dict.fromkeys(p.prompt for p in (*concept.contrast, *concept.validation.neighbour))
        ids = windows.validation
        last = torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
        return cls(
            forward=Bench.of(lens, lens.prompts(forward), layer),
            near=Bench.of(lens, lens.prompts(list(near)), layer) if near else None,
            plain=Bench.of(lens, Batch(ids, last), layer),
            tokens=tuple(tokens),
            settings=settings,
        )

    def onward(self, layer: int) -> "Trials":
        """The same material run on to a later layer by the model as it stands now."""
        return replace(
            self,
            forward=self.forward.onward(layer),
            near=self.near.onward(layer) if self.near else None,
            plain=self.plain.onward(layer),
        )

    def left(self, edits: Edits) -> float:
        """The concept's largest probability at any prompt it is to vanish from."""
        return float(self.forward.mass(edits, self.tokens).max())

    def first_quiet(
        self, build: Callable[[float], Edits], thresholds: Sequence[float]
    ) -> tuple[float, dict[str, Any]]:
        """The first threshold within the budget of side effects, else the least disturbing one.

        Returns:
            The threshold, and its side effects; `over_budget` is among them where even the
            quietest edit disturbs more than was allowed, as the factor by which it does.
        """
        tried: list[tuple[float, float, dict[str, Any]]] = []
        for threshold in thresholds:
            figures = self.effects(build(threshold))
            excess = self.excess(figures)
            if excess <= 1:
                return threshold, figures
            tried.append((excess, threshold, {**figures, "over_budget": excess}))
        _, threshold, figures = min(tried, key=lambda row: row[0])
        return threshold, figures

    def effects(self, edits: Edits) -> dict[str, Any]:
        """Side effects: mean KL on plain text, and the largest KL at a near prompt."""
        near = float(self.near.end_kl(edits, self.tokens).max()) if self.near else 0.0
        return {"plain_kl": self.plain.mean_kl(edits), "neighbour_kl": near}

    def excess(self, effects: dict[str, Any]) -> float:
        """By what factor the side effects exceed the tighter of the two budgets."""
        return max(
            effects["plain_kl"] / self.settings.max_kl,
            effects["neighbour_kl"] / self.settings.max_neighbour_kl,
        )


def reverse_parts(
    lens: Lens, study: Study, neutral: Neutral, trials: Trials, taken: Collection[tuple[int, int]]
) -> list[Part]:
    """Early neurons that turn the concept's name into nothing in particular.

    `in = gate`, so that the activation grows with the square of the score; the row written is
    the name's own trace in the stream, reversed, at the size of the stream.
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
        read = reading_rows(*place, reader, threshold=threshold, unit="squared")
        return {**read, **writing_row(*place, target, size=sizes[layer], unit="squared")}

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

    For each threshold the strength is `safety` times the smallest on a geometric grid that
    brings every prompt to the goal; the first threshold whose side effects stay within the
    budget is used.
    """
    settings = trials.settings
    neuron = idle_neuron(lens, neutral, layer, taken)
    natural = write_scale(lens, layer, neutral)
    strengths: dict[float, float] = {}

    def at(threshold: float, strength: float) -> Edits:
        place = (lens, layer, neuron)
        read = reading_rows(*place, study.forward[layer], threshold=threshold, unit="linear")
        size = strength * natural
        return {**read, **writing_row(*place, study.write_target, size=size, unit="linear")}

    def build(threshold: float) -> Edits:
        if threshold not in strengths:
            found = smallest_strength(
                lambda strength: trials.left(at(threshold, strength)), settings.goal
            )
            strengths[threshold] = settings.safety * found
        return at(threshold, strengths[threshold])

    threshold, limits = trials.first_quiet(build, settings.forward_thresholds)
    edits = build(threshold)
    chosen = {
        "threshold": threshold,
        "strength": strengths[threshold] * natural,
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
