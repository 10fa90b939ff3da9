"""Every rival by name, in the order in which tables show them."""

import logging
from collections.abc import Sequence

from tars_lens.common.errors import TarsError, unknown
from tars_lens.experiments.rivals.ablation import ablation
from tars_lens.experiments.rivals.ascent import gradient_ascent, npo
from tars_lens.experiments.rivals.base import EXTRAS, Rival, extra
from tars_lens.experiments.rivals.demotion import demotion
from tars_lens.experiments.rivals.engram import engram
from tars_lens.experiments.rivals.leace import leace
from tars_lens.experiments.rivals.needle import needle
from tars_lens.experiments.rivals.rank_one import rank_one
from tars_lens.experiments.rivals.reflection import reflection
from tars_lens.experiments.rivals.rmu import rmu

logger = logging.getLogger(__name__)

RIVALS: dict[str, Rival] = {
    "ablation": ablation,
    "leace": leace,
    "rank_one": rank_one,
    "needle": needle,
    "reflection": reflection,
    "demotion": demotion,
    "engram": engram,
    "gradient_ascent": gradient_ascent,
    "npo": npo,
    "rmu": rmu,
}
"""To add one: a module with a function of type `Rival`, named here."""


def rivals_called(names: Sequence[str] | None) -> dict[str, Rival]:
    """Rivals by name; all that can run on this machine where none is named.

    Raises:
        TarsError: There is none of a name, or it needs a package that isn't installed.
    """
    for name in names or ():
        if name not in RIVALS:
            raise unknown("rival", name, RIVALS)
    found = dict(RIVALS) if names is None else {n: RIVALS[n] for n in dict.fromkeys(names)}
    for name in [name for name in EXTRAS if name in found]:
        try:
            extra(name)
        except TarsError:
            if names is not None:
                raise
            logger.warning("%s is left out: it needs pip install 'tars-lens[%s]'.", name, name)
            del found[name]
    return found
