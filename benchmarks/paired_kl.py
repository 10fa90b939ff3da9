"""The paired KL against two separate full passes that keep their logits: time and memory."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from timing import Case, added_peak_bytes, arguments, compared, interleaved, show

from tars_lens.corpus import load_corpus
from tars_lens.lens import Lens
from tars_lens.loading import load
from tars_lens.measure.kl import Divergence, paired_kl
from tars_lens.settings import Settings
from tars_lens.trial import kl_divergence
from tars_lens.weights import Edits, Rows, written
from tars_lens.windows import Windows, cut

_REFERENCE = "two passes that keep logits"
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
    early, late = Settings().layers(lens.n_layers)[0], lens.n_layers - 1

    def paired(layer: int, *, remember: bool = False) -> Case:
        edits = _edit(lens, layer)
        return lambda: paired_kl(lens, edits, windows, remember=remember)

    cases: dict[str, Case] = {
        _REFERENCE: lambda: separate_kl(lens, _edit(lens, early), windows),
        f"paired, first edit in layer {early}": paired(early),
        f"paired, first edit in layer {early}, base's stream cached": paired(early, remember=True),
        f"paired, first edit in layer {late}": paired(late),
    }
    frame = compared(interleaved(cases, options.repeats), _REFERENCE)
    frame["added_peak_mb"] = [added_peak_bytes(run) / 1e6 for run in cases.values()]
    frame["milliseconds_per_token"] = 1e3 * frame["seconds"] / windows.reported.numel()
    show(
        f"KL of {windows.reported.numel()} tokens on {options.model}",
        frame,
        reference=f"{_REFERENCE}, by torch's log_softmax",
        out=options.out,
    )


def separate_kl(lens: Lens, edits: Edits, windows: Windows) -> Divergence:
    """The same figures the plain way: all logits of the base, all of the edited model, then KL."""
    old = _logits(lens, windows)
    with written(lens, edits):
        new = _logits(lens, windows)
    pairs = zip(old, new, strict=True)
    return Divergence(torch.stack([kl_divergence(a, b) for a, b in pairs]), windows)


def _logits(lens: Lens, windows: Windows) -> torch.Tensor:
    batches = windows.reported.split(_BATCH)
    return torch.cat([lens.read_out(lens.residual(ids, -1)) for ids in batches])


def _edit(lens: Lens, layer: int) -> Edits:
    return {(layer, "out"): Rows(torch.tensor([0]), -lens.vectors(layer, "out")[[0]])}


if __name__ == "__main__":
    main()
