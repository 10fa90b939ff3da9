"""Knowledge goes in both directions: from the description to the name, and from the name on.

python analyses/both_directions.py --model smollm2-135m
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from common import FIVE, TWO, begin, command_line, parser

from tars_lens.report.figures import directions, probe_probabilities, rows_height
from tars_lens.report.style import figure

_KINDS = ("forward", "reverse", "neighbour")


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the means by concept and direction, and every probe of the first two concepts."""
    analysis = begin(parser(__doc__, FIVE), __file__, argv)
    found = analysis.erasure()
    probes = found.tables["probes"]
    probes = probes[probes["kind"].isin(_KINDS)]
    summary = pd.DataFrame(
        [
            {"concept": concept["name"], "kind": kind, **_figures(concept["probes"][kind])}
            for concept in found.report["concepts"]
            for kind in _KINDS
        ]
    )
    analysis.table(summary)
    analysis.table(probes, "probes")
    concepts = probes["concept"].nunique()
    made, axes = figure(1, height=rows_height(3 * concepts, concepts))
    directions(probes, axes)
    analysis.figure(made)
    few = probes[probes["concept"].isin([c.name for c in analysis.concepts[: len(TWO)]])]
    known = int(few["known"].sum())
    made, axes = figure(2, height=rows_height(known, 3 * few["concept"].nunique()))
    probe_probabilities(few, axes)
    analysis.figure(made, "probes")
    analysis.finish()


def _figures(figures: dict[str, Any]) -> dict[str, Any]:
    names = ("n", "known", "set_phrases", "before_mean", "after_mean", "after_max", "erased")
    return {name: figures.get(name) for name in (*names, "kept", "worst", "worst_kept")}


if __name__ == "__main__":
    command_line(main)
