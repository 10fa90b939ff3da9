"""The choice of one concept's edit with runs that begin at the edit, against runs from layer 0.

An edit changes nothing before its layer, so each trial takes up the base's residual stream there.
The reference makes the same trials of the same texts, each from the first layer on; both must come
to the same rows, bit by bit. The prefixes are counted with the choice that needs them.

Beside it stands one whole `erase` of the concept: process start, loading and the KL apart, its
probes, choice, proof and (cached) statistics included.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch as replaced

import pandas as pd
import torch
from tars_lens.neutral import Neutral
from tars_lens.removal import Removal, remove
from tars_lens.study import study
from timing import arguments, compared, interleaved, show

from tars_lens.concept import Concept
from tars_lens.corpus import load_corpus
from tars_lens.erasure import erase
from tars_lens.lens import Lens
from tars_lens.loading import load
from tars_lens.method.settings import Settings
from tars_lens.method.unembedding import Unembedding
from tars_lens.windows import cut

_REFERENCE = "choice, every run from layer 0"
_SUFFIX = "choice, runs from the edit on"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table; stops where the two choices differ."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--concept", default="saturn", help="built-in name or path of a card")
    parser.add_argument("--corpus", help="as for tars-lens erase")
    options = parser.parse_args(argv)
    lens = load(options.model, progress=False)
    concept, settings = Concept.load(options.concept), Settings()
    corpus = load_corpus(options.corpus, progress=False)
    windows = cut(lens, corpus)
    neutral = Neutral.cached(lens, windows.statistics, settings.layers(lens.n_layers))
    known = study(lens, concept, neutral, Unembedding.fit(lens), settings)
    chosen: dict[str, Removal] = {}

    def choose(name: str, how: Callable[[], AbstractContextManager[None]]) -> Callable[[], None]:
        def run() -> None:
            with how():
                chosen[name] = remove(lens, known, neutral, windows, settings, ())

        return run

    batch = windows.validation
    one = "one pass over the validation windows"
    cases = {
        _REFERENCE: choose(_REFERENCE, from_the_first_layer),
        _SUFFIX: choose(_SUFFIX, nullcontext),
        "erase, KL apart": lambda: erase(lens, [concept], corpus=corpus, kl_tokens=0),
        one: lambda: [lens.read_out(lens.residual(ids[None], -1)) for ids in batch],
    }
    seconds = interleaved(cases, options.repeats)
    check_same(*chosen.values())
    show(
        f"Choosing the edit of {options.concept} in {options.model}: the same rows both ways",
        _frame(seconds, seconds[one], batch.numel()),
        reference=f"{_REFERENCE}; a pass is one forward of the {batch.numel()} tokens of the "
        f"{len(batch)} validation windows with their logits, {seconds[one]:.3g} s",
        out=options.out,
    )


@contextmanager
def from_the_first_layer() -> Iterator[None]:
    """Makes every run begin at layer 0, whatever residual stream it could take up.

    What a resumed run finds is what the same texts give from the first layer on: only layers from
    the resumed one on are edited meanwhile.
    """
    capture = Lens.capture

    def whole(lens: Lens, ids: Any, points: Any, **options: Any) -> Any:
        return capture(lens, ids, points, **{**options, "resume": None})

    with replaced.object(Lens, "capture", whole):
        yield


def check_same(one: Removal, other: Removal) -> None:
    """Stops unless two choices came to the same rows, bit by bit.

    Raises:
        SystemExit: Where they differ.
    """
    first, second = one.patch.new_rows, other.patch.new_rows
    if first.keys() != second.keys():
        raise SystemExit(f"the choices differ: {sorted(first)} and {sorted(second)}.")
    for place, rows in first.items():
        if not all(map(torch.equal, rows, second[place])):
            raise SystemExit(f"the choices differ in layer {place[0]}, {place[1]}.")


def _frame(seconds: dict[str, float], one: float, tokens: int) -> pd.DataFrame:
    frame = compared(seconds, _REFERENCE)
    frame["speedup"] = 1 / frame["ratio"]
    frame["passes"] = frame["seconds"] / one
    frame["passes_of_256_tokens"] = frame["passes"] * tokens / 256
    return frame


if __name__ == "__main__":
    main()
