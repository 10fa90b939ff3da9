"""Questions put to a model: one table of the base's answers, and the subject's beside them."""

from collections.abc import Sequence

import pandas as pd

from tars_lens.concept.probability import answer_probabilities
from tars_lens.evaluation.questions import Question
from tars_lens.model.lens import Lens


def base_answers(lens: Lens, questions: Sequence[Question]) -> pd.DataFrame:
    """What the base model says.

    Returns:
        Columns concept, kind, way, fact, prompt, answer, p_before, known, top_before, chance,
        top_chance (whether greedy decoding gives the answer after the floor prompt), set_phrase.
        `chance` is the answer's probability after the question's floor prompt. A question that is
        half answered by chance doesn't depend on the concept: it is a set phrase.
    """
    said = answer_probabilities(lens, [q.prompt for q in questions], [q.answers for q in questions])
    chance, top = [q.chance for q in questions], [False] * len(questions)
    floors = [i for i, q in enumerate(questions) if q.floor]
    if floors:
        found = answer_probabilities(
            lens, [questions[i].floor for i in floors], [questions[i].answers for i in floors]
        )
        for i, p, first in zip(floors, found.probability.tolist(), found.top, strict=True):
            chance[i], top[i] = p, first
    frame = pd.DataFrame(
        {
            "concept": _texts([q.concept for q in questions]),
            "kind": _texts([q.kind for q in questions]),
            "way": _texts([q.way for q in questions]),
            "fact": pd.Series([q.fact for q in questions], dtype=int),
            "prompt": _texts([q.prompt for q in questions]),
            "answer": _texts([q.answers[0] for q in questions]),
            "p_before": pd.Series(said.probability.tolist(), dtype=float),
            "known": pd.Series(said.known, dtype=bool),
            "top_before": pd.Series(said.top, dtype=bool),
            "chance": pd.Series(chance, dtype=float),
            "top_chance": pd.Series(top, dtype=bool),
        }
    )
    of_chance = (frame["chance"] > frame["p_before"] / 2) & frame["kind"].isin(_NAMING)
    frame["set_phrase"] = of_chance
    return frame


def subject_answers(lens: Lens, questions: Sequence[Question], base: pd.DataFrame) -> pd.DataFrame:
    """The base's rows with `p_after` and `says_after`: whether the subject still knows the answer.

    Only what the base knows is asked; the other rows have NaN.
    """
    frame = base.copy()
    asked = asked_rows(base)
    said = answer_probabilities(
        lens, [questions[i].prompt for i in asked], [questions[i].answers for i in asked]
    )
    after = dict(zip(asked, said.probability.tolist(), strict=True))
    knows = dict(zip(asked, zip(said.known, said.top, strict=True), strict=True))
    rows = range(len(frame))
    frame["p_after"] = pd.Series([after.get(i, float("nan")) for i in rows], dtype=float)
    for place, name in enumerate(("says_after", "top_after")):
        said_of = [knows.get(i, (False, False))[place] for i in rows]
        frame[name] = pd.Series(said_of, dtype=bool)
    return frame


def asked_rows(base: pd.DataFrame) -> list[int]:
    """The questions that count: known to the base, and no set phrases."""
    counts = (base["known"] & ~base["set_phrase"]).tolist()
    return [i for i, counted in enumerate(counts) if counted]


def _texts(values: list[str]) -> pd.Series:
    """A column of text even where it is empty, which pandas would take for numbers."""
    return pd.Series(values, dtype=str)


_NAMING = ("reverse", "alias", "multi_hop")
"""Kinds whose prompts stand for the concept, so that their answers have a floor."""
