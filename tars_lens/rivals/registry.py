"""Every rival by name, in the order in which tables show them."""

import importlib.util
import logging
from collections.abc import Sequence

from tars_lens.errors import unknown
from tars_lens.rivals.ablation import ablation
from tars_lens.rivals.ascent import gradient_ascent, npo
from tars_lens.rivals.base import Rival
from tars_lens.rivals.demotion import demotion
from tars_lens.rivals.leace import concept_erasure, leace
from tars_lens.rivals.needle import needle
from tars_lens.rivals.rank_one import rank_one
from tars_lens.rivals.reflection import reflection
from tars_lens.rivals.rmu import rmu

logger = logging.getLogger(__name__)

RIVALS: dict[str, Rival] = {
    "ablation": ablation,
    "leace": leace,
    "rank_one": rank_one,
    "needle": needle,
    "reflection": reflection,
    "demotion": demotion,
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
    if names is None:
        found = dict(RIVALS)
        if importlib.util.find_spec("concept_erasure") is None:
            logger.warning("leace is left out: it needs pip install 'tars-lens[leace]'.")
            del found["leace"]
        return found
    for name in names:
        if name not in RIVALS:
            raise unknown("rival", name, RIVALS)
    if "leace" in names:
        concept_erasure()
    return {name: RIVALS[name] for name in dict.fromkeys(names)}
