"""Every measure of the battery, in the order in which tables show them."""

from tars_lens.evaluation.measure import Measure
from tars_lens.evaluation.measures import (
    attacks,
    fluency,
    hidden,
    logit_lens,
    neighbours,
    patch_back,
    plain_text,
    probes,
    quantisation,
    relearning,
    steering,
    vectors,
)
from tars_lens.evaluation.subject import Subject
from tars_lens.evaluation.suites import Suite

MEASURES: tuple[Measure, ...] = (
    *probes.MEASURES,
    *attacks.MEASURES,
    *neighbours.MEASURES,
    *plain_text.MEASURES,
    *fluency.MEASURES,
    *logit_lens.MEASURES,
    *hidden.MEASURES,
    *vectors.MEASURES,
    *patch_back.MEASURES,
    *steering.MEASURES,
    *quantisation.MEASURES,
    *relearning.MEASURES,
)
"""To add one: a module in `measures/` with a `MEASURES` of its own, named here."""


def measures_of(suite: Suite, subject: Subject) -> tuple[Measure, ...]:
    """The measures that a suite takes of a subject."""
    return tuple(measure for measure in MEASURES if measure.taken(suite.name, subject))
