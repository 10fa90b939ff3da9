"""The command line as a user meets it: exit code, what is printed, what is complained of."""

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple
from unittest import mock

import pytest

from tars_lens.cli import main as cli


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def run(*words) -> Outcome:
    """Runs `tars-lens WORDS...` in this process, as in a pipe."""
    out, err = StringIO(), StringIO()
    with mock.patch.object(sys, "argv", ["tars-lens", *map(str, words)]):
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            cli()
    return Outcome(int(stopped.value.code or 0), out.getvalue(), err.getvalue())


def mistake(*words) -> str:
    """The one plain message that a user's mistake must give, with exit code 2."""
    code, out, err = run(*words)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    return err.removeprefix("error: ").strip()
