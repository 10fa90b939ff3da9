"""tars_lens: find, remove and explain a concept in a language model.

    lens = tars_lens.load("smollm2-135m")
    erasure = tars_lens.erase(lens, [tars_lens.Concept.load("saturn")])

The method is targeted angular reversal of weights (TARS, arXiv 2412.10257).
"""

from typing import TYPE_CHECKING, Any

from tars_lens.common import former_places
from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept, builtin_concepts

if TYPE_CHECKING:
    from tars_lens.attribution import (
        edit_effects,
        propagation,
    )
    from tars_lens.attribution.explaining import explain
    from tars_lens.concept.card_making import make_card
    from tars_lens.evaluation.erasure import Erasure, erase
    from tars_lens.method.disk_ranking import rank_checkpoint
    from tars_lens.method.ranking import rank
    from tars_lens.method.recipe import suppress
    from tars_lens.method.reversal import reverse
    from tars_lens.method.settings import Settings
    from tars_lens.method.targeting import TargetingVector, target
    from tars_lens.model.lens import Lens
    from tars_lens.model.loading import load
    from tars_lens.patch.patch import Patch
    from tars_lens.patch.verification import verify

former_places.install()

_ROOMS = {
    "edit_effects": "attribution",
    "propagation": "attribution",
    "Erasure": "evaluation.erasure",
    "erase": "evaluation.erasure",
    "explain": "attribution.explaining",
    "Lens": "model.lens",
    "load": "model.loading",
    "make_card": "concept.card_making",
    "Patch": "patch.patch",
    "rank": "method.ranking",
    "rank_checkpoint": "method.disk_ranking",
    "reverse": "method.reversal",
    "suppress": "method.recipe",
    "Settings": "method.settings",
    "TargetingVector": "method.targeting",
    "target": "method.targeting",
    "verify": "patch.verification",
}

__all__ = [
    "Concept",
    "Erasure",
    "Lens",
    "Patch",
    "Settings",
    "TargetingVector",
    "TarsError",
    "builtin_concepts",
    "edit_effects",
    "erase",
    "explain",
    "load",
    "make_card",
    "propagation",
    "rank",
    "rank_checkpoint",
    "reverse",
    "suppress",
    "target",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: torch takes seconds, and `--help` needs none."""
    from importlib import import_module

    if name not in _ROOMS:
        raise AttributeError(f"module 'tars_lens' has no attribute {name!r}")
    value = getattr(import_module(f"tars_lens.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value
