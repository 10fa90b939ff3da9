"""All languages, though only English is targeted.

python analyses/languages.py --model gemma-3-270m
"""

from collections.abc import Sequence

import pandas as pd
from common import FIVE, Analysis, begin, command_line, parser

from tars_lens.attribution import languages_by_layer
from tars_lens.method.settings import Settings
from tars_lens.patch.patch import Patch
from tars_lens.report.figures import language_depths, languages, rows_height
from tars_lens.report.style import figure

_STATES = {"p_before": "base", "p_after": "whole edit", "p_last_alone": "last neuron alone"}


def main(argv: Sequence[str] | None = None) -> None:
    """Writes every probe in another language, means by language, and what each layer reads."""
    analysis = begin(parser(__doc__, FIVE), __file__, argv)
    found = analysis.erasure()
    probes = found.tables["probes"]
    probes = probes[probes["kind"] == "multilingual"]
    analysis.table(probes, "probes")
    known = probes[probes["known"].astype(bool)]
    by = ["concept", "language"]
    sizes = probes.groupby(by, sort=False).size().rename("n")
    means = known.groupby(by, sort=False)[["p_before", "p_after"]].mean()
    counts = known.groupby(by, sort=False).size().rename("known")
    table = means.join(counts).join(sizes, how="right").reset_index()
    table["known"] = table["known"].fillna(0).astype(int)
    analysis.table(table.assign(ratio=table["p_after"] / table["p_before"]))
    rows = len(known.drop_duplicates(by))
    made, axes = figure(1, height=rows_height(rows, known["concept"].nunique()))
    languages(probes, axes)
    analysis.figure(made)
    _depths(analysis, found.patches)
    analysis.finish()


def _depths(analysis: Analysis, patches: Sequence[Patch]) -> None:
    """What each layer reads, in the base, with the whole edit, and with its last neuron alone."""
    settings = Settings(edits=len(analysis.lens.roles), seed=analysis.options.seed)
    last = analysis.erasure(settings=settings).patches
    frames = []
    for concept, whole, alone in zip(analysis.concepts, patches, last, strict=True):
        read = languages_by_layer(analysis.lens, concept, whole).to_frame()
        one = languages_by_layer(analysis.lens, concept, alone).to_frame()
        frames.append(read.assign(p_last_alone=one["p_after"]))
        lines = len(read.drop_duplicates(["language", "answer"]))
        made, axes = figure(2, height=rows_height(2 * lines + 8), rows=2, across=3)
        language_depths(frames[-1], axes, states=_STATES)
        analysis.figure(made, f"depths_{concept.key}")
    analysis.table(pd.concat(frames, ignore_index=True), "depths")


if __name__ == "__main__":
    command_line(main)
