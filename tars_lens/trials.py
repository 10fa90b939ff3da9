"""The material that the settings of an edit are chosen on, and the budgets that it must keep."""

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from tars_lens.concept import Concept, forms_in
from tars_lens.lens import Batch, Lens
from tars_lens.settings import Settings
from tars_lens.trial import Bench
from tars_lens.weights import Edits
from tars_lens.windows import Windows

_PLAIN = 2
_SMALL = 0.25

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Trials:
    """The material that settings are chosen on, ready to be run; never the reported probes.

    Attributes:
        forward: The concept's own prompts and its card's validation, where its token is to vanish.
        near: Prompts about other things, whose continuation is to stay; `None` without any.
        plain: Windows of plain text.
        tokens: The concept's first tokens.
        settings: The budgets.
        prompts: How many of the forward texts are the concept's own prompts; they come first.
    """

    forward: Bench
    near: Bench | None
    plain: Bench
    tokens: tuple[int, ...]
    settings: Settings
    prompts: int

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
        near_texts: Sequence[str] = (),
        later: Collection[int] = (),
    ) -> "Trials":
        """Runs the material once, for trials of edits from `layer` on.

        Args:
            lens: The model as it stands.
            concept: The card, whose validation and contrast are used.
            prompts: The concept prompts that lead to the concept.
            tokens: The concept's first tokens.
            windows: Whose validation windows are the plain text.
            settings: The budgets.
            layer: The first that any edit on trial will touch.
            near_texts: Further texts that are to go on as they did.
            later: Layers whose edits are tried by themselves afterwards (`onward`).
        """
        kept = {at + more for at in later for more in (0, 1)}
        forward = [*prompts, *(p.prompt for p in concept.validation.forward)]
        probes = (*concept.contrast, *concept.validation.neighbour)
        near = dict.fromkeys([*(probe.prompt for probe in probes), *near_texts])
        ids = _elsewhere(lens, windows, (*concept.names, *concept.surface_forms))
        last = torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
        return cls(
            forward=Bench.of(lens, lens.prompts(forward), layer, later),
            near=Bench.of(lens, lens.prompts(list(near)), layer, later) if near else None,
            plain=Bench.of(lens, Batch(ids, last), layer, kept),
            tokens=tuple(tokens),
            settings=settings,
            prompts=len(prompts),
        )

    def onward(self, layer: int) -> "Trials":
        """The same material for edits of a later layer; the model stands as it did."""
        return replace(
            self,
            forward=self.forward.onward(layer),
            near=self.near.onward(layer) if self.near else None,
            plain=self.plain.onward(layer),
        )

    def left(self, edits: Edits) -> float:
        """The concept's largest probability at any prompt it is to vanish from."""
        return float(self.forward.mass(edits, self.tokens).max())

    def readable(self, edits: Edits) -> float:
        """The concept's largest probability at its own prompts, after any layer from here on."""
        return float(self.forward.lens_mass(edits, self.tokens, self.prompts).max())

    def first_quiet(
        self,
        build: Callable[[Setting], Edits],
        settings: Sequence[Setting],
        enough: Callable[[Setting], bool] = lambda _setting: True,
        known: dict[Setting, dict[str, Any]] | None = None,
    ) -> tuple[Setting, dict[str, Any]]:
        """The first setting within the budgets of side effects, else the least disturbing one.

        One that disturbs the near texts more than another disturbs in all is not run on plain text.

        Args:
            build: The edit at a setting.
            settings: What is tried, in order.
            enough: Whether the edit does what it is for; one that doesn't is the last resort.
            known: Side effects of settings that were measured before; those measured now join them.

        Returns:
            The setting, and its side effects; `over_budget` is among them where even the
            quietest edit disturbs more than was allowed, as the factor by which it does.
        """
        best: tuple[float, Setting, dict[str, Any]] | None = None
        seen = {} if known is None else known

        def measure(setting: Setting) -> None:
            nonlocal best
            least = torch.inf if best is None else best[0]
            figures = seen.get(setting) or self._effects_below(build(setting), least)
            if figures is None:
                return
            seen[setting] = figures
            if not (excess := self.excess(figures)) >= least:
                best = excess, setting, figures

        short = []
        for setting in settings:
            if not enough(setting):
                short.append(setting)
                continue
            measure(setting)
            if best is not None and best[0] <= 1:
                return best[1:]
        for setting in () if best else short:
            measure(setting)
        if best is None:
            raise ValueError("there is no setting to choose from")
        excess, quietest, figures = best
        return quietest, {**figures, "over_budget": excess} if excess > 1 else figures

    def effects(self, edits: Edits) -> dict[str, Any]:
        """Side effects of edits.

        Returns:
            Mean KL on plain text, the largest KL at a near prompt, and the least share that the
            base's likeliest token keeps of its probability at one.
        """
        return {"plain_kl": self._plain_kl(edits), **self._near_effects(edits)}

    def _effects_below(self, edits: Edits, least: float) -> dict[str, Any] | None:
        """`effects`, or `None` where they exceed the budgets by a factor of `least` or more."""
        near = self._near_effects(edits)
        if self.excess({"plain_kl": 0.0, **near}) >= least:
            return None
        return {"plain_kl": self._plain_kl(edits), **near}

    def _plain_kl(self, edits: Edits) -> float:
        return self.plain.mean_kl(edits, small=_SMALL * self.settings.max_kl)

    def _near_effects(self, edits: Edits) -> dict[str, float]:
        near, kept = 0.0, 1.0
        if self.near is not None:
            divergence, shares = self.near.end_effects(edits, self.tokens)
            near, kept = float(divergence.max()), float(shares.min())
        return {"neighbour_kl": near, "neighbour_kept": kept}

    def excess(self, effects: dict[str, Any]) -> float:
        """By what factor the side effects exceed the tightest of the budgets."""
        factor = max(
            effects["plain_kl"] / self.settings.max_kl,
            effects["neighbour_kl"] / self.settings.max_neighbour_kl,
            (1 - effects["neighbour_kept"]) / (1 - self.settings.keep_neighbours),
        )
        # a tiny budget is exceeded infinitely, and then no setting would be better than none
        return min(factor, sys.float_info.max)


def _elsewhere(lens: Lens, windows: Windows, forms: Sequence[str]) -> Int[Tensor, "windows pos"]:
    """Validation windows that don't name the concept: where one does, a change is asked for.

    Where all of them do, windows that the statistics are of; where those do too, the first.
    """
    for ids in (windows.validation, windows.statistics):
        texts = (lens.tokenizer.decode(row) for row in ids)
        found = list(
            islice((i for i, text in enumerate(texts) if not forms_in(text, forms)), _PLAIN)
        )
        if found:
            return ids[found]
    return windows.validation[:1]
