"""`tars-lens evaluate` and `card`: what they write, what they exit with, what they refuse."""

import json
import shutil
from contextlib import contextmanager

import pandas as pd
import pytest
import torch
from commands import mistake, run
from safetensors.torch import load_file, save_file
from tiny_concept import world

from tars_lens.common import progress
from tars_lens.concept.card import Concept
from tars_lens.evaluation.markdown import markdown
from tars_lens.model.loading import load
from tars_lens.model.weights import Rows
from tars_lens.patch.patch import Patch

AGAIN = "run it again with --resume"


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("TARS_LENS_CACHE", str(world().cache))


@pytest.fixture(scope="module")
def patch(tmp_path_factory):
    """A patch file that was made for the tiny model."""
    lens = load(world().model, progress=False)
    generator = torch.Generator().manual_seed(1)
    rows = Rows(torch.tensor([3]), torch.randn(1, lens.d_model, generator=generator))
    made = Patch.build(lens, {(1, "out"): rows}, concepts=[Concept.load(world().card)])
    file = tmp_path_factory.mktemp("patch") / "first.safetensors"
    made.save(file)
    return file


def _evaluate(*words):
    place = world()
    return run("evaluate", "--model", place.model, "--corpus", place.corpus, *words)


def test_figures_tables_and_summary_are_written_and_a_threshold_is_an_exit_code(patch, tmp_path):
    code, said, err = _evaluate(patch, "--out", tmp_path, "--fail-under", "0.999")
    report = json.loads((tmp_path / "evaluation.json").read_text())
    score = report["verdicts"]["edited"]["score"]
    assert code == 1 and score < 0.999
    assert err.strip() == f"the verdict is {score:.3f}, below --fail-under 0.999"
    assert "blocked token" in said and "Known to the base: 3 of 3 forward" in said
    measures = pd.read_csv(tmp_path / "measures.csv").set_index("measure")
    assert measures.loc["forward", "edited"] == report["measures"]["forward"]["edited"]["value"]
    assert (tmp_path / "items" / "reverse-blocked_token.csv").is_file()
    assert "seconds" not in (tmp_path / "evaluation.json").read_text()
    table = (tmp_path / "evaluation.md").read_bytes()
    assert table.decode() == markdown(report)
    (tmp_path / "evaluation.md").unlink()
    assert run("report", tmp_path)[:2] == (0, f"Written: {tmp_path / 'evaluation.md'}\n")
    assert (tmp_path / "evaluation.md").read_bytes() == table
    assert "seconds" in pd.read_csv(tmp_path / "cost.csv").columns


def test_a_pair_of_checkpoints_needs_a_card_and_takes_no_patch(patch, tmp_path):
    place = world()
    given = ("--model", place.model, "--edited", place.model, "--out", tmp_path / "out")
    assert "Name its card" in mistake("evaluate", *given)
    assert "one of the two" in mistake("evaluate", patch, *given)
    code, said, _ = _evaluate(*given[2:], "--concept", place.card, "--fail-under", "0")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert code == 0 and found["verdicts"]["edited"]["score"] == 0.0  # nothing was erased
    assert list(found["verdicts"]) == ["edited", "blocked token"]


def test_mistakes_are_told_before_any_work(patch, tmp_path):
    assert "there is: full, quick" in mistake("evaluate", patch, "--suite", "fast").lower()
    assert "from 0 to 1" in mistake("evaluate", patch, "--fail-under", "7")
    assert "one of the two" in mistake("evaluate")


@contextmanager
def stopping_before(*, measure: str):
    """Progress that is stopped by Ctrl-C before a measure is taken."""

    def advance(what: str, done: int, total: int) -> None:
        if what == measure:
            raise KeyboardInterrupt

    yield advance


def test_ctrl_c_says_that_finished_measures_are_kept(patch, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(
        progress, "progress", lambda **_: stopping_before(measure="edited: reverse")
    )
    code, said, err = _evaluate(patch, "--out", out)
    assert (code, said) == (130, "")
    assert err == f"stopped; finished measures are kept in {out / 'parts'}: {AGAIN}.\n"
    assert list((out / "parts").glob("edited-forward-*.json"))


def test_ctrl_c_before_any_measure_leaves_nothing(patch, tmp_path, monkeypatch):
    monkeypatch.setattr(
        progress, "progress", lambda **_: stopping_before(measure="asking the base model")
    )
    expected = (130, "", "stopped; nothing was measured yet.\n")
    assert _evaluate(patch, "--out", tmp_path / "out") == expected
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_finite_is_one_message(tmp_path):
    place = world()
    broken = shutil.copytree(place.model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    out = ("--corpus", place.corpus, "--concept", place.card, "--out", tmp_path / "out")
    said = mistake("evaluate", "--model", place.model, "--edited", broken, *out)
    assert said.startswith("the model 'edited' gives no finite probability after 'w")
    said = mistake("evaluate", "--model", broken, "--edited", place.model, *out)
    assert said.startswith("the model 'base' gives no finite probability after 'w")
