"""One concept out of one model by this package's recipe and by two baselines: seconds and memory.

Every method runs once, in a process of its own that has loaded the model. What is measured is the
making of the edit from the card and plain text, a baseline's choice on validation text included,
and no measurement of what it does. `rank_one` gathers its own statistics of plain text each time,
so the recipe stands here with plain text gathered anew and taken from the cache. Of the baselines'
memory one copy of the weights is the harness's, which keeps it to undo them bit by bit.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch as replaced

from timing import added_peak_bytes, arguments, compared, show

_REFERENCE = "rank_one"
_METHODS = ("tars", "tars, plain text cached", _REFERENCE, "ablation")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table; with `--method`, which the script gives itself, one method's figures."""
    parser = arguments(__doc__)
    parser.add_argument("--concept", default="saturn", help="built-in name or path of a card")
    parser.add_argument("--corpus", help="as for tars-lens erase")
    parser.add_argument("--method", choices=_METHODS, help="measure this one, in this process")
    options = parser.parse_args(argv)
    if options.method:
        print(json.dumps(measured(options)))
        return
    found = {method: _in_a_process(options, method) for method in _METHODS}
    frame = compared({method: figures["seconds"] for method, figures in found.items()}, _REFERENCE)
    frame["added_peak_mb"] = [figures["added_bytes"] / 1e6 for figures in found.values()]
    frame["of_the_weights"] = [f["added_bytes"] / f["weight_bytes"] for f in found.values()]
    show(
        f"Removing {options.concept} from {options.model}",
        frame,
        reference=f"{_REFERENCE}, a ROME-style edit to a neutral target",
        out=options.out,
    )


def measured(options: Any) -> dict[str, float]:
    """Seconds, added peak and the weights' size of one method, in this process."""
    from tars_lens.concept.card import Concept
    from tars_lens.model.loading import load
    from tars_lens.model.model_state import model_state
    from tars_lens.text.corpus import load_corpus

    lens = load(options.model, progress=False)
    concept = Concept.load(options.concept)
    corpus = load_corpus(options.corpus, progress=False)
    make = _maker(options.method, lens, concept, corpus)
    took = []

    def run() -> None:
        started = perf_counter()
        make()
        took.append(perf_counter() - started)

    added = added_peak_bytes(run)
    size = sum(tensor.nbytes for _, tensor in model_state(lens.model))
    return {"seconds": took[0], "added_bytes": added, "weight_bytes": float(size)}


def _maker(method: str, lens: Any, concept: Any, corpus: Any) -> Callable[[], Any]:
    from tars_lens.experiments.baselines.registry import BASELINES
    from tars_lens.method.recipe import Recipe
    from tars_lens.method.settings import Settings
    from tars_lens.text.plain_text import PlainText
    from tars_lens.text.windows import cut

    windows, settings = cut(lens, corpus), Settings()
    if method in BASELINES:
        return lambda: BASELINES[method](lens, concept, windows, settings.seed)

    def ours() -> Any:
        return Recipe.prepared(lens, windows.statistics, settings).patch(concept)

    def anew() -> Any:
        with replaced.object(PlainText, "cached", PlainText.fit):
            return ours()

    if method == "tars":
        return anew
    Recipe.prepared(lens, windows.statistics, settings)  # so that the run finds it
    return ours


def _in_a_process(options: Any, method: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), "--model", options.model]
    command += ["--concept", options.concept, "--method", method]
    command += ["--corpus", options.corpus] if options.corpus else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{method} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
