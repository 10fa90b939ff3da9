"""Every kind of source, and what is said of those that can't be read."""

import bz2
import hashlib
import json
import sys
import types

import pytest
from small_dump import page, write_dump
from small_gguf import serve_file

from tars_lens.common.errors import TarsError
from tars_lens.text import corpus as module
from tars_lens.text.corpus import MIN_CHARACTERS, load_corpus

LONG = "Saturn has rings. " * 60
SHORT = "Too short."


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["dump.xml", "enwiki.xml.bz2"])
def test_a_dump_gives_its_longer_articles(tmp_path, name):
    dump = write_dump(tmp_path / name, page("a", LONG), page("b", SHORT), page("c", f"C {LONG}"))
    found = load_corpus(dump)
    assert found.name == name
    assert found.documents == (LONG.strip(), f"C {LONG}".strip())
    assert len(SHORT) < MIN_CHARACTERS <= len(LONG.strip())


def test_a_folder_gives_its_text_files_in_the_order_of_their_names(tmp_path):
    folder = tmp_path / "texts"
    for name, text in {"b.txt": "two", "a/z.md": "one", "c.csv": "no", "d.txt": " \n"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    assert load_corpus(folder).documents == ("one", "two")
    assert load_corpus(str(folder)).name == "texts"


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "one.txt").write_text("naïve\n\nтекст")
    assert load_corpus(tmp_path / "one.txt").documents == ("naïve\n\nтекст",)


def test_each_line_of_jsonl_is_a_document(tmp_path):
    lines = [{"text": "one", "id": 3}, {"text": "  "}, {"text": "two\nlines"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert load_corpus(tmp_path / "x.jsonl").documents == ("one", "two\nlines")


def test_half_an_emoji_in_jsonl_is_replaced(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "cut \\ud83d"}\n{"text": "whole \\ud83e\\ude90"}\n')
    assert load_corpus(tmp_path / "x.jsonl").documents == ("cut \ufffd", "whole 🪐")


def test_a_mark_before_jsonl_is_no_part_of_it(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "one"}\n', encoding="utf-8-sig")
    assert load_corpus(tmp_path / "x.jsonl").documents == ("one",)


def test_a_name_that_is_not_utf_8_can_be_written_in_a_report(tmp_path):
    folder = tmp_path / "texts\udcff"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    assert load_corpus(folder).name == "texts\ufffd"


def test_the_hash_is_over_the_documents_and_where_they_end(tmp_path):
    def corpus_of(*documents: str):
        lines = "\n".join(json.dumps({"text": text}) for text in documents)
        (tmp_path / "x.jsonl").write_text(lines)
        return load_corpus(tmp_path / "x.jsonl")

    assert corpus_of("a", "é").sha256 == hashlib.sha256("a\0é\0".encode()).hexdigest()
    assert corpus_of("ab", "c").sha256 != corpus_of("a", "bc").sha256


def test_a_limit_stops_the_reading(tmp_path):
    good, bad = json.dumps({"text": "fine"}), "no JSON"
    (tmp_path / "x.jsonl").write_text(f"{good}\n{good}\n{bad}\n")
    assert load_corpus(tmp_path / "x.jsonl", limit=2).documents == ("fine", "fine")
    with pytest.raises(TarsError, match="line 3 is not JSON"):
        load_corpus(tmp_path / "x.jsonl", limit=None)
    with pytest.raises(TarsError, match="at least 1 document, got a limit of 0"):
        load_corpus(tmp_path / "x.jsonl", limit=0)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b'{"text": 3}', "x.jsonl', line 1 must be an object with the text"),
        ("x.jsonl", b'\n\n["a"]', "line 3 must be an object"),
        ("x.jsonl", b'{"text": "\xff"}', "as UTF-8 text"),
        ("x.txt", b"\xff\xfe", "as UTF-8 text"),
        ("x.txt", b" \n ", "'x.txt' holds no text that can be used"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl', line 1 is not JSON"),
        ("x.jsonl", b"", "'x.jsonl' holds no text that can be used"),
        ("x.csv", b"a,b", "is no corpus that can be read. Give a MediaWiki dump"),
        ("x.xml.bz2", bz2.compress(b"<mediawiki></mediawiki>"), "holds no text"),
        ("x.xml.bz2", bz2.compress(b"<mediawiki>" + b"<page/>" * 9)[:-9], "to its end"),
        ("x.xml", b"<mediawiki><page>", "to its end"),
        ("x.xml", b'<?xml version="1.0" encoding="utf-7"?><mediawiki/>', "to its end"),
    ],
)
def test_what_cannot_be_read_is_one_message(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TarsError) as caught:
        load_corpus(tmp_path / name)
    assert said in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_one_message(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TarsError, match="'empty' holds no text"):
        load_corpus(tmp_path / "empty")
    with pytest.raises(TarsError, match="there is no corpus .*missing.*datasets:NAME"):
        load_corpus(tmp_path / "missing")
    with pytest.raises(TarsError, match="cannot look for 'xxx"):
        load_corpus("x" * 5000)


