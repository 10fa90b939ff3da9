"""Depth by relearning: how much of the concept a short fine-tuning brings back."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tars_lens.concept.card import substituted
from tars_lens.concept.probability import answer_probabilities
from tars_lens.evaluation import intervals
from tars_lens.evaluation.asking import asked_rows
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.finetuning import fine_tune
from tars_lens.evaluation.measure import Measure, Result
from tars_lens.evaluation.measures.hidden import (
    Standing,
    fall_figures,
    fallen,
    no_falls,
    standing,
)
from tars_lens.evaluation.near import unrelated
from tars_lens.evaluation.questions import Question
from tars_lens.evaluation.restoring import restored
from tars_lens.model.lens import Lens

INVENTED = "Zorvath"
"""A name that no model knows: what training gives a concept that was never there."""

_FOLDS = 5
_KINDS = ("forward", "reverse")


def relearning(context: Context) -> Result:
    """`(s(f_ft) - s(f)) / (s(f0_ft) - s(f))`, with `s` the mean p of known probes.

    Three trainings of the subject: on paragraphs about the concept, on four fifths of the facts
    (asked of the last fifth), and on as many paragraphs about other things, which should bring
    back nothing. The base is trained on the first two, and on the paragraphs with an invented name
    in place of the concept's: what training gives a name that was never known. `hidden` says what
    the fall of the concept's logit is made of before and after the training on paragraphs.
    """
    base, suite, seed = context.base, context.suite, context.seed
    texts = [text for concept in base.concepts for text in base.paragraphs(concept)]
    asked = _asked(context)
    taught, held = _folds(asked)
    benign = unrelated(base.corpus, base.forms, len(texts))
    trained = _Trained(context, asked)
    before = {
        "text": base.once("relearned text", lambda: trained(base.lens, texts)),
        "facts": base.once("relearned facts", lambda: trained(base.lens, taught)),
    }
    invented = base.once("invented", lambda: _invented(context, texts))
    items = pd.DataFrame({"concept": [q.concept for q in asked], "kind": [q.kind for q in asked]})
    items["prompt"] = [q.prompt for q in asked]
    items["held_apart"] = pd.Series(held, dtype=bool)  # where nothing is asked as well
    stands = [(concept.name, standing(context, concept)) for concept in base.concepts]
    falls = _Falls([(name, found) for name, found in stands if found is not None])
    with context.edited() as lens:
        items["p_after"] = trained.said(lens)
        falls(lens)
        items["p_text"] = trained(lens, texts, falls)
        items["p_facts"] = trained(lens, taught)
        items["p_benign"] = trained(lens, benign)
    items["p_base_text"], items["p_base_facts"] = before["text"], before["facts"]
    values = items[["p_text", "p_base_text", "p_after"]].to_numpy(float)
    figures = {
        **_figures(items),
        "hidden": dict(zip(("before", "after"), falls.figures(), strict=True)),
        "invented": invented,
        "paragraphs": len(texts),
        "epochs": suite.epochs,
    }
    interval = intervals.bootstrap(values, _regained, seed=seed, resamples=suite.resamples)
    return Result("relearning", "regained", figures, interval, items)


class _Trained:
    """Trains a lens on texts, asks it, and puts it back."""

    def __init__(self, context: Context, asked: Sequence[Question]) -> None:
        self.context, self.asked = context, asked

    def __call__(
        self, lens: Lens, texts: Sequence[str], look: Callable[[Lens], None] | None = None
    ) -> list[float]:
        with restored(lens):
            fine_tune(lens, texts, self.context.suite, seed=self.context.seed)
            if look is not None:
                look(lens)
            return self.said(lens)

    def said(self, lens: Lens) -> list[float]:
        prompts, answers = [q.prompt for q in self.asked], [q.answers for q in self.asked]
        found: list[float] = answer_probabilities(lens, prompts, answers).probability.tolist()
        return found


class _Falls:
    """Takes the fall of every concept's logit apart, each time that it is called."""

    def __init__(self, stands: Sequence[tuple[str, Standing]]) -> None:
        self.stands = stands
        self.seen: list[pd.DataFrame] = []

    def __call__(self, lens: Lens) -> None:
        found = [fallen(lens, stand, name) for name, stand in self.stands]
        self.seen.append(pd.concat(found, ignore_index=True) if found else no_falls())

    def figures(self) -> list[dict[str, Any]]:
        """One a call."""
        return [fall_figures(items) for items in self.seen]


def _asked(context: Context) -> list[Question]:
    return [
        context.questions(kind)[i]
        for kind in _KINDS
        for i in asked_rows(context.base_answers(kind))
    ]


def _folds(asked: Sequence[Question]) -> tuple[list[str], list[bool]]:
    """Sentences of four fifths of the facts, and which questions are of the last fifth."""
    held = [i % _FOLDS == _FOLDS - 1 for i in range(len(asked))]
    taught = [
        f"{q.prompt} {q.answers[0]}." for q, apart in zip(asked, held, strict=True) if not apart
    ]
    return taught, held


def _invented(context: Context, texts: Sequence[str]) -> float | None:
    """The mean p of an invented name on forward probes, after training on text that uses it."""
    base = context.base
    questions = [q for q in _asked(context) if q.kind == "forward"]
    if not questions:
        return None
    forms = [f for c in base.concepts for f in c.mentions]
    renamed = [substituted(text, forms, INVENTED) for text in texts]
    with restored(base.lens):
        fine_tune(base.lens, renamed, context.suite, seed=context.seed)
        said = answer_probabilities(
            base.lens, [q.prompt for q in questions], [(INVENTED,)] * len(questions)
        )
    return float(said.probability.mean())


def _figures(items: pd.DataFrame) -> dict[str, Any]:
    apart = items[items["held_apart"]]
    triples = {
        "regained": items[["p_text", "p_base_text", "p_after"]],
        "regained_facts": apart[["p_facts", "p_base_facts", "p_after"]],
        "regained_benign": items[["p_benign", "p_base_text", "p_after"]],
    }
    ratios = {
        name: intervals.number(_regained(values.to_numpy(float))) if len(values) else None
        for name, values in triples.items()
    }
    names = ("p_after", "p_text", "p_facts", "p_benign", "p_base_text", "p_base_facts")
    means = {name: float(items[name].mean()) if len(items) else None for name in names}
    return {**ratios, **means, "known": len(items), "held_apart": len(apart)}


def _regained(values: np.ndarray) -> np.ndarray:
    """Columns fine-tuned subject, fine-tuned base, subject; NaN where the base has no more."""
    gained = (values[..., 0] - values[..., 2]).mean(axis=-1)
    span = (values[..., 1] - values[..., 2]).mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(span > 0, gained / span, np.nan)


MEASURES = (
    Measure(
        name="relearning",
        about="share of the concept that a short fine-tuning on text about it brings back",
        better="low",
        suite="full",
        run=relearning,
        controls={"quick": "none", "full": "blocked"},
    ),
)
