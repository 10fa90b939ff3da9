"""Where the time of one `erase` goes, in units of one forward pass of a 256-token window."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch as replaced

import pandas as pd
from timing import arguments, interleaved, peak_bytes, reset_peak, show

from tars_lens.concept.card import Concept
from tars_lens.evaluation import erasure
from tars_lens.method import recipe
from tars_lens.method.recipe import Recipe
from tars_lens.method.settings import Settings
from tars_lens.model.lens import Lens
from tars_lens.model.loading import load
from tars_lens.model.unembedding import Unembedding
from tars_lens.text.corpus import load_corpus
from tars_lens.text.plain_text import PlainText
from tars_lens.text.windows import cut

_STAGES: tuple[tuple[Any, str, str], ...] = (
    (erasure, "cut", "windows cut"),
    (erasure, "base_frame", "probes before"),
    (PlainText, "cached", "plain text, cached"),
    (Unembedding, "fit", "unembedding"),
    (recipe, "concept_direction", "direction"),
    (recipe, "name_shown", "name"),
    (recipe, "name_neuron", "name"),
    (Recipe, "suppression", "suppression"),
    (erasure, "with_after", "probes after"),
    (erasure, "paired_kl", "KL"),
    (erasure, "verify", "verify"),
)


class Stages:
    """Seconds and peaks of wrapped functions, each without what is wrapped inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self._inside = [0.0]

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Counts the block under a name."""
        # a peak before the block, in the stage around it, is lost: no stage here holds another
        reset_peak()
        self._inside.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inside.pop()
            self._inside[-1] += took
            self.peaks[name] = max(self.peaks.get(name, 0.0), peak_bytes())

    def wrapped(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """A function, counted under a name."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.timed(name):
                return function(*args, **kwargs)

        return run


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = arguments(__doc__)
    parser.add_argument("--concepts", nargs="+", default=["saturn"])
    parser.add_argument("--corpus", help="as for tars-lens erase")
    parser.add_argument("--kl-tokens", type=int, default=25_600)
    options = parser.parse_args(argv)
    stages = Stages()
    with stages.timed("loading"):
        lens = load(options.model, progress=False)
    with stages.timed("corpus"):
        corpus = load_corpus(options.corpus, progress=False)
    windows = cut(lens, corpus)
    ids = windows.statistics[:1]
    unit = interleaved({"pass": lambda: lens.read_out(lens.residual(ids, -1))}, 7)["pass"]
    cold = stages.wrapped(PlainText.fit, "plain text, cold")
    with replaced.object(PlainText, "cached", cold):
        Recipe.prepared(lens, windows.statistics, Settings())
    Recipe.prepared(lens, windows.statistics, Settings())  # so that the erasure finds it
    started = time.perf_counter()
    with staged(stages):
        erase(lens, options.concepts, corpus, options.kl_tokens)
    total = time.perf_counter() - started
    inside = sum(stages.seconds.get(name, 0.0) for name in {name for *_, name in _STAGES})
    stages.seconds |= {"all else": total - inside, "erase, in all": total}
    show(
        f"Stages of erasing {', '.join(options.concepts)} from {options.model}",
        _frame(stages, unit),
        reference=f"one pass of {ids.shape[1]} tokens with logits, {unit:.3g} s",
        out=options.out,
    )


@contextmanager
def staged(stages: Stages) -> Iterator[None]:
    """Counts the stages of each erasure inside the block."""
    with ExitStack() as stack:
        for owner, attribute, name in _STAGES:
            run = stages.wrapped(getattr(owner, attribute), name)
            stack.enter_context(replaced.object(owner, attribute, run))
        yield


def erase(lens: Lens, concepts: Sequence[str], corpus: Any, kl_tokens: int) -> None:
    """The pipeline with its default settings."""
    cards = [Concept.load(concept) for concept in concepts]
    erasure.erase(lens, cards, corpus=corpus, kl_tokens=kl_tokens)


def _frame(stages: Stages, unit: float) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "stage": name,
                "seconds": seconds,
                "passes": seconds / unit,
                "peak_mb": stages.peaks.get(name, float("nan")) / 1e6,
            }
            for name, seconds in stages.seconds.items()
        ]
    )


if __name__ == "__main__":
    main()
