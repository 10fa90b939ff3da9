"""Ranking all neurons against one sequential read of the same weight bytes."""

from collections.abc import Sequence

import torch
from timing import arguments, compared, interleaved, show

from tars_lens.method.ranking import rank
from tars_lens.model.loading import load

_REFERENCE = "read: torch.sum"
_TOP = 100


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table: the whole of `rank`, and its products and norms alone."""
    options = arguments(__doc__, repeats=15).parse_args(argv)
    lens = load(options.model, progress=False)
    weights = [lens.vectors(layer, role) for layer in range(lens.n_layers) for role in lens.roles]
    generator = torch.Generator().manual_seed(0)
    sixteen = torch.randn(16, lens.d_model, generator=generator)
    one = sixteen[0]
    units = torch.nn.functional.normalize(sixteen, dim=1).to(lens.dtype)
    stored = [matrix if matrix.is_contiguous() else matrix.T for matrix in weights]
    targets = {matrix.shape: torch.empty_like(matrix) for matrix in stored}
    cases = {
        _REFERENCE: lambda: [matrix.sum() for matrix in weights],
        "read and write: torch copy_": lambda: [
            targets[matrix.shape].copy_(matrix) for matrix in stored
        ],
        "products, 1 vector": lambda: [matrix @ units[:1].T for matrix in weights],
        "products, 16 vectors": lambda: [matrix @ units.T for matrix in weights],
        "norms": lambda: [matrix.square().sum(dim=1) for matrix in weights],
        f"rank, 1 vector, top {_TOP}": lambda: rank(lens, one, top=_TOP),
        f"rank, 16 vectors, top {_TOP}": lambda: rank(lens, sixteen, top=_TOP),
        "rank, 1 vector, every row": lambda: rank(lens, one),
    }
    show(
        f"Ranking {_size(weights)} of {options.model}",
        compared(interleaved(cases, options.repeats), _REFERENCE),
        reference=f"{_REFERENCE} over every MLP weight matrix, one after another",
        out=options.out,
    )


def _size(weights: Sequence[torch.Tensor]) -> str:
    count = sum(len(matrix) for matrix in weights)
    megabytes = sum(matrix.numel() * matrix.itemsize for matrix in weights) / 1e6
    return f"{count} weight vectors ({megabytes:.0f} MB)"


if __name__ == "__main__":
    main()
