"""All languages, though only English is targeted.

python analyses/languages.py --model gemma-3-270m
"""

from collections.abc import Sequence

from common import FIVE, begin, command_line, parser

from tars_lens.report.figures import languages, rows_height
from tars_lens.report.style import figure


def main(argv: Sequence[str] | None = None) -> None:
    """Writes every probe in another language, and the means by concept and language."""
    analysis = begin(parser(__doc__, FIVE), __file__, argv)
    probes = analysis.erasure().tables["probes"]
    probes = probes[probes["kind"] == "multilingual"]
    analysis.table(probes, "probes")
    known = probes[probes["known"].astype(bool)]
    by = ["concept", "language"]
    sizes = probes.groupby(by, sort=False).size().rename("n")
    means = known.groupby(by, sort=False)[["p_before", "p_after"]].mean()
    counts = known.groupby(by, sort=False).size().rename("known")
    table = means.join(counts).join(sizes, how="right").reset_index()
    table["known"] = table["known"].fillna(0).astype(int)
    analysis.table(table.assign(ratio=table["p_after"] / table["p_before"]))
    rows = len(known.drop_duplicates(by))
    made, axes = figure(1, height=rows_height(rows, known["concept"].nunique()))
    languages(probes, axes)
    analysis.figure(made)
    analysis.finish()


if __name__ == "__main__":
    command_line(main)
