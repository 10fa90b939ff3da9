"""The probability of an answer as the next text: products over tokens, sums over surface forms."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.forms import Form, text_forms
from tars_lens.model.grouping import groups, run_cost
from tars_lens.model.lens import Lens

KNOWN = 0.1
"""A probe counts where the base gives its answer at least this probability, or ranks it first."""

_BATCH = 32

_LEFT_OUT = 1e-5


@dataclass(frozen=True)
class Answers:
    """What a model says of some probes.

    Attributes:
        probability: Of the answer as the next text, in float32.
        top: Whether the model's likeliest next tokens spell a surface form of the answer.
    """

    probability: Float[Tensor, " probes"]
    top: tuple[bool, ...]

    @property
    def known(self) -> tuple[bool, ...]:
        """Whether each probe counts, were this the base model."""
        pairs = zip(self.probability.tolist(), self.top, strict=True)
        return tuple(p >= KNOWN or top for p, top in pairs)


def answer_probabilities(
    lens: Lens, prompts: Sequence[str], answers: Sequence[Iterable[str]]
) -> Answers:
    """`p(answer | prompt)` of each probe, in as few runs as the tokens allow.

    The product of the answer's token probabilities after the prompt, summed over its surface
    forms, each with and without a leading space (`evaluation.md`). Each prompt is read once, along
    with the first of the forms; of the other forms of several tokens the unlikeliest are not read,
    as many as add less than 1e-5 to the probability, all of them together.

    Args:
        lens: The model as it stands.
        prompts: One text a probe.
        answers: The surface forms of each probe's answer.
    """
    forms = [text_forms(lens, texts) for texts in answers]
    ids = [lens.tokens(prompt) for prompt in prompts]
    probability, top = torch.zeros(len(prompts)), [False] * len(prompts)
    rows: list[_Row] = []

    def add(row: _Row, logs: Float[Tensor, "pos d_vocab"], served: Iterable[Form]) -> None:
        likeliest = logs.argmax(dim=-1).tolist()
        for form in served:
            # all of it: one byte of a script begins many answers
            top[row.probe] |= likeliest[: len(form)] == list(form)
            steps = logs[torch.arange(len(form)), torch.tensor(form, device=logs.device)]
            probability[row.probe] += steps.sum().exp().cpu()

    firsts = [_first_row(i, prompt, forms[i]) for i, prompt in enumerate(ids)]
    for row, logs in _read(lens, firsts):
        mattering = _mattering(forms[row.probe], logs[0].exp())
        served, rest = _parted(row, mattering)
        add(row, logs, served)
        rows += _rows(row.probe, ids[row.probe], rest)
    for row, logs in _read(lens, rows):
        add(row, logs, row.forms)
    return Answers(probability, tuple(top))


def rows_needed(ids: list[int], forms: Sequence[Form]) -> list[list[int]]:
    """The sequences that `answer_probabilities` reads at most of one prompt."""
    first = _first_row(0, ids, forms)
    return [first.ids, *(row.ids for row in _rows(0, ids, _parted(first, forms)[1]))]


def _mattering(forms: Sequence[Form], first: Float[Tensor, " d_vocab"]) -> list[Form]:
    """The forms of one token, and those of several that matter by their first one."""
    single = [form for form in forms if len(form) == 1]
    several = sorted((f for f in forms if len(f) > 1), key=lambda form: float(first[form[0]]))
    sums = first[[form[0] for form in several]].cumsum(0).tolist() if several else []
    return single + several[sum(total <= _LEFT_OUT for total in sums) :]


class _Row(NamedTuple):
    """One run: a prompt with the longest part of some forms that has to be read."""

    probe: int
    ids: list[int]
    begin: int
    forms: list[Form]


def _first_row(probe: int, ids: list[int], forms: Sequence[Form]) -> _Row:
    """A prompt along with all that has to be read of the form that comes first, to its last token.

    It is the answer as the card spells it, after a space: mostly the only one that matters.
    """
    lead = forms[0][:-1] if forms else ()
    return _Row(probe, [*ids, *lead], len(ids) - 1, [])


def _parted(row: _Row, forms: Sequence[Form]) -> tuple[list[Form], list[Form]]:
    """The forms whose probability a run tells, and the others."""
    read = tuple(row.ids[row.begin + 1 :])
    parts: tuple[list[Form], list[Form]] = [], []
    for form in forms:
        parts[read[: len(form) - 1] != form[:-1]].append(form)
    return parts


def _rows(probe: int, ids: list[int], forms: Sequence[Form]) -> list[_Row]:
    """The fewest runs that serve every form: a form is read along with one that it begins."""
    served: dict[Form, list[Form]] = {}
    for form in sorted(forms, key=len, reverse=True):
        lead = form[:-1]
        carrier = next((c for c in served if c[: len(lead)] == lead), lead)
        served.setdefault(carrier, []).append(form)
    return [_Row(probe, ids + list(c), len(ids) - 1, found) for c, found in served.items()]


def _read(lens: Lens, rows: list[_Row]) -> Iterator[tuple[_Row, Float[Tensor, "pos d_vocab"]]]:
    """Each row with its log probabilities, rows of much the same length together."""
    for group in groups([len(row.ids) for row in rows], run_cost(lens.device)):
        for start in range(0, len(group), _BATCH):
            chunk = [rows[i] for i in group[start : start + _BATCH]]
            yield from zip(chunk, _log_probabilities(lens, chunk), strict=True)


def _log_probabilities(lens: Lens, rows: Sequence[_Row]) -> list[Float[Tensor, "pos d_vocab"]]:
    """Log probabilities of the next token at each position from a prompt's last one on."""
    batch = lens.batch([row.ids for row in rows])
    residual = lens.residual(batch.ids, -1)
    spans = [residual[i, row.begin : len(row.ids)] for i, row in enumerate(rows)]
    logs = torch.log_softmax(lens.read_out(torch.cat(spans)), dim=-1)
    return list(logs.split([len(span) for span in spans]))
