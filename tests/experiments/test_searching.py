"""A search over settings: its front, its rule, its journal, and what it never looks at."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from commands import mistake, run
from tiny_concept import world

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.experiments.searching import (
    OBJECTIVES,
    SPACE,
    blinded,
    check_space,
    dominates,
    pick,
    search_settings,
)
from tars_lens.method.settings import Settings, setting_value

pytest.importorskip("optuna", reason="optuna is an extra")

SMALL = {"said_reversal": (1.0, 2.0, 4.0), "write_ridge": (0.01, 0.1)}


def _known(settings, _tokens):
    """A landscape with a known front: a larger reversal erases more and costs more."""
    ridge = 0.0 if settings.write_ridge == 0.01 else 0.1
    return dict(
        zip(
            OBJECTIVES,
            (1 / settings.said_reversal**4 + ridge, 0.1 + ridge, settings.said_reversal / 100),
            strict=True,
        )
    )


def _search(path, trials, measure=_known, **options):
    given = {"space": SMALL, "base": Settings(goal=0.01), "kl_tokens": 64, **options}
    return search_settings(measure, path / "journal.log", trials=trials, **given)


def test_the_front_and_the_pick_are_those_of_the_whole_grid(tmp_path):
    found = _search(tmp_path, 40)
    assert len(found.trials) == 40
    grid = [Settings(said_reversal=s, write_ridge=r) for s, r in product(*SMALL.values())]
    values = {(s.said_reversal, s.write_ridge): tuple(_known(s, 0).values()) for s in grid}
    best = {k for k, v in values.items() if not any(dominates(o, v) for o in values.values())}
    assert best == {(1.0, 0.01), (2.0, 0.01), (4.0, 0.01)}
    front = set(zip(found.front["said_reversal"], found.front["write_ridge"], strict=True))
    assert front == best
    assert found.picked == Settings(goal=0.01, said_reversal=4.0, write_ridge=0.01)
    assert found.trials["picked"].sum() == 1
    assert found.front["kl_p99"].is_monotonic_increasing


def test_the_whole_measure_is_spared_where_the_cheap_one_settles_it(tmp_path):
    asked = []

    def measure(settings, tokens):
        asked.append(tokens)
        worse = 10.0 if settings.write_ridge == 0.1 else 1.0
        return dict(zip(OBJECTIVES, (0.1 * worse, 0.01 * worse, 0.1 * worse), strict=True))

    found = _search(tmp_path, 20, measure, space={"write_ridge": (0.01, 0.1)})
    states = found.trials["state"].value_counts().to_dict()
    assert states["pruned"] >= 1 and set(asked) == {8, 64}
    assert asked.count(8) == 20 and asked.count(64) == states["complete"]
    pruned = found.trials[found.trials["state"] == "pruned"]
    assert (pruned["write_ridge"] == 0.1).all() and not pruned["pareto"].any()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, TarsError("a prompt that doesn't lead")])
def test_an_interrupted_search_goes_on_where_it_was(tmp_path, stop):
    calls = []

    def measure(settings, tokens):
        calls.append(settings)
        if len(calls) == 6:
            raise stop
        return _known(settings, tokens)

    with pytest.raises(type(stop) if isinstance(stop, TarsError) else stop):
        _search(tmp_path, 10, measure)
    found = _search(tmp_path, 10)
    states = found.trials["state"].value_counts().to_dict()
    assert states.pop("failed") == 1 and sum(states.values()) == 10
    assert _search(tmp_path, 10).trials.equals(found.trials)  # nothing is left to do


def test_another_searchs_journal_is_refused(tmp_path):
    _search(tmp_path, 1)
    with pytest.raises(TarsError, match="is of another search .kl_tokens, space differ"):
        _search(tmp_path, 2, space={"said_reversal": (1.0,)}, kl_tokens=128)


_WORKER = """
import sys
sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/experiments"]  # the tests' folders
from pathlib import Path
from test_searching import _search
_search(Path(sys.argv[2]), 16)
"""


def test_several_workers_share_a_journal(tmp_path):
    command = [sys.executable, "-c", _WORKER, str(Path(__file__).parents[1]), str(tmp_path)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    found = _search(tmp_path, 16)
    assert 16 <= len(found.trials) <= 17  # both may begin the last one
    assert found.trials["trial"].is_unique
    assert not found.trials["state"].isin(["failed", "running"]).any()


def test_the_rule():
    values = {0: (0.5, 0.0, 0.0), 1: (0.001, 0.3, 0.001), 2: (0.001, 0.1, 0.2), 3: (0, 0.1, 0.3)}
    assert pick(values, 0.001) == 2
    assert pick({k: values[k] for k in (0, 1)}, 0.001) == 1
    assert pick({}, 0.001) is None


def test_the_reported_probes_are_never_there(tmp_path):
    concept = Concept.load(world().card)
    blind = blinded(concept)
    reported = [
        probe.prompt
        for kind in ("forward", "reverse", "neighbour", "multilingual")
        for probe in getattr(concept.probes, kind)
    ]
    assert reported and not any(prompt in json.dumps(blind.to_dict()) for prompt in reported)
    assert blind.probes == concept.validation and blind.validation.forward == ()
    with pytest.raises(TarsError, match="no .validation. with forward prompts"):
        blinded(replace(concept, validation=blind.validation))


def test_what_cannot_be_searched(tmp_path):
    check_space(SPACE, Settings())
    for space, message in [
        ({"safty": (1,)}, "no setting 'safty'; allowed"),
        ({"seed": (1, 2)}, "no setting 'seed'"),
        ({"gain": ()}, "has no values"),
        ({}, "nothing to search"),
    ]:
        with pytest.raises(TarsError, match=message):
            _search(tmp_path, 1, space=space)
    with pytest.raises(TarsError, match="at least 1 trial and 8 tokens"):
        _search(tmp_path, 0)


def test_the_pages_examples_name_settings_that_there_are():
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    blocks = [
        "".join(line[4:] + "\n" for line in part.splitlines())
        for part in re.findall(r"(?:^(?: {4}.*)?\n)+", page, flags=re.MULTILINE)
        if ".toml" in part
    ]
    spec, space = (tomllib.loads(block.split("tars-lens search")[0]) for block in blocks)
    assert {k: setting_value(k, v) for k, v in spec["settings"].items()}
    assert len(check_space(space, Settings())) == 2


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    space = tmp_path / "space.toml"
    space.write_text("paper_counts = [[1], [2]]\n")
    words = ["search", world().card, "--model", world().model, "--corpus", world().corpus]
    words += ["--trials", "2", "--kl-tokens", "256", "--out", tmp_path / "out", "--space", space]
    words += ["--method", "paper"]
    code, out, err = run(*words)
    assert code == 0, err
    assert "Picked: of the settings" in out
    picked = json.loads((tmp_path / "out" / "picked.json").read_text())
    assert picked["settings"]["paper_counts"] in ([1], [2])
    space.write_text("gain = 3.0\n")
    assert "'gain' must be a list" in mistake(*words)
