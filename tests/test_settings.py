"""The method's settings: what is refused, by them and by the commands that take them."""

import math
import re

import numpy as np
import pytest
import typer
from commands import mistake, run

from tars_lens.cli import app
from tars_lens.cli_compare import RIVALS
from tars_lens.errors import TarsError
from tars_lens.method.settings import LAST_SEED, Settings
from tars_lens.rivals.registry import RIVALS as REGISTERED
from tars_lens.searching import check_space

COMMANDS = typer.main.get_command(app).commands
SEEDED = sorted(n for n, c in COMMANDS.items() if any(p.name == "seed" for p in c.params))


@pytest.mark.parametrize("seed", [-1, LAST_SEED + 1])
def test_a_seed_out_of_range_is_refused_by_the_settings(seed):
    with pytest.raises(TarsError, match=f"a seed must be from 0 to {LAST_SEED}, got {seed}"):
        Settings(seed=seed)


def test_a_seed_of_either_end_is_taken():
    assert [Settings(seed=seed).seed for seed in (0, LAST_SEED)] == [0, LAST_SEED]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_kl": -1.0}, "max_kl must be above 0, got -1.0."),
        ({"max_kl": 1e-320}, "max_kl must be at least 2.2250738585072014e-308, got 1e-320."),
        ({"forward_ridge": 0.0}, "forward_ridge must be above 0, got 0.0."),
        ({"goal": math.nan}, "goal must be above 0, got nan."),
        ({"samples": 0}, "samples must be above 0, got 0."),
        ({"neighbour_weight": -1.0}, "neighbour_weight must be at least 0, got -1.0."),
        ({"sigma": math.inf}, "sigma must be at least 0, got inf."),
        ({"forward_thresholds": (0.1, math.inf)}, "forward_thresholds must be numbers, got inf."),
        ({"reverse_thresholds": ()}, "reverse_thresholds must have one value at least."),
        ({"reverse_depths": (0.1, 1.5)}, "reverse_depths must be from 0 to 1, got 1.5."),
        ({"named_depth": -0.1}, "named_depth must be from 0 to 1, got -0.1."),
        ({"readable_depths": (0.8, 0.6)}, "readable_depths must be a first depth and a last"),
        ({"paper_counts": (5, 0)}, "paper_counts must be at least 1, got 0."),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(TarsError, match=re.escape(message)):
        Settings(**given)


def test_the_settings_of_the_ablation_are_taken():
    bare = Settings(neighbour_weight=0.0, refine_steps=0, bounded_thresholds=(), unread=0.0)
    assert (bare.refine_steps, bare.late_thresholds(True)) == (0, (0.15, 0.25))


def test_the_commands_with_a_seed_are_these():
    assert SEEDED == ["chat", "compare", "erase", "evaluate", "inspect", "search"]


@pytest.mark.parametrize("seed", [-1, LAST_SEED + 1])
@pytest.mark.parametrize("command", SEEDED)
def test_a_seed_out_of_range_is_refused_by_every_command(command, seed):
    code, out, err = run(command, "nothing", "--model", "no/such", "--seed", seed)
    assert (code, out) == (2, "")
    assert "Invalid value for '--seed'" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('forward_ridge = ["high"]', "setting 'forward_ridge' must be like 0.2, got 'high'."),
        ("leaning = [true, 1]", "setting 'leaning' must be like True, got 1."),
        ("edits = [2.5]", "setting 'edits' must be like None, got 2.5."),
        ("paper_counts = [3]", "setting 'paper_counts' must be like (1, 2, 5, 10, 20), got 3."),
        ("keep_neighbours = [0.5, 2]", "--keep-neighbours must be a share between 0 and 1, got 2"),
        ("readable_depths = [[0.6, 0.7, 0.8]]", "setting 'readable_depths' must be like (0.6, 0.8"),
        ("reverse_depths = [[0.1], []]", "reverse_depths must have one value at least."),
        ("safty = [1.0]", "no setting 'safty'; allowed: bounded_thresholds"),
    ],
)
def test_a_search_refuses_a_value_before_it_loads_a_model(tmp_path, line, message):
    (tmp_path / "space.toml").write_text(f"{line}\n")
    words = ["search", "saturn", "--model", "no/such", "--out", tmp_path / "out"]
    said = mistake(*words, "--space", tmp_path / "space.toml")
    assert said.startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_space_that_is_no_toml_is_refused(tmp_path):
    space = tmp_path / "space.toml"
    for text in ("max_kl = [", f"samples = [{'1' * 5000}]", "a = " + "[" * 100_000):
        space.write_text(text)
        assert "cannot read" in mistake("search", "saturn", "--space", space)


def test_a_searchs_values_are_in_the_kind_of_their_settings():
    given = {"safety": [1, np.float64(2.5)], "paper_counts": [[1], (2, 5)], "edits": [None, 3]}
    found = check_space(given, Settings(name="paper"))
    assert found == {"safety": (1.0, 2.5), "paper_counts": ((1,), (2, 5)), "edits": (None, 3)}
    assert [type(value) for value in found["safety"]] == [float, float]


def test_the_help_names_every_rival():
    assert RIVALS.split(", ") == list(REGISTERED)
