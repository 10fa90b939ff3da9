"""Prose out of a MediaWiki XML dump, read as a stream."""

import bz2
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mwparserfromhell
from mwparserfromhell import nodes

from tars_lens.common.errors import TarsError, reason

logger = logging.getLogger(__name__)

_REMEDY = "Give a whole dump as dumps.wikimedia.org has it (pages-articles, .xml or .xml.bz2)."

_VISIBLE = {"abbr", "b", "big", "blockquote", "cite", "em", "i", "p", "q", "s", "small", "span"}
_VISIBLE |= {"strong", "sub", "sup", "u", "var"}
_BEFORE = re.compile(
    r"<!--.*?-->|<ref\b[^<>]*/>|<ref\b[^<>]*>.*?</ref\s*>", re.DOTALL | re.IGNORECASE
)
"""Notes and references: markup left open inside one would hide the text that follows."""

_HIDDEN_LINK = re.compile(
    r"\s*:?(?:file|image|media|category|simple|[a-z]{2,3}(?:-[a-z-]+)?)\s*:", re.IGNORECASE
)
_TIDY = (
    (re.compile(r"'{2,}|\[\[|\]\]|\{\{|\}\}"), ""),  # markup that was never closed
    (re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE), ""),
    (re.compile(r"[ \t\xa0]+"), " "),
    (re.compile(r"\((?:\s*[;,:])+\s*"), "("),  # a template stood first, last or alone in brackets
    (re.compile(r"(?:\s*[;,:])+\s*\)"), ")"),
    (re.compile(r"\s?\(\s*\)"), ""),
    (re.compile(r" +([,.;:])(?=\s)"), r"\1"),
)
_TABLE_ROW = ("{|", "|", "!")  # of a table that was never closed
_SHOWN = 40


def articles(dump: Path) -> Iterator[str]:
    """The prose of every article of a dump, in the dump's order.

    Articles are pages of namespace 0 that don't redirect. Templates, references, tables, headings,
    files and categories are left out; paragraphs and list items are lines. A page whose markup is
    nested too deep to be read is left out with a warning.

    Raises:
        TarsError: Not a MediaWiki dump, or one that is cut short.
    """
    opener = bz2.open if dump.suffix == ".bz2" else open
    try:
        with opener(dump, "rb") as stream:
            for wikitext in _pages(stream, dump):
                try:
                    text = prose(wikitext)
                except RecursionError:  # one vandalised page is no reason to refuse a whole dump
                    logger.warning(
                        "%r: a page is left out, its markup is nested too deep: it begins with %r.",
                        *(str(dump), wikitext[:_SHOWN]),
                    )
                    continue
                yield text
    except TarsError:
        raise
    except (OSError, EOFError, LookupError, ValueError, ElementTree.ParseError) as error:
        raise TarsError(
            f"cannot read {str(dump)!r} to its end: {reason(error)}. {_REMEDY}"
        ) from error


def prose(wikitext: str) -> str:
    """The paragraphs and list items of a page, one a line."""
    text = _plain(mwparserfromhell.parse(_BEFORE.sub("", wikitext)))
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    lines = (line.strip() for line in text.splitlines())
    kept = (line for line in lines if not line.startswith(_TABLE_ROW))
    return "\n".join(line for line in kept if any(map(str.isalnum, line)))


def _pages(stream: Any, dump: Path) -> Iterator[str]:
    root = None
    for event, element in ElementTree.iterparse(stream, events=("start", "end")):
        if root is None:
            root = element
            if _tag(root) != "mediawiki":
                raise TarsError(f"{str(dump)!r} is XML, but no MediaWiki dump. {_REMEDY}")
        if event == "end" and _tag(element) == "page":
            wikitext = _article(element)
            root.clear()  # else the whole dump would gather in memory
            if wikitext:
                yield wikitext


def _article(page: ElementTree.Element) -> str:
    """The wikitext of a page, or nothing where it is no article."""
    parts = {_tag(element): element for element in page.iter()}
    namespace = parts["ns"].text if "ns" in parts else "0"  # old dumps don't say
    title = parts["title"].text if "title" in parts else ""
    if namespace != "0" or "redirect" in parts or "text" not in parts:
        return ""
    wikitext = parts["text"].text or ""
    outside = "ns" not in parts and ":" in (title or "")
    return "" if outside or wikitext.lstrip()[:9].upper() == "#REDIRECT" else wikitext


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rsplit("}", 1)[-1]


def _plain(code: Any) -> str:
    return "".join(map(_node_text, code.nodes)) if code is not None else ""


def _node_text(node: Any) -> str:
    if isinstance(node, nodes.Text):
        return str(node.value)
    if isinstance(node, nodes.HTMLEntity):
        return _entity(node)
    if isinstance(node, nodes.Wikilink):
        return _link_text(node)
    if isinstance(node, nodes.ExternalLink):
        return _plain(node.title)
    if isinstance(node, nodes.Heading):
        return "\n"
    return _tag_text(node) if isinstance(node, nodes.Tag) else ""


def _entity(node: Any) -> str:
    try:
        character = str(node.normalize())
        character.encode()
        return character
    except ValueError:  # a number that is no character, or half of one
        return ""


def _link_text(node: Any) -> str:
    if _HIDDEN_LINK.match(str(node.title)):
        return ""
    return _plain(node.text if node.text is not None else node.title)


def _tag_text(node: Any) -> str:
    name = str(node.tag).strip().lower()
    if name == "br":
        return " "
    return _plain(node.contents) if name in _VISIBLE else ""
