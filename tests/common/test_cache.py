"""Where the cache is, and what is said of a place that can't be one."""

from pathlib import Path

import pytest

from tars_lens.common.cache import cache_folder
from tars_lens.common.errors import TarsError


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("TARS_LENS_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("TARS_LENS_CACHE")
    assert "tars_lens" in str(cache_folder())


@pytest.mark.parametrize("given", ["~no-such-user/x", "x" * 5000])
def test_a_cache_that_is_no_path_is_refused(monkeypatch, given):
    monkeypatch.setenv("TARS_LENS_CACHE", given)
    with pytest.raises(TarsError, match="TARS_LENS_CACHE is no folder: .*[^.]. Set it to a folder"):
        cache_folder()
