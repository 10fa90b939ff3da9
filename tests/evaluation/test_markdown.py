"""An evaluation as a Markdown table: counts beside figures, misses in bold, the same bytes."""

import copy
import json

import pytest
from commands import mistake

from tars_lens.common.errors import TarsError
from tars_lens.evaluation.markdown import markdown, write_markdown
from tars_lens.evaluation.registry import MEASURES
from tars_lens.evaluation.thresholds import BARS


def _found(headline, value, **figures):
    return {"headline": headline, "value": value, "interval": None, headline: value, **figures}


def _kl(mean, p99):
    elsewhere = {"tokens": 9, "median": 0.0001, "mean": mean, "p95": 0.0, "p99": p99, "max": 9.0}
    return _found("mean", mean, elsewhere=elsewhere)


def _near(kept, worst):
    sibling = {"kept": kept, "n": 4, "known": 3, "worst": "a|b", "worst_kept": worst}
    return _found(
        "kept", kept, n=9, known=8, worst="a|b", worst_kept=worst, distances={"sibling": sibling}
    )


VERDICT = {"score": 0.9, "erasure": 0.95, "specificity": 0.9, "utility": None, "fluency": 0.0}
REPORT = {
    "model": {"name": "tiny|model"},
    "concepts": ["Saturn", "Sherlock Holmes"],
    "suite": {"name": "quick"},
    "seed": 3,
    "corpus": "texts",
    "measures": {
        "forward": {
            "better": "low",
            "edited": _found("kept", 0.0123, n=10, known=8, after_max=0.0049),
            "blocked token": _found("kept", 0.0, n=10, known=8, after_max=0.0051),
        },
        "reverse": {
            "better": "low",
            "edited": _found("kept", 0.1, n=4, known=4),
            "blocked token": _found("kept", 1.0, n=4, known=4),
        },
        "neighbour": {
            "better": "high",
            "edited": _near(0.9, 0.49),
            "blocked token": _near(0.899, 0.5),
        },
        "wikipedia": {
            "better": "low",
            "edited": _kl(0.005, 0.051),
            "blocked token": _kl(0.0, 0.0),
        },
        "alias": {
            "better": "low",
            "edited": _found("kept", None, n=0, known=0),
            "blocked token": _found("kept", None, n=0, known=0),
        },
        "fluency": {"better": "high", "edited": _found("fluency", 0.99)},
    },
    "verdicts": {"edited": VERDICT, "blocked token": {**VERDICT, "score": None}},
}


@pytest.fixture
def rows():
    lines = markdown(REPORT).splitlines()
    table = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]
    assert {len(row) for row in table} == {4}
    return {row[0]: row[1:] for row in table}


def test_a_row_a_figure_and_a_column_a_subject(rows):
    assert rows["measure"] == ["bar", "edited", "blocked token"]
    assert rows["`forward` (-)"] == ["", "0.012 (8 of 10)", "0.000 (8 of 10)"]
    assert rows["`alias` (-)"] == ["", "- (0 of 0)", "- (0 of 0)"]
    assert rows["`fluency` (+)"] == ["", "0.990", ""]  # the suite doesn't take it of a control
    assert rows["`neighbour`: sibling (worst)"] == [
        *("", "0.900 (0.490) (3 of 4)", "0.899 (0.500) (3 of 4)")
    ]
    assert rows["verdict: score (+)"] == ["", "0.900", "-"]
    assert rows["verdict: fluency (+)"] == ["", "0.000", "0.000"]


def test_what_misses_its_bar_is_bold_and_what_just_reaches_it_is_not(rows):
    assert rows["`forward`: worst p"] == ["≤ 0.005", "0.0049", "**0.0051**"]
    assert rows["`reverse` (-)"] == ["≤ 0.1", "0.100 (4 of 4)", "**1.000** (4 of 4)"]
    assert rows["`neighbour` (+)"] == ["≥ 0.9", "0.900 (8 of 9)", "**0.899** (8 of 9)"]
    assert rows["`neighbour`: kept, worst"] == ["≥ 0.5", "**0.490**", "0.500"]
    assert rows["`wikipedia`: KL elsewhere, mean"] == ["≤ 0.005", "0.005", "0.000"]
    assert rows["`wikipedia`: KL elsewhere, p99"] == ["≤ 0.05", "**0.051**", "0.000"]


def test_the_heading_says_of_what_it_is_and_no_text_ends_a_cell():
    first = markdown(REPORT).splitlines()[0]
    assert first == (
        "Saturn, Sherlock Holmes in tiny\\|model: suite quick, seed 3, plain text: texts."
    )
    odd = copy.deepcopy(REPORT)
    odd["verdicts"] = {"a|b\nc": VERDICT}
    assert "| measure | bar | a\\|b c |" in markdown(odd)


def test_what_was_not_measured_misses_no_bar():
    assert not any(bar.missed(None) for bar in BARS)
    assert all(bar.figure({}) is None and bar.figure({bar.path[0]: None}) is None for bar in BARS)
    assert {bar.measure for bar in BARS} <= {measure.name for measure in MEASURES}


@pytest.mark.parametrize("name", ["evaluation", "comparison"])
def test_a_folder_gets_its_table_beside_the_json_byte_for_byte(name, tmp_path):
    (tmp_path / f"{name}.json").write_text(json.dumps(REPORT))
    path = write_markdown(tmp_path)
    assert path == tmp_path / f"{name}.md"
    assert path.read_text(encoding="utf-8") == markdown(REPORT)
    first = path.read_bytes()
    assert write_markdown(tmp_path).read_bytes() == first and first.endswith(b"\n")


def test_a_folder_without_a_report_is_refused(tmp_path):
    with pytest.raises(TarsError, match=r"no evaluation\.json and no comparison\.json"):
        write_markdown(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"verdicts": 3}')
    assert "cannot read" in mistake("report", tmp_path)
    assert "goes beside its JSON" in mistake("report", tmp_path, "--out", tmp_path / "x.html")
