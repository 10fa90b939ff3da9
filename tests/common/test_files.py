"""Files that are written whole, and where nothing is written."""

import os

import pytest

from tars_lens.common.errors import TarsError
from tars_lens.common.files import write_text


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "a" / "b.txt"
    for text in ("one", "two"):
        write_text(file, text)
        assert file.read_text() == text
    assert list(file.parent.iterdir()) == [file]


def test_a_name_that_is_too_long_is_one_message(tmp_path):
    with pytest.raises(TarsError, match="cannot write"):
        write_text(tmp_path / ("x" * 300), "text")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(TarsError, match="no regular file"):
            write_text(path, "text")
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
