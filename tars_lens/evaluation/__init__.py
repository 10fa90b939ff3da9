"""What an edit did: `erase`, which removes and measures, and the battery. Knows `method`.

`evaluate` runs the battery, and `registry.MEASURES` says what there is. Each measure is defined in
`docs/evaluation.md`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tars_lens.evaluation.battery import Evaluation, evaluate
    from tars_lens.evaluation.control_edits import controls
    from tars_lens.evaluation.measure import Measure, Result
    from tars_lens.evaluation.registry import MEASURES
    from tars_lens.evaluation.silence import Certificate, certify
    from tars_lens.evaluation.subject import Subject, checkpoint, patched, untouched
    from tars_lens.evaluation.suites import FULL, QUICK, Suite

_FILES = {
    "Evaluation": "battery",
    "evaluate": "battery",
    "controls": "control_edits",
    "Measure": "measure",
    "Result": "measure",
    "MEASURES": "registry",
    "Certificate": "silence",
    "certify": "silence",
    "Subject": "subject",
    "checkpoint": "subject",
    "patched": "subject",
    "untouched": "subject",
    "FULL": "suites",
    "QUICK": "suites",
    "Suite": "suites",
}

__all__ = [
    "FULL",
    "MEASURES",
    "QUICK",
    "Certificate",
    "Evaluation",
    "Measure",
    "Result",
    "Subject",
    "Suite",
    "certify",
    "checkpoint",
    "controls",
    "evaluate",
    "patched",
    "untouched",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: the page of a run needs no torch."""
    if name not in _FILES:
        raise AttributeError(f"module 'tars_lens.evaluation' has no attribute {name!r}")
    return getattr(import_module(f"tars_lens.evaluation.{_FILES[name]}"), name)
