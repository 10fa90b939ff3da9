"""Other methods of removing a concept, each from its paper's definition, and their comparison."""

from tars_lens.experiments.rivals.base import Edit, Rival, of_all, recorded, together
from tars_lens.experiments.rivals.comparing import Comparison, compare
from tars_lens.experiments.rivals.registry import RIVALS, rivals_called

__all__ = [
    "RIVALS",
    "Comparison",
    "Edit",
    "Rival",
    "compare",
    "of_all",
    "recorded",
    "rivals_called",
    "together",
]
