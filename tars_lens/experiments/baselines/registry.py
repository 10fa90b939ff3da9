"""Every baseline by name, in the order in which tables show them."""

import logging
from collections.abc import Sequence

from tars_lens.common.errors import TarsError, unknown
from tars_lens.experiments.baselines.closed_form import ablation, engram, leace, rank_one
from tars_lens.experiments.baselines.edits import EXTRAS, Baseline, extra
from tars_lens.experiments.baselines.trained import gradient_ascent, npo, rmu

logger = logging.getLogger(__name__)

BASELINES: dict[str, Baseline] = {
    "ablation": ablation,
    "leace": leace,
    "rank_one": rank_one,
    "engram": engram,
    "gradient_ascent": gradient_ascent,
    "npo": npo,
    "rmu": rmu,
}
"""To add one: a function of type `Baseline`, named here and in `cli/compare.py`."""


def baselines_called(names: Sequence[str] | None) -> dict[str, Baseline]:
    """Baselines by name; all that can run on this machine where none is named.

    Raises:
        TarsError: There is none of a name, or it needs a package that isn't installed.
    """
    for name in names or ():
        if name not in BASELINES:
            raise unknown("baseline", name, BASELINES)
    found = {name: BASELINES[name] for name in (BASELINES if names is None else names)}
    for name in [name for name in EXTRAS if name in found]:
        try:
            extra(name)
        except TarsError:
            if names is not None:
                raise
            logger.warning("%s is left out: it needs pip install 'tars-lens[%s]'.", name, name)
            del found[name]
    return found
