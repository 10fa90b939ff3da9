"""Where a concept flows, where it is stopped, and which edit does it.

python analyses/propagation.py saturn --model smollm2-135m
"""

from collections.abc import Sequence

from common import TWO, begin, command_line, parser

import tars_lens
from tars_lens.report import figures
from tars_lens.report.style import figure

_TABLES = (
    *("propagation_summary", "propagation", "attribution", "edit_effects", "depth", "texts"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the propagation maps, the direct attribution, each edit's effect and the depth."""
    analysis = begin(parser(__doc__, TWO), __file__, argv)
    found = analysis.erasure()
    tables = tars_lens.explain(
        analysis.lens,
        analysis.concepts,
        found.patches,
        probes=found.tables["probes"],
        seed=analysis.options.seed,
    )
    keys = {concept.name: concept.key for concept in analysis.concepts}
    for name in _TABLES:
        if name in tables:
            analysis.table(tables[name], name)
    if "propagation" in tables:
        for _, rows in tables["propagation"].groupby("prompt"):
            made, axes = figure(2, height=3.4, across=3)
            figures.propagation_map(rows, axes)
            analysis.figure(made, f"{keys[rows['concept'].iloc[0]]}_{rows['kind'].iloc[0]}")
    if "attribution" in tables:
        for name, rows in tables["attribution"].groupby("concept"):
            made, axes = figure(1, height=2.9)
            figures.attribution_waterfall(rows, axes)
            analysis.figure(made, f"{keys[str(name)]}_attribution")
    if "edit_effects" in tables:
        table = tables["edit_effects"]
        count = len(table.drop_duplicates(["concept", "label"]))
        made, axes = figure(2, height=figures.rows_height(count) + 0.12 * count, across=2)
        figures.edit_effects(table, axes)
        analysis.figure(made, "edit_effects")
    if "depth" in tables:
        table = tables["depth"]
        height = figures.rows_height(len(table), table["concept"].nunique())
        made, axes = figure(2, height=height)
        figures.depth(table, axes)
        analysis.figure(made, "depth")
    analysis.finish()


if __name__ == "__main__":
    command_line(main)
