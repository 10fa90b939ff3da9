"""An exam that others wrote, put to the base and to an edited model."""

import hashlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tars_lens.common.cache import Advance, silent
from tars_lens.common.files import write_json
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.probability import answer_probabilities
from tars_lens.evaluation.exam_file import ExamQuestion
from tars_lens.evaluation.measure import Result
from tars_lens.evaluation.storing import Store, rounded, write_table
from tars_lens.evaluation.subject import Subject, untouched, weights_digest
from tars_lens.method.describing import describe_model
from tars_lens.model.generation import continuations
from tars_lens.model.lens import Lens
from tars_lens.patch.edit import package_versions

_BATCH = 16
_NEW_TOKENS = 32

SCORES = {
    "choice": ("letter", "option", "option_by_length"),
    "open": ("recall", "contains"),
    "relation": ("said", "p"),
}
"""By kind, what is measured of each question; all are from 0 to 1, high where it is known."""


@dataclass(frozen=True)
class Exam:
    """What an exam found.

    Attributes:
        report: `exam.json`: by group and in all, what base and edited model score.
        items: One row a question: group, kind, text, answer, and each score before and after.
    """

    report: dict[str, Any]
    items: pd.DataFrame

    def save(self, folder: Path | str) -> tuple[str, ...]:
        """Writes `exam.json` and `exam.csv`; the names.

        Raises:
            TarsError: The folder can't be written.
        """
        folder = Path(folder)
        write_json(folder / "exam.json", self.report)
        write_table(folder / "exam.csv", self.items)
        return ("exam.json", "exam.csv")


@undisturbed
def examine(
    lens: Lens,
    subject: Subject,
    questions: Sequence[ExamQuestion],
    *,
    keep: Path | None = None,
    resume: bool = False,
    advance: Advance | None = None,
) -> Exam:
    """Puts questions to the base and to a subject, group by group.

    Of a choice, `letter` says whether the right letter is the likeliest after the options were
    listed, `option` whether the right option's text is after the bare question, and
    `option_by_length` the same per character. Of an open question, `recall` is the share of the
    answer's words that stand in the first line of the greedy answer, and `contains` whether all of
    it stands there in one piece. Of a
    relation, `said` says whether greedy decoding gives the object, and `p` is its probability.

    Args:
        lens: The base model.
        subject: What is examined.
        questions: See `load_exam`.
        keep: A folder for finished groups, so that a stopped run can go on.
        resume: Take what is kept there.
        advance: Told of the progress.
    """
    say = advance or silent
    store = Store(keep, _fingerprint(lens, questions) if keep else "", resume=resume)
    groups = list(dict.fromkeys((q.group, q.kind) for q in questions))
    frames = []
    for done, (group, kind) in enumerate(groups):
        asked = [q for q in questions if (q.group, q.kind) == (group, kind)]
        sides = {}
        for number, who in enumerate((untouched("base"), subject)):
            say(f"{who.name}: {group}", 2 * done + number, 2 * len(groups))
            part = f"exam{done}"
            result = store.load(who.name, who.digest, part)
            if result is None:
                with who.held(lens) if who is subject else nullcontext(lens) as held:
                    scores = _ANSWERING[kind](held, asked)
                result = Result(part, SCORES[kind][0], {}, None, scores)
                store.keep(who.name, who.digest, result)
            sides[("before", "after")[number]] = result.items
        frame = pd.DataFrame({"group": group, "kind": kind, "text": [q.text for q in asked]})
        frame["answer"] = [q.answers[0] for q in asked]
        frame["chance"] = [1 / len(q.options) if q.options else 0.0 for q in asked]
        for when, items in sides.items():
            frame = frame.join(items.add_suffix(f"_{when}"))
        frames.append(frame)
    say("examined", 2 * len(groups), 2 * len(groups))
    items = pd.concat(frames, ignore_index=True)
    return Exam(_report(lens, subject, items), items)


