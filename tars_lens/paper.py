"""The method `paper`: the abstract of arXiv 2412.10257 taken literally."""

from tars_lens.concept import Concept
from tars_lens.lens import Lens
from tars_lens.recipe import Part
from tars_lens.removal import Removal, build_patch
from tars_lens.reversal import paper_edits
from tars_lens.settings import Settings
from tars_lens.targeting import TargetingVector, target
from tars_lens.trials import Trials
from tars_lens.windows import Windows


def remove_literally(
    lens: Lens,
    concept: Concept,
    windows: Windows,
    settings: Settings,
) -> Removal:
    """Replaces the highest-cosine weight vectors by the reversed targeting vector.

    The paper doesn't say how many; the smallest of `settings.paper_counts` that reaches the goal
    on validation text is taken, or the one that leaves least, unless `settings.edits` fixes it.
    Edits of several concepts may share a row: the literal method knows no hosts.
    """
    vector = target(
        lens,
        concept,
        sigma=settings.sigma,
        samples=settings.samples,
        budget=settings.refine_steps,
        seed=settings.seed,
    )
    trials = Trials.of(
        lens, concept, concept.concept_prompts, vector.tokens, windows, settings, layer=0
    )
    counts = settings.paper_counts if settings.edits is None else (settings.edits,)
    tried = []
    for count in sorted(counts):
        part = _part(lens, vector, trials, count)
        tried.append(part)
        if part.chosen["left_on_validation"] <= settings.goal:
            break
    best = min(tried, key=lambda part: part.chosen["left_on_validation"])
    parts = (best,)
    return Removal(concept, parts, trials, build_patch(lens, concept, parts, settings))


def _part(lens: Lens, vector: TargetingVector, trials: Trials, count: int) -> Part:
    edits, frame = paper_edits(lens, vector, count)
    chosen = {
        "count": count,
        "targeting_probability": vector.probability,
        "left_on_validation": trials.left(edits),
        **trials.effects(edits),
    }
    top = frame.iloc[0]
    return Part("paper", int(top["layer"]), (int(top["neuron"]),), edits, vector.vector, chosen)
