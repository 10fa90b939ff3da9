"""All tables of an explanation, each made from the base model and the patches of a run."""

import logging
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from tars_lens.attribution.explaining.effects import effects_table, interference_table
from tars_lens.attribution.explaining.flows import (
    attribution_table,
    depth_table,
    languages_table,
    propagation_tables,
    texts_table,
)
from tars_lens.attribution.explaining.used import neurons_table, parts_table
from tars_lens.attribution.explaining.vectors import targeting_tables
from tars_lens.common.cache import Advance, silent
from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.evaluation.kl import Divergence
from tars_lens.evaluation.known import Known
from tars_lens.model.lens import Lens
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch

logger = logging.getLogger(__name__)

_Tables = Mapping[str, pd.DataFrame]


@undisturbed
def explain(
    lens: Lens,
    concepts: Sequence[Concept],
    patches: Sequence[Patch],
    *,
    probes: pd.DataFrame | None = None,
    divergence: Divergence | None = None,
    seed: int = 0,
    advance: Advance | None = None,
) -> dict[str, pd.DataFrame]:
    """Shows what an erasure did: where each concept flows, where it stops, and which edit does it.

    Everything is read off reported probes that the base model knows; nothing is chosen by it. A
    table that can't be made (of an architecture whose logits don't add up, of a concept without
    known probes) is left out, with a line in the log.

    Args:
        lens: The model; whatever patches are on it stay, and don't count.
        concepts: The cards, in the order of removal.
        patches: One for each; `after` is with all of them in, but for `edit_effects` and
            `interference`, where each is in alone.
        probes: The run's table of probes, which spares the asking.
        divergence: The run's KL, for its histogram.
        seed: Of the null.
        advance: Told of the progress.

    Returns:
        By name, as `tars-lens report` reads them: neurons_used, parts, texts, propagation,
        propagation_summary, attribution, depth, languages_by_layer, edit_effects, interference,
        kl_histogram; of patches of the method `paper` trajectory and null as well.

    Raises:
        TarsError: Another number of patches than of concepts, or a patch of another base.
    """
    _check(lens, concepts, patches)
    say = advance or silent
    with stack.holding(lens, ()):
        makers = _makers(lens, concepts, patches, probes, divergence, seed)
        tables: dict[str, pd.DataFrame] = {}
        for index, (what, make) in enumerate(makers):
            say(f"explaining: {what}", index, len(makers))
            try:
                made = make()
            except TarsError as error:
                logger.warning("the explanation goes without %s: %s", what, error)
                continue
            tables |= {name: table for name, table in made.items() if len(table)}
        say("explaining", len(makers), len(makers))
    return tables


def _check(lens: Lens, concepts: Sequence[Concept], patches: Sequence[Patch]) -> None:
    if len(concepts) != len(patches) or not patches:
        raise TarsError(
            f"an explanation needs one patch for each concept, got {len(patches)} for "
            f"{len(concepts)}: give the patches in the order of the cards."
        )
    for patch in patches:
        stack.check(lens, patch)


def _makers(
    lens: Lens,
    concepts: Sequence[Concept],
    patches: Sequence[Patch],
    probes: pd.DataFrame | None,
    divergence: Divergence | None,
    seed: int,
) -> list[tuple[str, Callable[[], _Tables]]]:
    """What is made, in this order; what several tables need is made by the first of them."""
    known: list[Known] = []

    def prepare() -> _Tables:
        known.extend(Known.of(lens, concept, probes) for concept in concepts)
        return {}

    makers: list[tuple[str, Callable[[], _Tables]]] = [
        ("what is known", prepare),
        ("neurons", lambda: {"neurons_used": neurons_table(lens, concepts, patches)}),
        ("their parts", lambda: {"parts": parts_table(concepts, patches)}),
        ("targeting vectors", lambda: targeting_tables(lens, concepts, patches, seed)),
        ("texts", lambda: {"texts": texts_table(lens, known, patches)}),
        ("propagation", lambda: propagation_tables(lens, known, patches)),
        ("attribution", lambda: {"attribution": attribution_table(lens, known, patches)}),
        ("depth", lambda: {"depth": depth_table(lens, known, patches)}),
        ("languages", lambda: {"languages_by_layer": languages_table(lens, known, patches)}),
        ("edit effects", lambda: {"edit_effects": effects_table(lens, known, patches)}),
        ("interference", lambda: {"interference": interference_table(lens, known, patches)}),
    ]
    if divergence is not None:
        forms = [form for c in concepts for form in c.mentions]
        makers.append(("KL", lambda: {"kl_histogram": divergence.histogram(forms)}))
    return makers
