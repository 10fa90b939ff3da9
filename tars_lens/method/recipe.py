"""The recipe `tars`: suppression neurons in the later layers, and one that reads the name early.

Each takes over a nearly idle neuron: the concept is locked away, the weights that stored it stay.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.method.direction import ConceptDirection, concept_direction, near_names
from tars_lens.method.name import NameNeuron, name_neuron, name_shown
from tars_lens.method.partial import partial_neuron
from tars_lens.method.settings import Settings
from tars_lens.method.suppression import (
    Prompts,
    Shown,
    Site,
    SuppressionNeuron,
    suppression_neuron,
)
from tars_lens.model.lens import Lens
from tars_lens.model.unembedding import Unembedding
from tars_lens.model.weights import Edits, Place, joined
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch
from tars_lens.text.corpus import Corpus, load_corpus
from tars_lens.text.plain_text import Places, PlainText
from tars_lens.text.windows import cut

COPIES = ("{0}, {0}, {0},", "The word is {0}. Again, the word is", "{0} and {0} and")
"""Texts that go on with a name because they have said it before."""

Neuron = SuppressionNeuron | NameNeuron


@undisturbed
def suppress(
    lens: Lens,
    concept: Concept,
    *,
    settings: Settings | None = None,
    corpus: Corpus | None = None,
    taken: Collection[tuple[int, int]] = (),
) -> Patch:
    """The recipe's edit of one concept, as a patch; the model is left as it is.

    Args:
        lens: The base model.
        concept: The card; its probes are not looked at.
        settings: The recipe's constants; its defaults where not given.
        corpus: Plain text for statistics; the built-in Wikipedia sample by default.
        taken: `(layer, neuron)` of hosts of other concepts' edits.

    Raises:
        TarsError: No prompt of the card leads to the concept.
    """
    chosen = settings or Settings()
    windows = cut(lens, corpus or load_corpus(), reported_tokens=1)
    return Recipe.prepared(lens, windows.statistics, chosen).patch(concept, taken)


@dataclass(frozen=True)
class Recipe:
    """What the recipe needs of a model for any concept.

    Attributes:
        lens: The base model.
        plain: What it does on plain text.
        unembedding: Statistics of its unembedding.
        settings: The recipe's constants.
    """

    lens: Lens
    plain: PlainText
    unembedding: Unembedding
    settings: Settings

    @classmethod
    def prepared(cls, lens: Lens, ids: Tensor, settings: Settings) -> "Recipe":
        """Gathers it, from the user's cache where it lies there.

        Args:
            lens: The base model.
            ids: Windows of plain text, `[windows pos]`.
            settings: The recipe's constants.
        """
        sites = suppression_sites(lens.n_layers, settings)
        named = settings.name_layers(lens.n_layers)
        places = Places(
            inputs=tuple(sorted({*named, *(site.layer for site in sites)})),
            streams=tuple(sorted({layer for site in sites for layer in site.readings})),
            moments=(settings.named_layer(lens.n_layers),),
        )
        plain = PlainText.cached(lens, ids, places)
        return cls(lens, plain, Unembedding.fit(lens), settings)

    def patch(self, concept: Concept, taken: Collection[tuple[int, int]] = ()) -> Patch:
        """The edit of one concept as a patch of the base."""
        neurons = self.neurons(concept, taken)
        return build_patch(
            self.lens,
            joined(neuron.edits for neuron in neurons),
            concept,
            self.settings,
            [describe_neuron(neuron) for neuron in neurons],
        )

    def neurons(self, concept: Concept, taken: Collection[tuple[int, int]] = ()) -> list[Neuron]:
        """The neurons of a concept, earliest first, as many as the settings allow.

        Those that matter most come first: the last layer's, the name's, and those before the last
        layer, the later before the earlier.
        """
        direction = concept_direction(self.lens, concept, self.unembedding, self.settings)
        width = len(self.lens.roles)
        budget = self.settings.edits or self.settings.neurons * width
        if budget < width:
            return [self._partial(direction, concept, budget, taken)]
        count, used = budget // width, set(taken)
        found: list[Neuron] = []
        if count > 1:
            near = self.settings.near_names
            names = near_names(self.lens, concept, direction.nearest, near)
            said = name_shown(self.lens, concept, names, self.settings)
            found.append(name_neuron(self.lens, said, self.plain, self.settings, used))
            used.add((found[0].layer, found[0].neuron))
        return [*found, *self.suppression(direction, concept, max(1, count - 1), used)]

    def suppression(
        self,
        direction: ConceptDirection,
        concept: Concept,
        count: int,
        taken: Collection[tuple[int, int]] = (),
    ) -> list[SuppressionNeuron]:
        """At most `count` suppression neurons, earliest first.

        Each is fitted with the earlier ones in place as well, which a prompt may slip past: what
        they leave of the concept is what the next one has to read.
        """
        sites = suppression_sites(self.lens.n_layers, self.settings)
        texts = Prompts(self.lens, self._texts(direction, concept), direction, sites)
        base = texts.shown()
        target = self._target(direction)
        wanted = [site for site in sites[:-1] if self._readable(base[0], site)]
        found: list[SuppressionNeuron] = []
        for site in [*wanted[max(0, len(wanted) - count + 1) :], sites[-1]]:
            edits = joined(neuron.edits for neuron in found)
            prompts = [*base, *texts.shown(edits)] if found else base
            used = {*taken, *((n.layer, n.neuron) for n in found)}
            neuron = suppression_neuron(
                self.lens, site, direction, target, self.plain, prompts, self.settings, used
            )
            found.append(neuron)
        return found

    def _partial(
        self,
        direction: ConceptDirection,
        concept: Concept,
        count: int,
        taken: Collection[tuple[int, int]],
    ) -> SuppressionNeuron:
        """The last layer's neuron with fewer vectors than a whole one takes."""
        site = suppression_sites(self.lens.n_layers, self.settings)[-1]
        texts = self._texts(direction, concept)
        prompts = Prompts(self.lens, texts, direction, [site]).shown()
        target = self._target(direction)
        return partial_neuron(
            self.lens, site, direction, target, self.plain, prompts, self.settings, count, taken
        )

    def _texts(self, direction: ConceptDirection, concept: Concept) -> list[list[str]]:
        """Groups of prompts that readers are fitted to beside plain text, the card's own first.

        Then the card's near prompts, and texts that go on with a name because they have said it
        before: with the concept's, and with those of its kind.
        """
        others = near_names(self.lens, concept, direction.nearest, self.settings.copied_names)
        return [
            list(direction.prompts),
            [probe.prompt for probe in concept.contrast],
            [text.format(concept.answer) for text in COPIES],
            [text.format(name) for name in others for text in COPIES[:2]],
        ]

    def _target(self, direction: ConceptDirection) -> Float[Tensor, " d_model"]:
        return self.unembedding.write_target(
            direction.tokens,
            direction.neighbours,
            ridge=self.settings.write_ridge,
            neighbour_weight=self.settings.neighbour_weight,
            slack=self.settings.write_slack,
        )

    def _readable(self, own: Shown, site: Site) -> bool:
        return float(own.target(site).max().exp()) >= self.settings.readable


