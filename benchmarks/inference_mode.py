"""Runs of a lens under `torch.inference_mode` against the `torch.no_grad` that it uses.

A short prompt and a window of 256 tokens: what inference mode saves is the bookkeeping of each
operation, which counts the more the smaller the tensors are.
"""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from timing import arguments, compared, interleaved, show

from tars_lens.model.lens import Lens
from tars_lens.model.loading import load

_TOKENS = (16, 256)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    options = arguments(__doc__, repeats=25).parse_args(argv)
    lens = load(options.model, progress=False)
    frames = [_compared(lens, tokens, options.repeats) for tokens in _TOKENS]
    show(
        f"One run of {options.model} under inference mode",
        pd.concat(frames, ignore_index=True),
        reference="the same run under no_grad, which a lens uses",
        out=options.out,
    )


def _compared(lens: Lens, tokens: int, repeats: int) -> pd.DataFrame:
    ids = torch.arange(tokens, device=lens.device)[None] % lens.d_vocab
    names = [f"{mode}, {tokens} tokens" for mode in ("no_grad", "inference_mode")]
    runs = (lambda: lens.residual(ids, -1), _inferring(lambda: lens.residual(ids, -1)))
    return compared(interleaved(dict(zip(names, runs, strict=True)), repeats), names[0])


def _inferring(run: Callable[[], object]) -> Callable[[], object]:
    def inside() -> object:
        with torch.inference_mode():
            return run()

    return inside


if __name__ == "__main__":
    main()
