"""Figures for a paper or a report: each takes a table and axes, and draws nothing else.

figure, axes = tars_lens.report.style.figure(columns=2)
forward_probabilities(pandas.read_csv("runs/erase/probes.csv"), axes)
tars_lens.report.style.save(figure, "forward")
"""

from tars_lens.evaluation.spread import cosine_frame, kl_histogram
from tars_lens.report.figures.capacity import capacity
from tars_lens.report.figures.choices import ablation
from tars_lens.report.figures.damage import kl_by_concepts, kl_distribution, silence_bound
from tars_lens.report.figures.depths import language_depths
from tars_lens.report.figures.effect import (
    depth,
    directions,
    edit_curve,
    forward_probabilities,
    interference,
    languages,
    probe_probabilities,
)
from tars_lens.report.figures.flow import attribution_waterfall, edit_effects, propagation_map
from tars_lens.report.figures.parts import rows_height
from tars_lens.report.figures.rivals import pareto
from tars_lens.report.figures.vectors import (
    cosine_distribution,
    neurons_by_layer,
    refinement_trajectory,
)

__all__ = [
    "ablation",
    "attribution_waterfall",
    "capacity",
    "cosine_distribution",
    "cosine_frame",
    "depth",
    "directions",
    "edit_curve",
    "edit_effects",
    "forward_probabilities",
    "interference",
    "kl_by_concepts",
    "kl_distribution",
    "kl_histogram",
    "language_depths",
    "languages",
    "neurons_by_layer",
    "pareto",
    "probe_probabilities",
    "propagation_map",
    "refinement_trajectory",
    "rows_height",
    "silence_bound",
]
