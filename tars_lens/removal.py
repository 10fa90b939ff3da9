"""One concept out of the model: the parts of its edit, within the vectors and budgets given."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tars_lens import stack
from tars_lens.concept import Concept
from tars_lens.few import read_and_write, write_only
from tars_lens.lens import Lens
from tars_lens.neutral import Neutral
from tars_lens.patch import Patch
from tars_lens.recipe import Part, forward_part, reverse_part
from tars_lens.settings import Settings
from tars_lens.study import Study
from tars_lens.trials import Trials
from tars_lens.weights import Place, joined
from tars_lens.windows import Windows


@dataclass(frozen=True)
class Removal:
    """How a concept is removed, and what is needed to check it again later.

    Attributes:
        concept: The card.
        parts: The neurons that it takes.
        trials: The material that its strength was chosen on.
        patch: The edit as a patch of the base.
    """

    concept: Concept
    parts: tuple[Part, ...]
    trials: Trials
    patch: Patch

    @property
    def hosts(self) -> set[tuple[int, int]]:
        """`(layer, neuron)` of every neuron that the edit takes over."""
        return _hosts(self.parts)

    def left(self, lens: Lens) -> float:
        """The concept's largest probability on its validation text by the model as it stands."""
        batch = self.trials.forward.batch
        logits = lens.next_logits(batch)
        return float(logits.softmax(dim=-1)[:, list(self.trials.tokens)].sum(dim=1).max())

    def strengthened(self, lens: Lens, factor: float, settings: Settings) -> "Removal":
        """The same removal with the last forward write `factor` times as large."""
        last = max((p for p in self.parts if p.kind == "forward"), key=lambda part: part.layer)
        parts = tuple(_scaled(p, factor) if p is last else p for p in self.parts)
        return replace(self, parts=parts, patch=build_patch(lens, self.concept, parts, settings))


def remove(
    lens: Lens,
    study: Study,
    neutral: Neutral,
    windows: Windows,
    settings: Settings,
    taken: Iterable[tuple[int, int]],
) -> Removal:
    """Finds the edit of one concept by the recipe `tars`; leaves the model as it is.

    Args:
        lens: The model as it stands, with earlier concepts removed.
        study: What the base shows of the concept.
        neutral: Statistics of the base on plain text.
        windows: Whose validation windows side effects are measured on.
        settings: Budgets, and how many vectors there may be.
        taken: Hosts of earlier concepts.
    """
    trials = Trials.of(
        lens,
        study.concept,
        study.known_prompts,
        study.tokens,
        windows,
        settings,
        settings.layers(lens.n_layers)[0],
        near_texts=study.near_texts,
        later=tuple(study.forward),
    )
    budget = settings.edits if settings.edits is not None else 1 << 30
    width = len(lens.roles)
    if budget < width:
        few = write_only if budget == 1 else read_and_write
        parts = [few(lens, study, neutral, trials, taken)]
    else:
        parts = _neurons(lens, study, neutral, trials, taken, budget // width)
    patch = build_patch(lens, study.concept, parts, settings)
    return Removal(study.concept, tuple(parts), trials, patch)


def build_patch(lens: Lens, concept: Concept, parts: Sequence[Part], settings: Settings) -> Patch:
    """The parts as one patch of the base, each row with its cosine to what it was replaced for."""
    edits = joined(part.edits for part in parts)
    return Patch.build(
        lens,
        edits,
        concepts=[concept],
        method={**settings.to_dict(), "parts": [_described(part) for part in parts]},
        seed=settings.seed,
        cosines=_cosines(lens, parts),
        label=concept.key,
    )


def _neurons(
    lens: Lens,
    study: Study,
    neutral: Neutral,
    trials: Trials,
    taken: Iterable[tuple[int, int]],
    count: int,
) -> list[Part]:
    """At most `count` whole neurons, those that matter most first.

    The last forward one, the early reverse one, the forward ones before the last, then the
    second neurons that cap the forward ones, where no norm does that. The forward
    ones are each strong enough alone, so that a prompt that one misses is caught by another.
    """
    hosts = set(taken)
    *earlier, last = sorted(study.forward)
    early = [reverse_part(lens, study, neutral, trials, hosts)] if count > 1 else []
    spare = count - 1 - len(early)
    layers = [last, *earlier[::-1]][: 1 + max(spare, 0)]
    spare = 0 if lens.bounds_writes else spare - len(layers) + 1
    capped = set(layers[: max(spare, 0)])
    forward: list[Part] = []
    for layer in sorted(layers):
        there, used = trials.onward(layer), hosts | _hosts([*early, *forward])
        forward.append(
            forward_part(lens, study, neutral, there, layer, used, capped=layer in capped)
        )
    return [*early, *forward]


def _hosts(parts: Iterable[Part]) -> set[tuple[int, int]]:
    return {(part.layer, neuron) for part in parts for neuron in part.neurons}


def _scaled(part: Part, factor: float) -> Part:
    edits: dict[Place, Any] = dict(part.edits)
    place: Place = (part.layer, "out")
    rows = edits[place]
    edits[place] = rows._replace(values=rows.values * factor)
    chosen = {**part.chosen, "strengthened": part.chosen.get("strengthened", 1.0) * factor}
    return replace(part, edits=edits, chosen=chosen)


def _described(part: Part) -> dict[str, Any]:
    return {
        "kind": part.kind,
        "layer": part.layer,
        "neurons": list(part.neurons),
        **part.chosen,
    }


def _cosines(lens: Lens, parts: Sequence[Part]) -> dict[Place, Tensor]:
    """The cosine of each replaced row with the direction that its neuron reverses."""
    found: dict[Place, list[Tensor]] = {}
    for part in parts:
        for place, rows in part.edits.items():
            old = stack.base_rows(lens, place, rows.neurons).values.float()
            cosine = torch.cosine_similarity(old, part.direction[None].float(), dim=1)
            found.setdefault(place, []).append(cosine)
    return {place: torch.cat(values) for place, values in found.items()}
