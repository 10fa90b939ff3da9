"""The method's settings: what is refused, by them and by the commands that take them."""

import math
import re

import numpy as np
import pytest
import typer
from commands import mistake, run

from tars_lens.cli.app import app
from tars_lens.cli.compare import BASELINES
from tars_lens.common.errors import TarsError
from tars_lens.experiments.baselines.registry import BASELINES as REGISTERED
from tars_lens.experiments.searching import check_space
from tars_lens.method.settings import LAST_SEED, Settings

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
        ({"write_ridge": -1.0}, "write_ridge must be above 0, got -1.0."),
        ({"gain": 1e-320}, "gain must be above 0, got 1e-320."),
        ({"reader_ridge": 0.0}, "reader_ridge must be above 0, got 0.0."),
        ({"goal": math.nan}, "goal must be above 0, got nan."),
        ({"samples": 0}, "samples must be above 0, got 0."),
        ({"neighbour_weight": -1.0}, "neighbour_weight must be at least 0, got -1.0."),
        ({"sigma": math.inf}, "sigma must be at least 0, got inf."),
        ({"said_threshold": 1.0}, "said_threshold must be between 0 and 1, got 1.0."),
        ({"read_threshold": 0.0}, "read_threshold must be between 0 and 1, got 0.0."),
        ({"host_share": 1.5}, "host_share must be from 0 to below 1, got 1.5."),
        ({"name_depths": ()}, "name_depths must have one value at least."),
        ({"depths": (0.1, 1.5)}, "depths must be from 0 to 1, got 1.5."),
        ({"named_depth": -0.1}, "named_depth must be from 0 to below 1, got -0.1."),
        ({"paper_counts": (5, 0)}, "paper_counts must be at least 1, got 0."),
        ({"edits": 0}, "--edits must be at least 1, got 0."),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(TarsError, match=re.escape(message)):
        Settings(**given)


def test_neurons_sit_at_shares_of_the_depth_and_always_in_the_last_layer():
    settings = Settings(depths=(0.5, 0.51, 0.9), name_depths=(0.0, 0.1, 0.2), named_depth=0.4)
    assert settings.suppression_layers(30) == (15, 27, 29)  # 15 and 15.3 are one layer
    assert settings.suppression_layers(1) == (0,)
    assert settings.suppression_layers(2) == (1,)
    assert settings.name_layers(30) == (1, 3, 6)  # the first layer reads one token at a time
    assert settings.named_layer(30) == 12
    assert settings.named_layer(4) == 2  # behind every layer where the name may be stopped
    assert settings.name_layers(1) == (0,) and settings.named_layer(1) == 0
    assert Settings(depths=()).suppression_layers(30) == (29,)


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
        ('reader_ridge = ["high"]', "setting 'reader_ridge' must be like 1.0, got 'high'."),
        ("gain = [64.0, true]", "setting 'gain' must be like 64.0, got True."),
        ("edits = [2.5]", "setting 'edits' must be like None, got 2.5."),
        ("paper_counts = [3]", "setting 'paper_counts' must be like (1, 2, 5, 10, 20), got 3."),
        ("said_threshold = [0.5, 2]", "said_threshold must be between 0 and 1, got 2.0."),
        ("name_depths = [[0.1], []]", "name_depths must have one value at least."),
        ("saftey = [1.0]", "no setting 'saftey'; allowed: bounded_strength, constant_ridge"),
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
    for text in ("gain = [", f"samples = [{'1' * 5000}]", "a = " + "[" * 100_000):
        space.write_text(text)
        assert "cannot read" in mistake("search", "saturn", "--space", space)


def test_a_searchs_values_are_in_the_kind_of_their_settings():
    given = {"gain": [1, np.float64(2.5)], "paper_counts": [[1], (2, 5)], "edits": [None, 3]}
    found = check_space(given, Settings(name="paper"))
    assert found == {"gain": (1.0, 2.5), "paper_counts": ((1,), (2, 5)), "edits": (None, 3)}
    assert [type(value) for value in found["gain"]] == [float, float]


def test_the_help_names_every_baseline():
    assert BASELINES.split(", ") == list(REGISTERED)
