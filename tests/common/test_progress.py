"""Bars on a terminal, nothing in a pipe."""

import pytest
from rich.console import Console

from tars_lens.common import progress as module


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_done_is_shown_as_it_is_on_a_terminal_alone(terminal, monkeypatch):
    console = Console(force_terminal=terminal, width=120, record=True)
    monkeypatch.setattr(module, "Console", lambda **_: console)
    with module.progress() as advance:
        advance("removing Foo [/bar] from q[/red]/m", 1, 2)
    said = console.export_text()
    assert ("removing Foo [/bar] from q[/red]/m" in said) == terminal
    assert terminal or not said
