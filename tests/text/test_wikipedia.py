"""Prose out of wikitext, and articles out of a dump."""

import pytest
from small_dump import page, write_dump

from tars_lens.common.errors import TarsError
from tars_lens.text.wikipedia import articles, prose

# --- wikitext ----------------------------------------------------------------------------------

MARKUP = {
    "'''Saturn''' is the ''sixth'' planet.": "Saturn is the sixth planet.",
    "The [[planet]] has [[Rings of Saturn|rings]].": "The planet has rings.",
    "See [https://example.org the mission] and [https://example.org].": "See the mission and .",
    "A {{convert|9|km}} moon{{citation needed}}.": "A moon.",
    "Seen<ref name=a>Galilei 1610</ref> early<ref name=a /> on.": "Seen early on.",
    "Half <!-- a note with [[File: --> hidden.": "Half hidden.",
    "[[File:Saturn.jpg|thumb|with [[rings]]]]Text.": "Text.",
    "Text.[[Category:Planets]][[fr:Saturne]]": "Text.",
    "[[:Category:Planets|All planets]] Text.": "Text.",
    "One&nbsp;&ndash; two &amp; three&#8217;s": "One – two & three’s",
    "Half a &#55357; character.": "Half a character.",
    "== Rings ==\nThey are ice.": "They are ice.",
    "* Titan\n* [[Rhea (moon)|Rhea]]": "Titan\nRhea",
    "{| class=x\n! a\n|-\n| b\n|}\nAfter.": "After.",
    "{| class=x\n| never closed\nAfter.": "After.",
    "Water is H<sub>2</sub>O, <math>x^2</math> is not.": "Water is H2O, is not.",
    "One<br>two<br/>three": "One two three",
    "A <nowiki>[[link]]</nowiki> stays out.": "A stays out.",
    "Saturn ({{IPA|x}}; {{lang|fr}}) is": "Saturn is",
    "Saturn ({{IPA|x}}; a god) is": "Saturn (a god) is",
    "never '''closed [[at all": "never closed at all",
    "  \n\n ---- \n\nText.\n\n": "Text.",
    "": "",
}


@pytest.mark.parametrize("wikitext", MARKUP)
def test_prose_is_what_a_reader_sees(wikitext):
    assert prose(wikitext) == MARKUP[wikitext]


def test_paragraphs_are_lines_in_their_order():
    assert prose("First one.\n\n== A ==\nSecond [[one]].\n\nThird.") == (
        "First one.\nSecond one.\nThird."
    )


# --- dumps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dump.xml", "dump.xml.bz2"])
def test_articles_are_the_pages_of_the_main_namespace(tmp_path, name):
    dump = write_dump(
        tmp_path / name,
        page("Saturn", "'''Saturn''' & its <rings>."),
        page("Talk:Saturn", "Talk.", ns=1),
        page("Kronos", "#REDIRECT [[Saturn]]", redirect=True),
        page("Old redirect", "  #redirect [[Saturn]]"),
        page("Titan: a moon", "Titan."),
    )
    assert list(articles(dump)) == ["Saturn & its .", "Titan."]


def test_a_dump_without_namespaces_is_told_apart_by_titles(tmp_path):
    dump = write_dump(
        tmp_path / "old.xml", page("Saturn", "Saturn.", ns=None), page("Help:X", "Help.", ns=None)
    )
    assert list(articles(dump)) == ["Saturn."]


@pytest.mark.parametrize("name", ["dump.xml", "dump.xml.bz2"])
def test_a_truncated_dump_gives_what_it_has_and_then_says_so(tmp_path, name):
    pages = [page(f"Page {i}", f"Text {i}. " * 500) for i in range(400)]
    dump = write_dump(tmp_path / name, *pages)
    content = dump.read_bytes()
    dump.write_bytes(content[: len(content) * 2 // 3])
    found = articles(dump)
    with pytest.raises(TarsError, match=f"cannot read .*{name}' to its end: .*Give a whole dump"):
        seen = [next(found)]
        for text in found:
            seen.append(text)
    assert seen[0].startswith("Text 0.")


@pytest.mark.parametrize("content", [b"", b"BZh91AY&SY no bzip", b"<mediawiki><b></mediawiki>"])
@pytest.mark.parametrize("name", ["x.xml", "x.xml.bz2"])
def test_what_is_no_xml_is_one_message(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TarsError, match="cannot read"):
        list(articles(tmp_path / name))


def test_other_xml_is_no_dump(tmp_path):
    (tmp_path / "x.xml").write_text("<html><page><text>no</text></page></html>")
    with pytest.raises(TarsError, match="is XML, but no MediaWiki dump"):
        list(articles(tmp_path / "x.xml"))
    (tmp_path / "y.xml").write_text('<?xml version="1.0" encoding="no-such"?><mediawiki/>')
    with pytest.raises(TarsError, match="cannot read"):
        list(articles(tmp_path / "y.xml"))


def test_a_page_that_is_nested_too_deep_is_left_out_alone(tmp_path, caplog):
    deep = "{{" * 3000 + "}}" * 3000
    dump = write_dump(tmp_path / "d.xml", page("a", "First."), page("b", deep), page("c", "Last."))
    assert list(articles(dump)) == ["First.", "Last."]
    (said,) = caplog.messages
    assert "d.xml': a page is left out" in said and "{{{{" in said and len(said) < 300
