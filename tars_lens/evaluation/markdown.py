"""An evaluation or a comparison as a Markdown table, for a README."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tars_lens.common.errors import TarsError, told
from tars_lens.common.files import user_path, write_text
from tars_lens.evaluation.summary import figure_text
from tars_lens.evaluation.thresholds import BARS, Bar
from tars_lens.evaluation.verdict import PARTS

REPORTS = ("evaluation.json", "comparison.json")
"""What a folder may hold to be shown so."""


def markdown(report: Mapping[str, Any]) -> str:
    """A row a figure, a column a subject: the headlines, what has a bar, the verdict.

    Behind a headline stands of how many of how many probes it is, and in bold is what misses a
    bar. The same report gives the same text.

    Args:
        report: As `evaluation.json` or `comparison.json` has it.
    """
    subjects = list(report["verdicts"])
    rows = [("measure", "bar", *subjects), ("---", "---", *("---:" for _ in subjects))]
    for name, measure in report["measures"].items():
        rows += _measure_rows(name, measure, subjects)
    for part in ("score", *PARTS):
        values = (figure_text(report["verdicts"][subject][part]) for subject in subjects)
        rows.append((f"verdict: {part} (+)", "", *values))
    concepts = ", ".join(report["concepts"])
    suite, corpus = report["suite"]["name"], report["corpus"]
    return "\n".join(
        [
            _safe(
                f"{concepts} in {report['model']['name']}: suite {suite}, seed {report['seed']}, "
                f"plain text: {corpus}."
            ),
            "",
            *(_row(cells) for cells in rows),
            "",
            "`+` and `-` say which way is good; in brackets, how many of how many probes the base "
            "knows; **bold** misses its bar; `-` in a cell: nothing to measure.",
            "",
        ]
    )


def write_markdown(folder: Path | str) -> Path:
    """Writes the table beside the report of an evaluation's or a comparison's folder.

    Raises:
        TarsError: The folder holds neither, or one that can't be read.
    """
    folder = user_path(folder)
    found = [folder / name for name in REPORTS if (folder / name).is_file()]
    if not found:
        raise TarsError(
            f"{str(folder)!r} holds no {' and no '.join(REPORTS)}: give what `tars-lens evaluate "
            "--out` or `compare --out` made."
        )
    with told(f"cannot read {str(found[0])!r}", "Make it again."):
        text = markdown(json.loads(found[0].read_text(encoding="utf-8")))
    path = found[0].with_suffix(".md")
    write_text(path, text)
    return path


def _measure_rows(
    name: str, measure: Mapping[str, Any], subjects: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """The headline, then the other figures with a bar, then each distance of neighbours."""
    found = [measure.get(subject) for subject in subjects]
    bars = [bar for bar in BARS if bar.measure == name]
    headline = next((figures["headline"] for figures in found if figures), "")
    own = next((bar for bar in bars if bar.path == (headline,)), None)
    sign = "+" if measure["better"] == "high" else "-"
    said = (_headline(figures, own) for figures in found)
    yield f"`{name}` ({sign})", own.text if own else "", *said
    for bar in bars:
        if bar is not own:
            cells = (_cell(bar.figure(figures or {}), bar) for figures in found)
            yield f"`{name}`: {bar.about}", bar.text, *cells
    parts = [(figures or {}).get("distances", {}) for figures in found]
    for distance in dict.fromkeys(key for part in parts for key in part):
        yield f"`{name}`: {distance} (worst)", "", *(_near(part.get(distance)) for part in parts)


def _headline(figures: Mapping[str, Any] | None, bar: Bar | None) -> str:
    if not figures:
        return ""  # the suite doesn't take it of this subject
    return f"{_cell(figures['value'], bar)}{_known(figures)}"


def _near(figures: Mapping[str, Any] | None) -> str:
    if not figures:
        return ""
    kept, worst = figure_text(figures["kept"]), figure_text(figures["worst_kept"])
    return f"{kept} ({worst}){_known(figures)}"


def _cell(value: float | None, bar: Bar | None) -> str:
    text = figure_text(value)
    if bar is not None and value is not None and 0 < abs(value) < 0.01:
        text = f"{value:.2g}"  # else 0.0051 would miss a bar of 0.005 as 0.005
    return f"**{text}**" if bar is not None and bar.missed(value) else text


def _known(figures: Mapping[str, Any]) -> str:
    known, asked = figures.get("known"), figures.get("n")
    if known is None:
        return ""
    return f" ({known})" if asked is None else f" ({known} of {asked})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_safe(cell) for cell in cells)} |"


def _safe(text: str) -> str:
    """On one line, and no cell's end within."""
    return " ".join(text.split()).replace("|", "\\|")
