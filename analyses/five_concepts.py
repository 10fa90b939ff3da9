"""One concept after another: the KL on plain text after each, and what each does to the others.

The abstract's figure is a median of 0.002 after five; the tails are given beside it.

    python analyses/five_concepts.py --model smollm2-135m
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from common import FIVE, Analysis, begin, command_line, parser

from tars_lens.evaluation.erasure import Erasure
from tars_lens.evaluation.kl import paired_kl
from tars_lens.patch.patch_tools import merge
from tars_lens.report.figures import kl_by_concepts, kl_distribution
from tars_lens.report.style import figure

_FIGURES = ("tokens", "median", "mean", "p95", "p99", "max")


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the KL after each concept, its distribution after the last, and the interference."""
    analysis = begin(parser(__doc__, FIVE), __file__, argv)
    found = analysis.erasure()
    _damage(analysis, found)
    analysis.interference(found)
    analysis.finish()


def _damage(analysis: Analysis, found: Erasure) -> None:
    windows = analysis.windows(25_600)
    forms = [form for c in analysis.concepts for form in (*c.names, *c.surface_forms)]
    rows: list[dict[str, Any]] = []
    for count, concept in enumerate(analysis.concepts, start=1):
        edits = merge(found.patches[:count]).new_rows
        divergence = paired_kl(analysis.lens, edits, windows)
        figures = divergence.figures(forms)
        for text, of in (("all", figures), ("elsewhere", figures["elsewhere"])):
            row = {"removed": count, "concept": concept.name, "text": text}
            rows.append(row | {name: of[name] for name in _FIGURES})
    frame = pd.DataFrame(rows)
    analysis.table(frame)
    made, axes = figure(2, height=2.4, across=2, sharey=True)
    kl_by_concepts(frame, axes)
    analysis.figure(made)
    histogram = divergence.histogram(forms)
    analysis.table(histogram, "histogram")
    made, axes = figure(1, height=2.4)
    kl_distribution(histogram, axes, figures=figures)
    analysis.figure(made, "histogram")


if __name__ == "__main__":
    command_line(main)
