"""What a model says to a card's reported probes, before and after an edit."""

import math
from typing import Any

import pandas as pd

from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import DISTANCES, Concept, Probe, ProbeSet, substituted
from tars_lens.concept.probability import answer_probabilities
from tars_lens.model.lens import Lens

ERASED = 0.005
"""A forward probe counts as erased where the answer's probability is at most this."""

KINDS = ("forward", "reverse", "neighbour", "multilingual")


def probe_frame(lens: Lens, concept: Concept, probes: ProbeSet | None = None) -> pd.DataFrame:
    """One row a probe: the answer's probability by the model as it stands, and whether it leads.

    Args:
        lens: The model.
        concept: The card.
        probes: Which of its splits; the reported one where not given.

    Returns:
        Columns concept, kind, language, distance, prompt, answer, p, known, top: whether greedy
        decoding gives the answer.
    """
    rows = _listed(concept.probes if probes is None else probes)
    said = answer_probabilities(
        lens,
        [probe.prompt for _, probe in rows],
        [_texts(concept, kind, probe) for kind, probe in rows],
    )
    return pd.DataFrame(
        {
            "concept": concept.name,
            "kind": [kind for kind, _ in rows],
            "language": [probe.language for _, probe in rows],
            "distance": [probe.distance for _, probe in rows],
            "prompt": [probe.prompt for _, probe in rows],
            "answer": [probe.answer or concept.answer for _, probe in rows],
            # the types are given, as an empty table knows none: a card may have no probes
            "p": pd.Series(said.probability.tolist(), dtype=float),
            "known": pd.Series(said.known, dtype=bool),
            "top": pd.Series(said.top, dtype=bool),
        }
    )


@undisturbed
def base_frame(lens: Lens, concept: Concept, probes: ProbeSet | None = None) -> pd.DataFrame:
    """`probe_frame` of the base model, with the floor of each reverse probe.

    Returns:
        Columns concept, kind, language, distance, prompt, answer, p_before, known, top_before,
        floor, top_substitute, set_phrase.
        The floor is the base's answer with the card's substitute in place of the name, and
        `top_substitute` whether greedy decoding gives it there: 0 and false without a substitute.
        A reverse probe with `floor > p_before / 2` is a set phrase.
    """
    frame = probe_frame(lens, concept, probes)
    frame = frame.rename(columns={"p": "p_before", "top": "top_before"})
    frame["floor"], frame["top_substitute"] = 0.0, False
    reverse = frame["kind"] == "reverse"
    if concept.substitute and reverse.any():
        texts = [
            substituted(prompt, concept.names, concept.substitute)
            for prompt in frame.loc[reverse, "prompt"]
        ]
        answers = [[answer] for answer in frame.loc[reverse, "answer"]]
        found = answer_probabilities(lens, texts, answers)
        frame.loc[reverse, "floor"] = found.probability.tolist()
        frame.loc[reverse, "top_substitute"] = list(found.top)
    frame["set_phrase"] = reverse & (frame["floor"] > frame["p_before"] / 2)
    return frame


@undisturbed
def with_after(base: pd.DataFrame, lens: Lens, concept: Concept) -> pd.DataFrame:
    """`base_frame` and the model as it stands: p_after, top_after, and kept of known probes."""
    frame = base.copy()
    frame[["p_after", "top_after"]] = probe_frame(lens, concept)[["p", "top"]]
    above = (frame["p_after"] - frame["floor"]).clip(lower=0)
    span = (frame["p_before"] - frame["floor"]).where(frame["known"] & ~frame["set_phrase"])
    frame["kept"] = above / span.where(span > 0)
    return frame


