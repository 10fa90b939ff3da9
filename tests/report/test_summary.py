"""The report as a person reads it."""

import copy
from io import StringIO

import pytest
from rich.console import Console

from tars_lens.report.summary import notes, print_summary

REPORT = {
    "schema": 1,
    "model": {"name": "tiny", "sha256": "0" * 64, "layers": 3, "d_model": 16, "d_mlp": 24},
    "method": {"name": "tars", "seed": 7},
    "concepts": [
        {
            "name": "Saturn [bold]",
            "edits": [{"layer": 2, "role": "out", "neuron": 5, "cosine": 0.2}] * 3,
            "probes": {
                "forward": {
                    **{"n": 8, "known": 6, "before_mean": 0.432, "after_mean": 0.001},
                    **{"after_max": 0.0042, "erased": 1.0, "said_before": 6, "said_after": 0},
                },
                "reverse": {
                    **{"n": 4, "known": 3, "set_phrases": 1, "kept": 0.057},
                    **{"worst": "Titan", "worst_kept": 0.1, "said_before": 3, "said_after": 2},
                    **{"said_substitute": 1, "said_after_own": 1},
                },
                "neighbour": {
                    **{"n": 6, "known": 5, "kept": 0.931},
                    **{"worst": "[red]Jupiter", "worst_kept": 0.812},
                    **{"said_before": 4, "said_after": 3},
                },
                "multilingual": {
                    **{"n": 6, "known": 0, "kept": None, "languages": {}},
                    **{"worst": None, "worst_kept": None, "said_before": 0, "said_after": 0},
                },
            },
            "seconds": 3.14,
        }
    ],
    "kl": {
        **{"corpus": "texts [dim]", "tokens": 25600},
        **{"median": 0.0001, "mean": 0.0023, "p95": 0.01, "p99": 0.05, "max": 1.5},
        "elsewhere": {
            **{"tokens": 24320, "median": 0.0001, "mean": 0.0009},
            **{"p95": 0.008, "p99": 0.02, "max": 0.7},
            **{"unchanged": 0.0, "unchanged_from_silenced": 0.99999, "hosts_kl_mean": 0.00012},
        },
    },
    "verified": {
        **{"rows_changed": 3, "rows_planned": 3},
        **{"others_identical": True, "restored_identical": True},
    },
    "cost": {"seconds": 12.4, "peak_rss_bytes": 1_230_000_000},
}


@pytest.fixture
def report():
    return copy.deepcopy(REPORT)


def printed(report, width=160, **options) -> str:
    stream = StringIO()
    print_summary(report, Console(file=stream, width=width, highlight=False, **options))
    return stream.getvalue()


def cells(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if start in line and line.startswith("│")]
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_every_figure_stands_in_its_place(report):
    text = printed(report)
    assert "removed from tiny (3 layers, d_model 16), method tars, seed 7" in text
    forward = ["Saturn [bold]", "forward", "6/8", "p 0.43 > 0.00", "p 0.0042", "6 > 0"]
    assert cells(text, "forward") == forward
    reverse = ["3 vectors", "reverse", "3/4", "0.06", "Titan 0.10", "3 > 2 (1 anyway)"]
    assert cells(text, "reverse") == reverse
    assert cells(text, "languages") == ["3.1 s", "languages", "0/6", "-", "-", "-"]
    neighbours = ["", "neighbours", "5/6", "0.93", "[red]Jupiter 0.81", "4 > 3"]
    assert cells(text, "neighbours") == neighbours
    whole = ["all", "25,600", "0.0001", "0.0023", "0.0100", "0.0500", "1.5000"]
    assert cells(text, "│ all") == whole
    assert "Where none is named, 0.00% of the predictions are the base's to the bit" in text
    assert "99.99% those of the base with the edited neurons silenced" in text
    assert "moves them by 0.0001 nats on average" in text
    assert cells(text, "naming no")[1:4] == ["24,320", "0.0001", "0.0009"]
    assert "texts [dim]" in text
    assert "Verified: 3 of 3 planned weight vectors changed" in text
    assert "12 s, peak memory 1.23 GB." in text
    assert notes(report) == []


def test_a_pipe_gets_plain_text_and_a_terminal_gets_colour(report):
    assert "\x1b" not in printed(report)
    assert "\x1b[1m" in printed(report, force_terminal=True, color_system="standard")


@pytest.mark.parametrize("key", ["others_identical", "restored_identical"])
def test_what_is_not_proven_is_said_loudly(report, key):
    report["verified"][key] = False
    text = printed(report)
    assert "NOT VERIFIED: 3 of 3" in text and ": NO" in text
    report["verified"][key] = True
    report["verified"]["rows_changed"] = 2
    assert "NOT VERIFIED: 2 of 3" in printed(report)


def test_what_is_not_known_is_no_success(report):
    forward = report["concepts"][0]["probes"]["forward"]
    forward.update(known=0, before_mean=None, after_mean=None, after_max=None, erased=None)
    report["concepts"][0]["probes"]["neighbour"].update(known=0, kept=None, worst=None)
    text = printed(report)
    assert "! Saturn [bold]: the model knows none of the 8 forward probes." in text
    assert cells(text, "forward  ")[2:] == ["0/8", "p - > -", "p -", "-"]
    assert cells(text, "neighbours")[2:] == ["0/6", "-", "-", "-"]


def test_nothing_is_cut_off_at_a_hundred_columns(report):
    concept = report["concepts"][0]
    concept["name"] = "Sherlock Holmes"
    concept["probes"]["neighbour"]["worst"] = "Hercule Poirot"
    lines = printed(report, width=100, force_terminal=True, color_system=None).splitlines()
    assert "…" not in "".join(lines) and max(map(len, lines)) <= 100
    assert len([line for line in lines if line.startswith("│")]) == 4 + 2


def test_a_report_of_an_earlier_version_is_shown_without_what_is_said(report):
    for figures in report["concepts"][0]["probes"].values():
        for key in [key for key in figures if key.startswith("said_")]:
            del figures[key]
    for key in ("unchanged", "unchanged_from_silenced", "hosts_kl_mean"):
        del report["kl"]["elsewhere"][key]
    text = printed(report)
    assert cells(text, "reverse")[-1] == "-" and "to the bit" not in text


def test_what_is_left_is_said_on_one_line(report):
    concept = report["concepts"][0]
    concept["name"] = "A concept of a rather long name, longer than a line of this terminal can be"
    concept["probes"]["forward"]["after_max"] = 0.0061
    lines = [line for line in printed(report).splitlines() if line.startswith("!")]
    assert lines == notes(report)
    assert "not fully removed; one forward probe still gives it p = 0.0061." in lines[0]
    concept["probes"]["forward"]["after_max"] = 0.005
    assert notes(report) == []


def test_damage_that_was_not_measured_is_no_damage_of_zero(report):
    report["kl"] = None
    assert "Damage on plain text was not measured (--kl-tokens 0)." in printed(report)
