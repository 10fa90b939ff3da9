"""The search for the smallest strength, against trying each."""

import pytest

from tars_lens.strengths import LARGEST, STRENGTHS, smallest_strength

_BOUNDED = [strength for strength in STRENGTHS if strength <= LARGEST]


def _search(enough, largest, like=None):
    tried = []

    def left(strength):
        tried.append(strength)
        return 0.0 if strength >= enough else 1.0 - strength / 1000

    return smallest_strength(left, 0.5, largest=largest, like=like), tried


@pytest.mark.parametrize("grid", [STRENGTHS, _BOUNDED])
def test_the_smallest_strength_that_reaches_the_goal_is_found_wherever_it_begins(grid):
    for like in (None, *grid):
        for enough in grid:
            found, tried = _search(enough, grid[-1], like)
            assert found == enough
            assert max(tried) <= grid[-1]


def test_a_search_that_begins_where_it_ends_takes_two_looks():
    for like in STRENGTHS[1:-1]:
        assert len(_search(like, STRENGTHS[-1], like)[1]) == 2
    assert len(_search(STRENGTHS[0], STRENGTHS[-1], STRENGTHS[0])[1]) == 1


@pytest.mark.parametrize("like", [None, STRENGTHS[3], STRENGTHS[-1]])
def test_where_none_is_enough_that_which_leaves_least_is_taken(like):
    assert _search(1e9, STRENGTHS[-1], like)[0] == STRENGTHS[-1]
    assert _search(1e9, LARGEST)[0] == LARGEST