def probe_figures(frame: pd.DataFrame) -> dict[str, Any]:
    """The figures of one concept's probes, by kind; `None` where no probe is known.

    `said_before` and `said_after` count the known probes whose answer greedy decoding gives. In
    reverse `said_substitute` are those that the base gives with the substitute in the name's place
    too, and `said_after_own` those given after the edit that are none of them.
    """
    return {
        "forward": _forward(frame[frame["kind"] == "forward"]),
        "reverse": _reverse(frame[frame["kind"] == "reverse"]),
        "neighbour": _neighbour(frame[frame["kind"] == "neighbour"]),
        "multilingual": _multilingual(frame[frame["kind"] == "multilingual"]),
    }


def _listed(probes: ProbeSet) -> list[tuple[str, Probe]]:
    return [(kind, probe) for kind in KINDS for probe in getattr(probes, kind)]


def _texts(concept: Concept, kind: str, probe: Probe) -> tuple[str, ...]:
    return concept.surface_forms if kind == "forward" else (probe.answer,)


def _forward(frame: pd.DataFrame) -> dict[str, Any]:
    known = frame[frame["known"]]
    return {
        "n": len(frame),
        "known": len(known),
        "before_mean": _figure(known["p_before"].mean()),
        "before_max": _figure(known["p_before"].max()),
        "after_mean": _figure(known["p_after"].mean()),
        "after_max": _figure(known["p_after"].max()),
        "erased": _figure((known["p_after"] <= ERASED).mean()),
        **_said(known),
    }


def _reverse(frame: pd.DataFrame) -> dict[str, Any]:
    known = frame[frame["known"] & ~frame["set_phrase"]]
    span = (known["p_before"] - known["floor"]).sum()
    left = (known["p_after"] - known["floor"]).clip(lower=0).sum()
    return {
        "n": len(frame),
        "known": len(known),
        "set_phrases": int((frame["known"] & frame["set_phrase"]).sum()),
        "before_mean": _figure(known["p_before"].mean()),
        "after_mean": _figure(known["p_after"].mean()),
        "kept": _figure(left / span) if len(known) else None,
        **_worst(known, highest=True),
        **_said(known),
        "said_substitute": int(known["top_substitute"].sum()),
        "said_after_own": int((known["top_after"] & ~known["top_substitute"]).sum()),
    }


def _neighbour(frame: pd.DataFrame) -> dict[str, Any]:
    """The figures of all neighbours together, and of each distance that the card marks."""
    parts = ((distance, frame[frame["distance"] == distance]) for distance in DISTANCES)
    distances = {distance: _near(part) for distance, part in parts if len(part)}
    return {**_near(frame), "distances": distances}


def _near(frame: pd.DataFrame) -> dict[str, Any]:
    known = frame[frame["known"]].copy()
    known["kept"] = (known["p_after"] / known["p_before"]).clip(upper=1)
    logs = [math.log(max(kept, 1e-12)) for kept in known["kept"]]
    return {
        "n": len(frame),
        "known": len(known),
        "kept": math.exp(sum(logs) / len(logs)) if logs else None,
        **_worst(known, highest=False),
        **_said(known),
    }


def _multilingual(frame: pd.DataFrame) -> dict[str, Any]:
    known = frame[frame["known"]]
    sums = known.groupby("language")[["p_before", "p_after"]].sum()
    return {
        "n": len(frame),
        "known": len(known),
        "kept": _figure(sums["p_after"].sum() / sums["p_before"].sum()) if len(known) else None,
        "languages": {
            str(language): float(row["p_after"] / row["p_before"])
            for language, row in sums.iterrows()
        },
        **_worst(known, highest=True),
        **_said(known),
    }


def _said(known: pd.DataFrame) -> dict[str, int]:
    return {f"said_{when}": int(known[f"top_{when}"].sum()) for when in ("before", "after")}


def _worst(known: pd.DataFrame, *, highest: bool) -> dict[str, Any]:
    """The probe that went worst, named by its answer."""
    if not len(known):
        return {"worst": None, "worst_kept": None}
    index = known["kept"].idxmax() if highest else known["kept"].idxmin()
    row = known.loc[index]
    return {"worst": str(row["answer"]), "worst_kept": _figure(row["kept"])}


def _figure(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
