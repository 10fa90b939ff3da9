"""Questions that others wrote: multiple choice, open questions and relations, from JSON files."""

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tars_lens.common.errors import TarsError, reason
from tars_lens.common.files import user_path

Kind = Literal["choice", "open", "relation"]

_ASKED = ("q", "question", "prompt")
_ANSWERED = ("correct_answer", "a", "answer", "object")
_OFFERED = ("options", "choices", "answers")


@dataclass(frozen=True)
class ExamQuestion:
    """One question.

    Attributes:
        kind: `choice` has options, `open` a written answer, `relation` a text to go on with.
        group: What it is counted with: the concept and split, or the relation.
        text: The question, or the text.
        answers: Each of which is right; of a choice, the right option alone.
        options: Of a choice.
    """

    kind: Kind
    group: str
    text: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def right(self) -> int:
        """The index of the right option."""
        return self.options.index(self.answers[0])


def load_exam(path: Path | str) -> list[ExamQuestion]:
    """Reads a file of questions.

    A file is a list of questions, such lists by concept and by split (as EMBER's
    `mc_questions.json` and `open_questions.json`), or a relation (as those of LRE: `name`,
    `prompt_templates` with `{}`, `samples` with `subject` and `object`), or a list of relations.

    Args:
        path: A JSON file.

    Raises:
        TarsError: It can't be read, or a question isn't one; the message names its place.
    """
    file = user_path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise TarsError(f"cannot read the questions {str(file)!r}: {reason(error)}.") from error
    questions = list(_questions(found, (), str(file)))
    if not questions:
        raise TarsError(f"{str(file)!r} holds no question.")
    return questions


def _questions(found: Any, where: tuple[str, ...], file: str) -> Iterator[ExamQuestion]:
    if isinstance(found, dict) and "samples" in found:
        yield from _relation(found, where, file)
    elif isinstance(found, dict) and not any(key in found for key in _ASKED):
        for name, inner in found.items():
            yield from _questions(inner, (*where, str(name)), file)
    elif isinstance(found, list):
        for index, item in enumerate(found):
            grouped = isinstance(item, dict) and "samples" in item
            yield from (
                _questions(item, where, file) if grouped else [_question(item, where, index, file)]
            )
    else:
        raise TarsError(f"{file!r}, {_place(where)}: neither questions nor a relation.")


def _question(item: Any, where: tuple[str, ...], index: int, file: str) -> ExamQuestion:
    place = f"{file!r}, {_place((*where, str(index)))}"
    if not isinstance(item, dict):
        raise TarsError(f"{place}: a question is an object with {_said(_ASKED)}.")
    text = _text(item, _ASKED, place)
    given = next((item[key] for key in _OFFERED if key in item), None)
    group = " / ".join(where) or "all"
    if given is None:
        return ExamQuestion("open", group, text, (_text(item, _ANSWERED, place),))
    options = _options(given, place)
    answer = next((item[key] for key in _ANSWERED if key in item), None)
    return ExamQuestion("choice", group, text, (_right(answer, given, options, place),), options)


def _relation(found: dict[str, Any], where: tuple[str, ...], file: str) -> Iterator[ExamQuestion]:
    place = f"{file!r}, {_place(where)}"
    name = " / ".join((*where, str(found.get("name", "relation"))))
    templates, samples = found.get("prompt_templates"), found["samples"]
    if not isinstance(templates, list) or not all(
        isinstance(t, str) and "{}" in t for t in templates
    ):
        raise TarsError(f"{place}: key 'prompt_templates' is a list of texts with '{{}}'.")
    if not isinstance(samples, list) or not templates:
        raise TarsError(f"{place}: a relation has templates, and a list of samples.")
    for index, sample in enumerate(samples):
        at = f"{place}, samples[{index}]"
        if not isinstance(sample, dict):
            raise TarsError(f"{at}: a sample is an object with 'subject' and 'object'.")
        subject, answer = _text(sample, ("subject",), at), _text(sample, ("object",), at)
        for template in templates:
            yield ExamQuestion("relation", name, template.replace("{}", subject), (answer,))


def _options(given: Any, place: str) -> tuple[str, ...]:
    values = list(given.values()) if isinstance(given, dict) else given
    if (
        not isinstance(values, list)
        or not 2 <= len(values) <= len(string.ascii_uppercase)
        or not all(isinstance(v, str) and v.strip() for v in values)
        or len(set(values)) < len(values)
    ):
        raise TarsError(f"{place}: the options are 2 to 26 different texts.")
    return tuple(values)


def _right(answer: Any, given: Any, options: tuple[str, ...], place: str) -> str:
    """The right option, given as its text, its letter or key, or its index."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return options[answer]
    if isinstance(answer, str):
        if answer in options:
            return answer
        if isinstance(given, dict) and isinstance(given.get(answer), str):
            return str(given[answer])
        letter = answer.strip().rstrip(".):").upper()
        if len(letter) == 1 and letter in string.ascii_uppercase[: len(options)]:
            return options[string.ascii_uppercase.index(letter)]
    raise TarsError(
        f"{place}: the answer {answer!r} is none of the options, nor a letter or index."
    )


def _text(item: dict[str, Any], keys: tuple[str, ...], place: str) -> str:
    found = next((item[key] for key in keys if key in item), None)
    if not isinstance(found, str) or not found.strip():
        raise TarsError(f"{place}: {_said(keys)} is missing, or no text.")
    return found


def _said(keys: tuple[str, ...]) -> str:
    return " or ".join(repr(key) for key in keys)


def _place(where: tuple[str, ...]) -> str:
    return " / ".join(where) or "at the top"
