"""tars_lens: find, remove and explain a concept in a language model.

    lens = tars_lens.load("smollm2-135m")
    erasure = tars_lens.erase(lens, [tars_lens.Concept.load("saturn")])

The method is targeted angular reversal of weights (TARS, arXiv 2412.10257).
"""

from typing import TYPE_CHECKING, Any

from tars_lens.concept import Concept, builtin_concepts
from tars_lens.errors import TarsError

if TYPE_CHECKING:
    from tars_lens.attribution import (
        causal_trace,
        direct_attribution,
        edit_effects,
        enrichment,
        propagation,
    )
    from tars_lens.card_making import make_card
    from tars_lens.disk_ranking import rank_checkpoint
    from tars_lens.erasure import Erasure, erase
    from tars_lens.explaining import explain
    from tars_lens.lens import Lens
    from tars_lens.loading import load
    from tars_lens.method.ranking import rank
    from tars_lens.method.recipe import suppress
    from tars_lens.method.reversal import reverse
    from tars_lens.method.settings import Settings
    from tars_lens.method.targeting import TargetingVector, target
    from tars_lens.patch import Patch
    from tars_lens.verification import verify

_ROOMS = {
    "causal_trace": "attribution",
    "direct_attribution": "attribution",
    "edit_effects": "attribution",
    "enrichment": "attribution",
    "propagation": "attribution",
    "Erasure": "erasure",
    "erase": "erasure",
    "explain": "explaining",
    "Lens": "lens",
    "load": "loading",
    "make_card": "card_making",
    "Patch": "patch",
    "rank": "method.ranking",
    "rank_checkpoint": "disk_ranking",
    "reverse": "method.reversal",
    "suppress": "method.recipe",
    "Settings": "method.settings",
    "TargetingVector": "method.targeting",
    "target": "method.targeting",
    "verify": "verification",
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
    "causal_trace",
    "direct_attribution",
    "edit_effects",
    "enrichment",
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
    if not isinstance(value, type):
        value = import_module("tars_lens.surroundings").undisturbed(value)
    globals()[name] = value
    return value
