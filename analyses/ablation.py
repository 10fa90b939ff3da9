"""Which choices of the method matter: each changed alone, on the same concepts and probes.

python analyses/ablation.py --model smollm2-135m

What is found is kept under `out/runs` as it comes: an ablation that was stopped goes on there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from common import begin, command_line, parser

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.method.settings import Settings
from tars_lens.report.figures import ablation as drawn
from tars_lens.report.figures import rows_height
from tars_lens.report.style import figure

EIGHT = (
    *("saturn", "sherlock_holmes", "paris", "einstein"),
    *("oxygen", "elephant", "shakespeare", "photosynthesis"),
)
_KL_TOKENS = 1_280
_UNWHITENED = 1e6


@dataclass(frozen=True)
class Variant:
    """One choice of the method changed.

    Attributes:
        name: As the table has it.
        axis: Which choice.
        settings: The method with that choice.
        card: What is done to the card first.
    """

    name: str
    axis: str
    settings: Settings
    card: Callable[[Concept], Concept] = lambda concept: concept


def variants(seed: int) -> list[Variant]:
    """The recipe as it is, the paper's method, and the recipe with one choice changed at a time."""
    recipe = Settings(seed=seed)
    paper = replace(recipe, name="paper", edits=20)

    def one_prompt(card: Concept) -> Concept:
        return replace(card, prompts=())

    def no_contrast(card: Concept) -> Concept:
        return replace(card, contrast=(), substitute="")

    def name_write(times: float) -> Settings:  # which of the two counts is the model's affair
        reversal, bounded = recipe.name_reversal, recipe.name_bounded_strength
        return replace(
            recipe, name_reversal=times * reversal, name_bounded_strength=times * bounded
        )

    ridge = recipe.reader_ridge
    return [
        Variant("tars", "method", recipe),
        Variant("paper, 20 vectors", "method", paper),
        Variant("paper, not refined", "refinement", replace(paper, refine_steps=0)),
        Variant("last layer and name only", "layer", replace(recipe, depths=())),
        Variant("last layer only", "layer", replace(recipe, edits=3)),
        Variant("one vector", "edits", replace(recipe, edits=1)),
        Variant("reader ridge / 10", "reader", replace(recipe, reader_ridge=ridge / 10)),
        Variant("reader ridge x 10", "reader", replace(recipe, reader_ridge=ridge * 10)),
        Variant(
            "prompts count a tenth",
            "reader",
            replace(recipe, prompt_weight=recipe.prompt_weight / 10),
        ),
        Variant("said threshold 0.0001", "threshold", replace(recipe, said_threshold=1e-4)),
        Variant("said threshold 0.002", "threshold", replace(recipe, said_threshold=2e-3)),
        Variant("read threshold 0.0005", "threshold", replace(recipe, read_threshold=5e-4)),
        Variant("read threshold 0.02", "threshold", replace(recipe, read_threshold=2e-2)),
        Variant("name threshold 0.3", "threshold", replace(recipe, name_threshold=0.3)),
        Variant("name threshold 0.7", "threshold", replace(recipe, name_threshold=0.7)),
        Variant("said reversal 1.2", "strength", replace(recipe, said_reversal=1.2)),
        Variant("said reversal 3", "strength", replace(recipe, said_reversal=3.0)),
        Variant("name's write / 2", "strength", name_write(0.5)),
        Variant("name's write x 2", "strength", name_write(2.0)),
        Variant("idlest hosts", "host", replace(recipe, host_share=0.0)),
        Variant("hosts of the idlest tenth", "host", replace(recipe, host_share=0.1)),
        Variant("write not whitened", "whitening", replace(recipe, write_ridge=_UNWHITENED)),
        Variant("write without neighbours", "neighbours", replace(recipe, neighbour_weight=0.0)),
        Variant("card without contrast", "neighbours", recipe, no_contrast),
        Variant("one prompt", "prompts", recipe, one_prompt),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes each concept's figures under each variant, their means, and a figure of those."""
    options = parser(__doc__, EIGHT)
    options.add_argument("--variant", action="append", help="one of them; all by default")
    analysis = begin(options, __file__, argv)
    tokens = analysis.few(_KL_TOKENS, 512)
    rows = []
    for variant in _wanted(analysis.options.seed, analysis.options.variant):
        for concept in map(_asked, analysis.concepts):
            run = analysis.erasure(
                [variant.card(concept)], settings=variant.settings, kl_tokens=tokens
            )
            rows.append(
                {"variant": variant.name, "axis": variant.axis, "concept": concept.name}
                | _figures(run.report)
            )
    table = pd.DataFrame(rows)
    analysis.table(table)
    means = _means(table)
    analysis.table(means, "means")
    made, axes = figure(2, height=rows_height(len(means)))
    drawn(means, axes)
    analysis.figure(made)
    analysis.finish()


def _wanted(seed: int, names: Sequence[str] | None) -> list[Variant]:
    there = {variant.name: variant for variant in variants(seed)}
    if unknown := [name for name in names or () if name not in there]:
        raise TarsError(f"no variant {unknown[0]!r}. There is: {', '.join(there)}.")
    return [there[name] for name in names or there]


def _asked(card: Concept) -> Concept:
    """A card without the probes that the table has no figure of."""
    return replace(card, probes=replace(card.probes, multilingual=()))


def _figures(report: dict) -> dict[str, float | None]:
    probes, kl = report["concepts"][0]["probes"], report["kl"]["elsewhere"]
    return {
        "vectors": len(report["concepts"][0]["edits"]),
        "forward_known": probes["forward"]["known"],
        "forward_worst": probes["forward"]["after_max"],
        "reverse_known": probes["reverse"]["known"],
        "reverse_kept": probes["reverse"]["kept"],
        "neighbours_known": probes["neighbour"]["known"],
        "neighbours_kept": probes["neighbour"]["kept"],
        "neighbours_worst": probes["neighbour"]["worst_kept"],
        "kl_mean": kl["mean"],
        "kl_p99": kl["p99"],
    }


def _means(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over concepts of each figure, and the worst of those whose bar is on the worst."""
    grouped = table.groupby(["axis", "variant"], sort=False)
    means = grouped.agg(
        concepts=("concept", "count"),
        forward_worst=("forward_worst", "max"),
        forward_mean=("forward_worst", "mean"),
        reverse_kept=("reverse_kept", "mean"),
        neighbours_kept=("neighbours_kept", "mean"),
        neighbours_worst=("neighbours_worst", "min"),
        kl_mean=("kl_mean", "mean"),
        kl_p99=("kl_p99", "mean"),
    )
    return means.reset_index()


if __name__ == "__main__":
    command_line(main)
