"""Evidence of an erasure: a battery of measures on an edited model, beside its controls.

`evaluate` runs it; `registry.MEASURES` says what there is. The definitions are those of the
project's page on evaluation (`docs/evaluation.md`).
"""

from tars_lens.evaluation.battery import Evaluation, evaluate
from tars_lens.evaluation.controls import controls
from tars_lens.evaluation.measure import Measure, Result
from tars_lens.evaluation.registry import MEASURES
from tars_lens.evaluation.subject import Subject, checkpoint, patched, untouched
from tars_lens.evaluation.suites import FULL, QUICK, Suite

__all__ = [
    "FULL",
    "MEASURES",
    "QUICK",
    "Evaluation",
    "Measure",
    "Result",
    "Subject",
    "Suite",
    "checkpoint",
    "controls",
    "evaluate",
    "patched",
    "untouched",
]
