"""A MediaWiki dump of a few pages."""

import bz2
from pathlib import Path
from xml.sax.saxutils import escape

_HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="en">'


def page(title: str, wikitext: str, *, ns: int | None = 0, redirect: bool = False) -> str:
    """One page as a dump has it."""
    space = "" if ns is None else f"<ns>{ns}</ns>"
    target = '<redirect title="Other" />' if redirect else ""
    text = f'<text xml:space="preserve">{escape(wikitext)}</text>'
    return (
        f"<page><title>{escape(title)}</title>{space}<id>1</id>{target}"
        f"<revision><id>2</id><timestamp>2020-01-01T00:00:00Z</timestamp>{text}</revision></page>"
    )


def write_dump(path: Path, *pages: str) -> Path:
    """Writes a dump, packed where its name ends in .bz2."""
    info = "<siteinfo><sitename>Wikipedia</sitename></siteinfo>"
    content = f"{_HEAD}{info}{''.join(pages)}</mediawiki>".encode()
    path.write_bytes(bz2.compress(content) if path.suffix == ".bz2" else content)
    return path
