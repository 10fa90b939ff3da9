"""`tars-lens compare`: one table of all methods, apart from what they cost, resumed bit by bit."""

import json
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from commands import mistake, run
from tiny_concept import world

from tars_lens.common import progress
from tars_lens.common.errors import TarsError
from tars_lens.evaluation import suites
from tars_lens.report.figures import pareto
from tars_lens.report.figures.rivals import front
from tars_lens.report.style import figure

FEW = suites.Suite(
    "quick",
    windows=3,
    control_windows=2,
    near_windows=1,
    facts=1,
    prompts=1,
    new_tokens=4,
    paragraphs=2,
    resamples=20,
)
METHODS = ["tars", "paper", "rank_one", "ablation", "blocked token", "untouched"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("TARS_LENS_CACHE", str(world().cache))
    monkeypatch.setattr(suites, "QUICK", FEW)


def _compare(*words):
    place = world()
    given = (place.card, "--model", place.model, "--corpus", place.corpus)
    return run("compare", *given, "--baselines", "rank_one, ablation", *words)


def test_methods_stand_in_one_table_and_a_resumed_run_gives_the_same_bytes(tmp_path):
    code, said, err = _compare("--out", tmp_path)
    assert code == 0, err
    names = ("comparison.json", "comparison.md", "comparison.csv", "duels.csv")
    first = {name: (tmp_path / name).read_bytes() for name in names}
    table = pd.read_csv(tmp_path / "comparison.csv").set_index("method")
    assert list(table.index) == METHODS
    report = json.loads(first["comparison.json"])
    assert list(report["verdicts"]) == METHODS
    for measure in report["measures"]:
        assert measure in table.columns
    # what the examiner knows beforehand
    assert table.loc["untouched", "wikipedia"] == 0 and table.loc["untouched", "forward"] == 1
    assert table.loc["untouched", "score"] == 0
    assert table.loc["blocked token", "forward"] < 0.05
    assert table.loc["blocked token", "reverse"] > 0.9
    figures = report["measures"]["wikipedia"]
    assert len({figures[method]["tokens"] for method in METHODS}) == 1  # the same text for all
    assert b"seconds" not in first["comparison.json"]
    rows = first["comparison.md"].decode().splitlines()
    assert f"| measure | bar | {' | '.join(METHODS)} |" in rows
    worst = next(row for row in rows if row.startswith("| `forward`: worst p | ≤ 0.005 |"))
    assert worst.split(" | ")[-1].startswith("**")  # the untouched model misses it
    cost = pd.read_csv(tmp_path / "cost.csv")
    assert list(cost["method"]) == METHODS and (cost["peak_rss_bytes"] > 1e7).all()
    assert "tars against blocked token: better on" in said and "pareto.png" in said
    assert (tmp_path / "pareto.pdf").stat().st_size > 1000

    assert _compare("--out", tmp_path, "--resume", "--quiet")[:2] == (0, "")
    assert {name: (tmp_path / name).read_bytes() for name in names} == first
    assert pd.read_csv(tmp_path / "cost.csv").empty  # nothing had to be made again

    duels = pd.read_csv(tmp_path / "duels.csv")
    row = duels[(duels["measure"] == "wikipedia") & (duels["other"] == "untouched")].iloc[0]
    assert row["outcome"] == "lost" and row["ours"] == pytest.approx(table.loc["tars", "wikipedia"])
    row = duels[(duels["measure"] == "forward") & (duels["other"] == "untouched")].iloc[0]
    assert row["outcome"] == "won"


def test_mistakes_are_told_before_any_work():
    assert "unknown baseline 'rom'" in mistake("compare", "saturn", "--baselines", "rom")
    assert "there is: full, quick" in mistake("compare", "saturn", "--suite", "fast").lower()
    assert "unknown concept 'satrun'" in mistake("compare", "satrun", "--baselines", "rmu")


def _methods(*rows):
    return pd.DataFrame(rows, columns=["method", "erasure", "wikipedia"])


def test_the_front_holds_those_that_none_betters_in_both():
    rows = _methods(
        ("untouched", 0.0, 0.0),
        ("tars", 0.8, 0.01),
        ("paper", 0.7, 0.02),
        ("rmu", 0.9, 0.5),
        ("npo", 0.9, 0.6),
        ("leace", 0.1, 0.001),
        ("blocked token", 1.0, 0.0001),
    ).rename(columns={"wikipedia": "damage"})
    assert list(front(rows)["method"]) == ["leace", "tars", "rmu"]


def test_the_pareto_figure_shows_every_method_that_was_measured():
    made, axes = figure(1)
    pareto(_methods(("tars", 0.8, 0.01), ("$x_y$", 0.5, 0.0), ("rmu", np.nan, 1.0)), axes)
    said = [text.get_text() for text in axes.texts]
    assert said == ["tars", r"\$x y\$"]
    made.canvas.draw()
    with pytest.raises(TarsError, match="lacks neighbour"):
        pareto(_methods(("tars", 0.8, 0.01)), figure(1)[1], damage="neighbour")
    with pytest.raises(TarsError, match="lacks erasure"):
        pareto(pd.DataFrame({"method": [], "wikipedia": []}), figure(1)[1])


def test_neighbours_are_the_other_damage():
    rows = _methods(("tars", 0.8, 0.9), ("npo", 0.9, 0.0), ("ablation", 0.7, 0.5))
    axes = figure(1)[1]
    pareto(rows.rename(columns={"wikipedia": "neighbour"}), axes, damage="neighbour")
    line, *marks = axes.lines
    lost = [-np.log(0.9), -np.log(1e-12), -np.log(0.5)]
    assert [mark.get_xdata()[0] for mark in marks] == pytest.approx(lost)
    assert line.get_xdata() == pytest.approx(lost[:2])  # ablation is bettered in both by tars


def test_ctrl_c_says_that_finished_measures_are_kept(tmp_path, monkeypatch):
    def advance(what: str, done: int, total: int) -> None:
        if what == "tars: reverse":
            raise KeyboardInterrupt

    monkeypatch.setattr(progress, "progress", lambda **_: nullcontext(advance))
    code, said, err = _compare("--out", tmp_path)
    assert (code, said) == (130, "")
    kept = f"finished measures are kept in {tmp_path / 'parts'}"
    assert err == f"stopped; {kept}: run it again with --resume.\n"
    assert list((tmp_path / "parts").glob("tars-forward-*.json"))
