"""Which tokens of a corpus are reported on, and which ones statistics and settings come from."""

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.model.lens import Lens
from tars_lens.text.corpus import Corpus

logger = logging.getLogger(__name__)

WIDTH = 256
"""Tokens in a window, the tokenizer's BOS included where it adds one."""

STATISTICS_WINDOWS = 64
VALIDATION_WINDOWS = 6


@dataclass(frozen=True)
class Windows:
    """A corpus cut into windows that never overlap between the three uses.

    Attributes:
        reported: The first window of each article, up to the tokens asked for.
        texts: What each reported window says, to tell whether it names a concept.
        statistics: Later windows, for means and covariances.
        validation: Later windows that no statistic has seen, for choosing settings.
        corpus: The corpus's name, for reports.
    """

    reported: Int[Tensor, "reported pos"]
    texts: tuple[str, ...]
    statistics: Int[Tensor, "statistics pos"]
    validation: Int[Tensor, "validation pos"]
    corpus: str


def cut(lens: Lens, corpus: Corpus, *, reported_tokens: int = 25_600) -> Windows:
    """Cuts a corpus into windows of `WIDTH` tokens.

    The reported windows are the beginnings of as many articles as `reported_tokens` asks for;
    statistics and validation come from the articles' later parts. Where a corpus is too short
    for that, its last documents are held back for statistics and never reported.

    Raises:
        TarsError: The corpus is too short to report on and to draw statistics from, or the model
            can't read so many tokens.
    """
    check_width(lens, WIDTH)
    count = max(1, -(-reported_tokens // WIDTH))
    firsts: list[list[int]] = []
    later: list[list[int]] = []
    more: list[list[int]] = []  # where a corpus has few documents
    spare = STATISTICS_WINDOWS + VALIDATION_WINDOWS
    for document in corpus.documents:
        if len(firsts) >= count and len(later) >= spare:
            break
        pieces = _pieces(lens, document)
        firsts += pieces[:1]  # more than are reported, where short documents must be held back
        later += pieces[1:4]  # a few of each article, so that no article rules the statistics
        more += pieces[4:9]
    later, firsts = _hold_back([*later, *more[: max(0, spare - len(later))]], firsts, spare)
    firsts = firsts[:count]
    if not firsts or len(later) < 2:
        raise TarsError(
            f"the corpus {corpus.name!r} is too short: it gives {len(firsts)} windows of {WIDTH} "
            f"tokens to report on and {len(later)} for statistics. Give at least 4 documents of "
            f"{WIDTH} tokens."
        )
    if len(firsts) < count:
        logger.warning(
            "the corpus %r has only %d windows of %d tokens to report on, where %d were asked for.",
            *(corpus.name, len(firsts), WIDTH, count),
        )
    used = later[:spare]
    held = max(1, min(VALIDATION_WINDOWS, len(used) // 4))
    apart = range(0, len(used), len(used) // held)[:held]  # of many articles, not of one
    return Windows(
        reported=torch.tensor(firsts, device=lens.device),
        texts=tuple(lens.tokenizer.decode(ids) for ids in firsts),
        statistics=torch.tensor(
            [ids for i, ids in enumerate(used) if i not in apart], device=lens.device
        ),
        validation=torch.tensor([used[i] for i in apart], device=lens.device),
        corpus=corpus.name,
    )


def check_width(lens: Lens, width: int) -> None:
    """Refuses windows of more tokens than a model with learned positions has positions for.

    Raises:
        TarsError: With both numbers.
    """
    try:
        lens.check_length(width)
    except TarsError as error:
        raise TarsError(
            f"{lens.name} can't read windows of plain text: {error} Choose a model that reads "
            f"{width} tokens or more."
        ) from error


def _pieces(lens: Lens, document: str) -> list[list[int]]:
    """A document's whole windows, each beginning as the tokenizer begins a text."""
    ids = lens.tokens(document)
    bos = lens.spelling.bos
    body = ids[len(bos) :]
    width = WIDTH - len(bos)
    starts = range(0, len(body) - width + 1, width)
    return [bos + body[start : start + width] for start in starts]


def _hold_back(
    later: list[list[int]], firsts: list[list[int]], spare: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Moves reported windows over to the statistics where short documents left none."""
    missing = min(max(0, spare // 4 - len(later)), len(firsts) // 2)
    return later + firsts[len(firsts) - missing :], firsts[: len(firsts) - missing]
