"""Which neurons lie near a concept, beside what chance gives, and which ones were edited.

python analyses/neurons.py saturn sherlock_holmes --model smollm2-135m
"""

from collections.abc import Sequence

import pandas as pd
from common import TWO, Analysis, begin, command_line, parser

import tars_lens
from tars_lens.attribution.explaining.vectors import null_table, trajectory_table
from tars_lens.concept.card import Concept
from tars_lens.method.describing import describe
from tars_lens.method.targeting import TargetingVector
from tars_lens.report import figures
from tars_lens.report.style import figure


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the ranking of each concept, the cosines' spread, the refinement and the edits."""
    analysis = begin(parser(__doc__, TWO), __file__, argv)
    seed = analysis.options.seed
    vectors = {c.name: tars_lens.target(analysis.lens, c, seed=seed) for c in analysis.concepts}
    null = null_table(analysis.lens, vectors, seed)
    threshold = float(null["threshold"].iloc[0])
    top = analysis.few(20, 5)
    parts = [_ranked(analysis, c, vectors[c.name], top, threshold) for c in analysis.concepts]
    analysis.table(pd.concat(parts, ignore_index=True))
    analysis.table(null, "null")
    analysis.table(trajectory_table(vectors), "trajectory")
    analysis.table(analysis.erasure().tables["edits"], "edits")
    for concept, ranked in zip(analysis.concepts, parts, strict=True):
        made, axes = figure(1, height=2.4)
        layers = analysis.lens.n_layers
        figures.neurons_by_layer(ranked, axes, n_layers=layers, threshold=threshold)
        analysis.figure(made, concept.key)
    made, axes = figure(1, height=2.4)
    figures.cosine_distribution(null, axes, threshold=threshold)
    analysis.figure(made, "null")
    made, axes = figure(2, height=2.1, across=2)
    figures.refinement_trajectory(trajectory_table(vectors), axes)
    analysis.figure(made, "trajectory")
    analysis.finish()


def _ranked(
    analysis: Analysis, concept: Concept, vector: TargetingVector, top: int, threshold: float
) -> pd.DataFrame:
    """The highest cosines of one concept, what each neuron says, and when it fires."""
    ranked = tars_lens.rank(analysis.lens, vector, top=top).drop(columns="target")
    ranked["above_chance"] = ranked["cosine"] > threshold
    described = describe(analysis.lens, ranked, concept=concept)
    described.insert(0, "concept", concept.name)
    return described


if __name__ == "__main__":
    command_line(main)
