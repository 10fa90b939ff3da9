"""How much is asked: `quick` for a look, `full` for a paper."""

from dataclasses import dataclass
from typing import Literal, get_args

from tars_lens.common.errors import unknown

SuiteName = Literal["quick", "full"]


@dataclass(frozen=True)
class Suite:
    """The sizes of a battery.

    Attributes:
        name: `quick` or `full`; a measure belongs to one of them, and `full` holds both.
        windows: Windows of 256 tokens of plain text that the result is compared on.
        control_windows: The same of each control.
        near_windows: Windows near the concept.
        facts: Known facts of a concept that derived probes are made from.
        prompts: Prompts of a concept that are gone on with, and looked into.
        new_tokens: Of a continuation.
        paragraphs: Paragraphs about a concept that relearning trains on.
        epochs: How often it reads them.
        resamples: Of the bootstrap.
    """

    name: SuiteName
    windows: int
    control_windows: int
    near_windows: int
    facts: int
    prompts: int
    new_tokens: int
    paragraphs: int
    epochs: int = 2
    resamples: int = 1000


QUICK = Suite(
    "quick",
    windows=12,
    control_windows=3,
    near_windows=4,
    facts=3,
    prompts=3,
    new_tokens=24,
    paragraphs=8,
)
FULL = Suite(
    "full",
    windows=100,
    control_windows=12,
    near_windows=24,
    facts=10,
    prompts=8,
    new_tokens=60,
    paragraphs=24,
)


def suite_called(name: str) -> Suite:
    """A suite by its name.

    Raises:
        TarsError: There is none.
    """
    if name not in get_args(SuiteName):
        raise unknown("suite", name, get_args(SuiteName))
    return QUICK if name == "quick" else FULL