# --- datasets ----------------------------------------------------------------------------------


def fake_datasets(monkeypatch, rows):
    """Puts a library in the place of datasets, and returns what it is asked for."""
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        if isinstance(rows, Exception):
            raise rows
        return iter(rows)

    library = types.ModuleType("datasets")
    library.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", library)
    return asked


def test_a_dataset_is_streamed(monkeypatch):
    def endless():
        while True:
            yield {"text": "fine", "id": 1}
            yield {"text": " "}

    asked = fake_datasets(monkeypatch, endless())
    found = load_corpus("datasets:owner/name", limit=3)
    assert found.documents == ("fine",) * 3
    assert asked == [("owner/name", {"split": "train", "streaming": True})]
    load_corpus("datasets:owner/name:validation", limit=1)
    assert asked[-1][1]["split"] == "validation"


def test_a_dataset_that_cannot_be_read_is_one_message(monkeypatch):
    fake_datasets(monkeypatch, [{"content": "a", "id": 1}])
    with pytest.raises(TarsError, match="has no column 'text'; it has content, id"):
        load_corpus("datasets:x")
    fake_datasets(monkeypatch, ConnectionError("no such host\nand a long explanation"))
    with pytest.raises(TarsError, match="cannot load 'datasets:x': no such host$"):
        load_corpus("datasets:x")
    fake_datasets(monkeypatch, [])
    with pytest.raises(TarsError, match="'datasets:x' holds no text"):
        load_corpus("datasets:x")


def test_a_missing_library_is_named_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TarsError, match=r"needs the datasets library: pip install 'tars-lens\[dat"):
        load_corpus("datasets:x")


# --- the built-in sample -----------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A dump in place of the pinned one, which pip finds in a folder."""
    dump = write_dump(tmp_path / "served.xml.bz2", page("a", LONG), page("b", SHORT))
    content = dump.read_bytes()
    (part,) = serve_file(monkeypatch, tmp_path / "index", content)
    monkeypatch.setattr(module, "WIKIPEDIA", part)
    monkeypatch.setattr(module, "WIKIPEDIA_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(module, "WIKIPEDIA_BYTES", len(content))
    return tmp_path / "index"


def test_the_sample_is_fetched_and_read_once(served, cache, monkeypatch):
    told = []
    found = load_corpus(advance=lambda *row: told.append(row))
    assert found.documents == (LONG.strip(),)
    assert told[-1] == ("reading Wikipedia, once", 1, 1)

    def never(*_args, **_options):
        raise AssertionError("fetched again")

    monkeypatch.setattr(module, "fetch", never)
    assert load_corpus() == found
    (folder,) = (cache / "corpora").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "text.jsonl"]


def test_a_sample_with_another_hash_is_refused_and_leaves_nothing(served, cache, monkeypatch):
    monkeypatch.setattr(module, "WIKIPEDIA_SHA256", "0" * 64)
    with pytest.raises(TarsError, match="has the SHA-256"):
        load_corpus(progress=False)
    assert list((cache / "corpora").iterdir()) == []


def test_a_damaged_sample_is_made_again(served, cache):
    found = load_corpus(progress=False)
    (file,) = (cache / "corpora").glob("*/text.jsonl")
    file.write_bytes(file.read_bytes()[:-20])
    assert load_corpus(progress=False) == found


@pytest.mark.real
def test_the_real_sample_has_a_hundred_articles_of_prose():
    found = load_corpus(progress=False)
    assert len(found.documents) >= 100
    assert found.documents[0].startswith("Anarchism is")
    left = [mark for text in found.documents for mark in ("{{", "[[", "<ref") if mark in text]
    assert not left