def _report(lens: Lens, subject: Subject, items: pd.DataFrame) -> dict[str, Any]:
    groups = [
        {"group": group, "kind": kind, **_figures(rows)}
        for (group, kind), rows in items.groupby(["group", "kind"], sort=False)
    ]
    totals = [{"kind": kind, **_figures(rows)} for kind, rows in items.groupby("kind", sort=False)]
    found = {
        "schema": 1,
        "model": describe_model(lens),
        "versions": package_versions(),
        "subject": {"name": subject.name, "digest": subject.digest},
        "all": totals,
        "groups": groups,
    }
    return dict(rounded(found))


def _figures(rows: pd.DataFrame) -> dict[str, Any]:
    kind = str(rows["kind"].iloc[0])
    found: dict[str, Any] = {"n": len(rows), "chance": float(rows["chance"].mean())}
    for score in SCORES[kind]:
        for when in ("before", "after"):
            found[f"{score}_{when}"] = float(rows[f"{score}_{when}"].mean())
    return found


def _choices(lens: Lens, asked: Sequence[ExamQuestion]) -> pd.DataFrame:
    rows = []
    for question in asked:
        letters = string.ascii_uppercase[: len(question.options)]
        listed = "\n".join(f"{a}. {o}" for a, o in zip(letters, question.options, strict=True))
        named = f"Question: {question.text}\n{listed}\nAnswer:"
        bare = f"Question: {question.text}\nAnswer:"
        by_letter = _log_probabilities(lens, named, [f" {letter}" for letter in letters])
        by_text = _log_probabilities(lens, bare, [f" {option}" for option in question.options])
        lengths = torch.tensor([len(option) for option in question.options])
        scores = (by_letter, by_text, by_text / lengths)
        right = (float(int(score.argmax()) == question.right) for score in scores)
        rows.append(dict(zip(SCORES["choice"], right, strict=True)))
    return pd.DataFrame(rows, columns=SCORES["choice"])


@torch.no_grad()
def _log_probabilities(lens: Lens, prompt: str, ways: Sequence[str]) -> torch.Tensor:
    """The summed log-probability of each text after a prompt, in nats, in float64."""
    begun, found = lens.tokens(prompt), []
    ends = [lens.pieces(way) for way in ways]
    for start in range(0, len(ends), _BATCH):
        part = ends[start : start + _BATCH]
        batch = lens.batch([[*begun, *end] for end in part])
        stream = lens.residual(batch.ids, -1)
        for row, end in enumerate(part):
            at = stream[row, len(begun) - 1 : len(begun) - 1 + len(end)]
            logs = lens.read_out(at).double().log_softmax(dim=-1).cpu()
            found.append(logs[torch.arange(len(end)), torch.tensor(end)].sum())
    return torch.stack(found)


def _open(lens: Lens, asked: Sequence[ExamQuestion]) -> pd.DataFrame:
    prompts = [f"Question: {q.text}\nAnswer:" for q in asked]
    answers = continuations(lens, prompts, _NEW_TOKENS)
    rows = []
    for question, answer in zip(asked, answers, strict=True):
        line = next(iter(answer.strip().splitlines()), "")
        gold, said = _words(question.answers[0]), _words(line)
        shared = sum((Counter(gold) & Counter(said)).values())
        whole = f" {' '.join(gold)} " in f" {' '.join(said)} "
        rows.append({"recall": shared / max(1, len(gold)), "contains": float(whole)})
    return pd.DataFrame(rows, columns=SCORES["open"])


def _relations(lens: Lens, asked: Sequence[ExamQuestion]) -> pd.DataFrame:
    found = answer_probabilities(lens, [q.text for q in asked], [q.answers for q in asked])
    return pd.DataFrame(
        {"said": [float(top) for top in found.top], "p": found.probability.tolist()}
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


_ANSWERING = {"choice": _choices, "open": _open, "relation": _relations}


def _fingerprint(lens: Lens, questions: Sequence[ExamQuestion]) -> str:
    parts = [str(sorted(package_versions().items())), weights_digest(lens)]
    parts += [str(asdict(question)) for question in questions]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