def suppression_sites(n_layers: int, settings: Settings) -> tuple[Site, ...]:
    """Where suppression neurons may sit, earliest first, and what each is there to stop.

    What the lens reads after a neuron's own layer, and what it reads just before the next one.
    """
    layers = settings.suppression_layers(n_layers)
    befores = [*(layer - 1 for layer in layers[1:]), n_layers - 1]
    return tuple(
        Site(layer, tuple(dict.fromkeys((layer, max(layer, before)))))
        for layer, before in zip(layers, befores, strict=True)
    )


def build_patch(
    lens: Lens,
    edits: Edits,
    concept: Concept,
    settings: Settings,
    parts: Sequence[dict[str, Any]],
) -> Patch:
    """Rows as a patch of the base, with every setting that decided them.

    Each row's cosine is that of the row that is replaced with the vector that replaces it,
    reversed: 1 is a row that is turned round.
    """
    cosines: dict[Place, Tensor] = {}
    for place, rows in edits.items():
        old = stack.base_rows(lens, place, rows.neurons).values.float()
        cosines[place] = torch.cosine_similarity(old, -rows.values.float(), dim=1)
    return Patch.build(
        lens,
        edits,
        concepts=[concept],
        method={**settings.to_dict(), "parts": list(parts)},
        seed=settings.seed,
        cosines=cosines,
        label=concept.key,
    )


def describe_neuron(neuron: Neuron) -> dict[str, Any]:
    """What reports say of a neuron of the recipe."""
    kind = "name" if isinstance(neuron, NameNeuron) else "suppression"
    return {"kind": kind, "layer": neuron.layer, "neurons": [neuron.neuron], **neuron.about}
