"""How many edits it takes: each concept removed with 1, 2, 3, ... weight vectors.

The first of the abstract's claims: the concept's probability falls to 0.00 with as few as one.

    python analyses/edits_curve.py --model smollm2-135m
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from common import TWO, Analysis, begin, command_line, parser

from tars_lens.concept.card import Concept
from tars_lens.report.figures import edit_curve
from tars_lens.report.style import figure


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the curve, one row for each concept and number of edits."""
    options = parser(__doc__, TWO)
    options.add_argument("--counts", type=int, nargs="+", default=[1, 3, 6, 9, 12])
    analysis = begin(options, __file__, argv)
    rows = [row for concept in analysis.concepts for row in _curve(analysis, concept)]
    frame = pd.DataFrame(rows)
    analysis.table(frame)
    made, axes = figure(2, height=2.1, across=3)
    edit_curve(frame, axes)
    analysis.figure(made)
    analysis.finish()


def _curve(analysis: Analysis, concept: Concept) -> list[dict[str, Any]]:
    """Up to the number of vectors from which on more are not used."""
    rows: list[dict[str, Any]] = []
    counts = sorted(set(analysis.options.counts))
    for count in counts[: analysis.few(len(counts), 2)]:
        found = analysis.erasure([concept], edits=count, kl_tokens=analysis.few(2_560, 512))
        probes = found.report["concepts"][0]["probes"]
        used = found.patches[0].n_rows
        if not rows:
            rows.append(_row(concept, 0, probes, before=True, kl=0.0))
        if used > rows[-1]["edits"]:
            rows.append(_row(concept, used, probes, before=False, kl=found.report["kl"]["mean"]))
        if used < count:
            break
    return rows


def _row(
    concept: Concept, edits: int, probes: dict[str, Any], *, before: bool, kl: float
) -> dict[str, Any]:
    forward, reverse = probes["forward"], probes["reverse"]
    when = "before" if before else "after"
    return {
        "concept": concept.name,
        "edits": edits,
        "forward_mean": forward[f"{when}_mean"],
        "forward_worst": forward[f"{when}_max"],
        "forward_known": forward["known"],
        "reverse_kept": 1.0 if before else reverse["kept"],
        "reverse_known": reverse["known"],
        "neighbours_kept": 1.0 if before else probes["neighbour"]["kept"],
        "neighbours_known": probes["neighbour"]["known"],
        "plain_kl": kl,
    }


if __name__ == "__main__":
    command_line(main)
