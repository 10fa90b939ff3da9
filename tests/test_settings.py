"""The method's settings: what is refused, by them and by the commands that take them."""

import pytest
import typer
from commands import run

from tars_lens.cli import app
from tars_lens.cli_compare import RIVALS
from tars_lens.errors import TarsError
from tars_lens.rivals.registry import RIVALS as REGISTERED
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


def test_the_help_names_every_rival():
    assert RIVALS.split(", ") == list(REGISTERED)
