"""What each edit does, and what the removal of one concept does to every other."""

from collections.abc import Sequence

import pandas as pd

from tars_lens.attribution.effects import edit_effects
from tars_lens.concept.card import Probe, substituted
from tars_lens.concept.first_tokens import first_token_probability
from tars_lens.evaluation.known import Known
from tars_lens.model.lens import Lens
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch

_PROBES = 3
_NEURONS = 8
_ACROSS = 6


def effects_table(lens: Lens, known: Sequence[Known], patches: Sequence[Patch]) -> pd.DataFrame:
    """What each neuron of each concept's own edit does, on the three surest probes of each kind.

    Read off the answers' first tokens. A patch of more than eight neurons is left out: each costs
    two more runs of all probes.

    Returns:
        As `EditEffects.to_frame`, of whole neurons, with a column concept.
    """
    found = []
    for of, patch in zip(known, patches, strict=True):
        count = len(patch.to_frame()["label"].unique())
        if len(of.frame) and count <= _NEURONS:
            effects = edit_effects(lens, patch, of.smaller(_PROBES), roles=False, first_tokens=True)
            found.append(effects.to_frame().assign(concept=of.concept.name))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def interference_table(
    lens: Lens, known: Sequence[Known], patches: Sequence[Patch]
) -> pd.DataFrame:
    """Each concept removed alone, every concept asked for.

    On the six surest known probes of each direction, and on their answers' first tokens, which
    one run for all concepts tells.

    Returns:
        Columns edited, concept, forward_after (the largest probability), reverse_kept (as the
        measures have it), n_forward, n_reverse. NaN where none is known.
    """
    asked = [
        (of, kind, probe)
        for of in known
        for kind in ("forward", "reverse")
        for probe in of.probes(kind, _ACROSS)
    ]
    frame = pd.DataFrame(
        [(of.concept.name, kind) for of, kind, _ in asked], columns=["concept", "kind"]
    )
    prompts = [probe.prompt for *_, probe in asked]
    tokens = [of.wanted(lens, kind, probe) for of, kind, probe in asked]
    frame["before"] = first_token_probability(lens, prompts, tokens).numpy()
    plain = [_without(of, kind, probe) for of, kind, probe in asked]
    frame["floor"] = first_token_probability(lens, plain, tokens).numpy()
    rows = []
    for of, patch in zip(known, patches, strict=True):
        with stack.holding(lens, [patch]):
            frame["after"] = first_token_probability(lens, prompts, tokens).numpy()
        rows += [_row(of.concept.name, other.concept.name, frame) for other in known]
    return pd.DataFrame(rows)


def _without(of: Known, kind: str, probe: Probe) -> str:
    """A reverse prompt with the card's substitute in place of the name."""
    if kind == "forward" or not of.concept.substitute:
        return probe.prompt
    return substituted(probe.prompt, of.concept.names, of.concept.substitute)


def _row(edited: str, concept: str, frame: pd.DataFrame) -> dict[str, object]:
    own = frame[frame["concept"] == concept]
    forward, reverse = (own[own["kind"] == kind] for kind in ("forward", "reverse"))
    span = (reverse["before"] - reverse["floor"]).clip(lower=0).sum()
    left = (reverse["after"] - reverse["floor"]).clip(lower=0).sum()
    return {
        "edited": edited,
        "concept": concept,
        "forward_after": float(forward["after"].max()),
        "reverse_kept": float(left / span) if span > 0 else float("nan"),
        "n_forward": len(forward),
        "n_reverse": len(reverse),
    }
