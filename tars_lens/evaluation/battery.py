"""The whole battery: every measure of a suite, of a subject and of its controls."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tars_lens.common.cache import Advance, silent
from tars_lens.common.files import write_json, write_text
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.evaluation.base import Base
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.control_edits import controls as controls_of
from tars_lens.evaluation.markdown import markdown
from tars_lens.evaluation.measure import Result
from tars_lens.evaluation.registry import MEASURES, measures_of
from tars_lens.evaluation.storing import Store, file_name, rounded, write_table
from tars_lens.evaluation.subject import Subject, weights_digest
from tars_lens.evaluation.suites import QUICK, Suite
from tars_lens.evaluation.verdict import verdict
from tars_lens.method.describing import describe_model
from tars_lens.model.lens import Lens
from tars_lens.patch.edit import package_versions
from tars_lens.text.corpus import Corpus, load_corpus

SCHEMA = 1


@dataclass(frozen=True)
class Evaluation:
    """What the battery found.

    Attributes:
        report: `evaluation.json`: figures of every measure and subject, the verdicts, no times.
        results: By subject's name, then by measure's.
        cost: One row a measure and subject: seconds.
    """

    report: dict[str, Any]
    results: dict[str, dict[str, Result]]
    cost: pd.DataFrame

    @property
    def score(self) -> float | None:
        """The verdict on the result."""
        found: float | None = self.report["verdicts"][self.report["subject"]["name"]]["score"]
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row a measure: columns measure, about, better, and every subject's headline."""
        return pd.DataFrame(
            [
                {
                    "measure": measure.name,
                    "about": measure.about,
                    "better": measure.better,
                    **{
                        subject: found[measure.name].value
                        for subject, found in self.results.items()
                        if measure.name in found
                    },
                }
                for measure in MEASURES
                if measure.name in self.report["measures"]
            ]
        )

    def save(self, folder: Path | str) -> tuple[str, ...]:
        """Writes `evaluation.json`, its tables, and one table of items a measure; the names.

        Raises:
            TarsError: The folder can't be written.
        """
        folder = Path(folder)
        write_json(folder / "evaluation.json", self.report)
        write_text(folder / "evaluation.md", markdown(self.report))
        write_table(folder / "measures.csv", self.to_frame())
        write_table(folder / "cost.csv", self.cost)
        for subject, found in self.results.items():
            for name, result in found.items():
                write_table(folder / "items" / f"{name}-{file_name(subject)}.csv", result.items)
        return ("evaluation.json", "evaluation.md", "measures.csv", "cost.csv", "items/")


@undisturbed
def evaluate(
    lens: Lens,
    subject: Subject,
    concepts: Sequence[Concept],
    *,
    suite: Suite = QUICK,
    seed: int = 0,
    corpus: Corpus | None = None,
    with_controls: bool = True,
    keep: Path | None = None,
    resume: bool = False,
    advance: Advance | None = None,
) -> Evaluation:
    """Runs a suite on an edited model and its controls; the base is left as it was found.

    Args:
        lens: The base model.
        subject: What is examined: `patched`, `checkpoint` or `untouched`.
        concepts: What was removed; a card that is given twice counts once.
        suite: `QUICK` or `FULL`.
        seed: Of controls, fine-tuning and intervals. The same seed gives the same report.
        corpus: Plain text; the built-in sample of Wikipedia by default.
        with_controls: Take the measures of the controls as well.
        keep: A folder for finished measures, so that a stopped run can go on.
        resume: Take what is kept there.
        advance: Told of the progress.

    Raises:
        TarsError: No concept, two different cards of one name, patches on the model, or a corpus
            that is too short.
    """
    say = advance or silent
    text = corpus or load_corpus()
    started = time.perf_counter()
    say("asking the base model", 0, 1)
    base = Base(lens, concepts, text, suite, seed)
    seconds = time.perf_counter() - started
    cost: list[dict[str, Any]] = [{"subject": "base", "measure": "questions", "seconds": seconds}]
    others = controls_of(lens, subject, base.concepts, seed=seed) if with_controls else ()
    subjects = (subject, *others)
    plan = [(each, measure) for each in subjects for measure in measures_of(suite, each)]
    store = Store(keep, fingerprint(base) if keep else "", resume=resume)
    contexts = {each.name: Context(base, each) for each in subjects}
    results: dict[str, dict[str, Result]] = {each.name: {} for each in subjects}
    for done, (each, measure) in enumerate(plan):
        say(f"{each.name}: {measure.name}", done, len(plan))
        result = store.load(each.name, each.digest, measure.name)
        if result is None:
            started = time.perf_counter()
            result = measure.run(contexts[each.name])
            seconds = time.perf_counter() - started
            cost.append({"subject": each.name, "measure": measure.name, "seconds": seconds})
            store.keep(each.name, each.digest, result)
        results[each.name][measure.name] = result
    say("evaluated", len(plan), len(plan))
    return Evaluation(_report(base, subject, results), results, pd.DataFrame(cost))


def _report(base: Base, subject: Subject, results: dict[str, dict[str, Result]]) -> dict[str, Any]:
    return rounded(
        {
            "schema": SCHEMA,
            "model": describe_model(base.lens),
            "concepts": [concept.name for concept in base.concepts],
            "suite": asdict(base.suite),
            "seed": base.seed,
            "corpus": base.corpus.name,
            "versions": package_versions(),
            "subject": {
                "name": subject.name,
                "digest": subject.digest,
                "vectors": sum(len(rows.neurons) for rows in subject.edits.values()) or None,
                "matrices": [f"L{layer}.{role}" for layer, role in sorted(subject.edits)],
            },
            "measures": {
                measure.name: {
                    "about": measure.about,
                    "better": measure.better,
                    **{
                        name: found[measure.name].to_dict()
                        for name, found in results.items()
                        if measure.name in found
                    },
                }
                for measure in measures_of(base.suite, subject)
            },
            "verdicts": {name: verdict(found) for name, found in results.items()},
        }
    )


def fingerprint(base: Base) -> str:
    """The hash of what every kept result depends on, but for its subject."""
    parts = {
        "model": describe_model(base.lens),
        "weights": weights_digest(base.lens),
        "concepts": [concept.to_dict() for concept in base.concepts],
        "suite": asdict(base.suite),
        "seed": base.seed,
        "corpus": base.corpus.sha256,
        "versions": package_versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
