"""The method's settings: what is refused, by them and by the commands that take them."""

import numpy as np
import pytest
import typer
from commands import mistake, run

from tars_lens.cli import app
from tars_lens.cli_compare import RIVALS
from tars_lens.errors import TarsError
from tars_lens.rivals.registry import RIVALS as REGISTERED
from tars_lens.searching import check_space
from tars_lens.settings import LAST_SEED, Settings

COMMANDS = typer.main.get_command(app).commands
SEEDED = sorted(n for n, c in COMMANDS.items() if any(p.name == "seed" for p in c.params))


@pytest.mark.parametrize("seed", [-1, LAST_SEED + 1])
def test_a_seed_out_of_range_is_refused_by_the_settings(seed):
    with pytest.raises(TarsError, match=f"a seed must be from 0 to {LAST_SEED}, got {seed}"):
        Settings(seed=seed)


def test_a_seed_of_either_end_is_taken():
    assert [Settings(seed=seed).seed for seed in (0, LAST_SEED)] == [0, LAST_SEED]


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
        ("safty = [1.0]", "no setting 'safty'; allowed: bounded_thresholds"),
    ],
)
def test_a_search_refuses_a_value_before_it_loads_a_model(tmp_path, line, message):
    (tmp_path / "space.toml").write_text(f"{line}\n")
    words = ["search", "saturn", "--model", "no/such", "--out", tmp_path / "out"]
    said = mistake(*words, "--space", tmp_path / "space.toml")
    assert said.startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_searchs_values_are_in_the_kind_of_their_settings():
    given = {"safety": [1, np.float64(2.5)], "paper_counts": [[1], (2, 5)], "edits": [None, 3]}
    found = check_space(given, Settings(name="paper"))
    assert found == {"safety": (1.0, 2.5), "paper_counts": ((1,), (2, 5)), "edits": (None, 3)}
    assert [type(value) for value in found["safety"]] == [float, float]


def test_the_help_names_every_rival():
    assert RIVALS.split(", ") == list(REGISTERED)
