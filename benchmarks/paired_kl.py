"""The paired KL against two separate full passes that keep their logits: time and memory.

Two more ratios stand beside that: to two passes that share the layers before the edit and whose
logits are read out and dropped, and of the cached base to the same edit without a cache. The
latter's time includes hashing every weight, which proves that the base is the one that was kept,
and grows with the model and not with the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from timing import Case, added_peak_bytes, arguments, compared, interleaved, show

from tars_lens.evaluation.kl import kl_divergence, paired_kl, rows_at_once
from tars_lens.method.settings import Settings
from tars_lens.model.lens import Lens, Point
from tars_lens.model.loading import load
from tars_lens.model.weights import Edits, Rows, written
from tars_lens.text.corpus import load_corpus
from tars_lens.text.windows import Windows, cut

_REFERENCE = "two passes that keep logits"
_SHARED = "two passes that share their prefix"
_BATCH = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table: the edit in the recipe's first layer, and in the model's last one."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--corpus", help="as for tars-lens erase")
    parser.add_argument("--windows", type=int, default=8, help="of 256 tokens; default 8")
    options = parser.parse_args(argv)
    lens = load(options.model, progress=False)
    windows = cut(lens, load_corpus(options.corpus, progress=False))
    count = min(options.windows, len(windows.reported))
    windows = replace(windows, reported=windows.reported[:count], texts=windows.texts[:count])
    early, late = Settings().name_layers(lens.n_layers)[0], lens.n_layers - 1

    def paired(layer: int, *, remember: bool = False) -> Case:
        edits = _edit(lens, layer)
        return lambda: paired_kl(lens, edits, windows, remember=remember)

    plain = f"paired, first edit in layer {early}"
    cached = f"{plain}, base's stream cached"
    cases: dict[str, Case] = {
        _REFERENCE: lambda: separate_kl(lens, _edit(lens, early), windows),
        f"{_SHARED}, layer {early}": lambda: shared_passes(lens, _edit(lens, early), windows),
        plain: paired(early),
        cached: paired(early, remember=True),
        f"paired, first edit in layer {late}": paired(late),
    }
    seconds = interleaved(cases, options.repeats)
    frame = compared(seconds, _REFERENCE)
    frame["ratio_to_shared"] = _ratios(seconds, [plain, cached], f"{_SHARED}, layer {early}")
    frame["ratio_to_uncached"] = _ratios(seconds, [cached], plain)
    frame["added_peak_mb"] = [added_peak_bytes(run) / 1e6 for run in cases.values()]
    frame["milliseconds_per_token"] = 1e3 * frame["seconds"] / windows.reported.numel()
    show(
        f"KL of {windows.reported.numel()} tokens on {options.model}",
        frame,
        reference=f"{_REFERENCE}, by torch's log_softmax",
        out=options.out,
    )


def separate_kl(lens: Lens, edits: Edits, windows: Windows) -> torch.Tensor:
    """The same KL the plain way: all logits of the base, all of the edited model, then KL."""
    old = _logits(lens, windows)
    with written(lens, edits):
        new = _logits(lens, windows)
    pairs = zip(old, new, strict=True)
    return torch.stack([kl_divergence(a, b) for a, b in pairs])


def shared_passes(lens: Lens, edits: Edits, windows: Windows) -> None:
    """Base and edited model with the layers before the edit run once, read out, and no KL."""
    first = min(layer for layer, _ in edits)
    enter, leave = Point("resid_pre", first), Point("resid_post", lens.n_layers - 1)
    rows = rows_at_once(lens)
    for ids in windows.reported.split(_BATCH):
        seen = lens.capture(ids, [enter, leave])
        with written(lens, edits):
            edited = lens.residual(ids, -1, resume=(first, seen[enter]))
        for stream in (seen[leave], edited):
            for few in stream.flatten(0, 1).split(rows):
                lens.read_out(few)


def _ratios(seconds: Mapping[str, float], names: Sequence[str], reference: str) -> list[float]:
    """The ratio to one case's seconds for the cases that it is meant for, NaN for the others."""
    return [
        took / seconds[reference] if c in names else float("nan") for c, took in seconds.items()
    ]


def _logits(lens: Lens, windows: Windows) -> torch.Tensor:
    batches = windows.reported.split(_BATCH)
    return torch.cat([lens.read_out(lens.residual(ids, -1)) for ids in batches])


def _edit(lens: Lens, layer: int) -> Edits:
    return {(layer, "out"): Rows(torch.tensor([0]), -lens.vectors(layer, "out")[[0]])}


if __name__ == "__main__":
    main()
