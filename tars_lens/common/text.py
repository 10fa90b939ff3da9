"""Text as people have it, made plain, and names found in it as its readers would."""

import codecs
import tomllib
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex

from tars_lens.common.errors import TarsError, reason

_BREAKS = regex.compile("\r\n?|[\v\f\x85\u2028\u2029]")
_SEEN = {ord(space): " " for space in "\xa0\u2007\u202f"}  # no-break spaces
_SEEN |= {ord(mark): "" for mark in "\xad\u200b\u200e\u200f\u2060\ufeff"}  # that nobody sees

_ALIKE = {mark: f"[{marks}]" for marks in ("'’‘ʼ＇", "‐‑-", '"“”„«»') for mark in marks}
"""What is typed one way and printed another."""

_SPACELESS = (
    r"\p{LB=SA}\p{Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Hangul}\p{Bopomofo}\p{Tibetan}\p{Yi}"
)
"""Scripts whose words have no edges: Thai, Lao, Khmer and Burmese are `SA`."""

_WORD = regex.compile(rf"(?V1)[{_SPACELESS}--\s]{{1,4}}|[^\s{_SPACELESS}]+")
_VOWELLED = regex.compile(r"[\p{Arabic}\p{Hebrew}]")
_POINTS = r"[\p{Mn}\u0640\u200c\u200d]*"  # vowels that may be left out, and what stretches a word
_JOINED = regex.compile(r"\p{InSC=Virama}|\p{InSC=Vowel_Dependent}|\p{InSC=Consonant}")

_NARROWEST, _WIDEST, _RAGGED = 40, 120, 10  # characters of lines that were broken to fit a page
_ENDS_IN_HYPHEN = regex.compile(r"\w-$")
_BETWEEN_SPACELESS = regex.compile(rf"[{_SPACELESS}]\n[{_SPACELESS}]")


def plain(text: str) -> str:
    """A text with composed letters, one kind of line break and of space, and no unseen marks.

    Half of a character, which a text that was cut in an emoji has, becomes the mark for that.
    """
    if text.isascii() and "\r" not in text and "\f" not in text and "\v" not in text:
        return text
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unicodedata.normalize("NFC", _BREAKS.sub("\n", whole).translate(_SEEN))


def folded(text: str) -> str:
    """A text by which it is compared with others: case and spaces make no other one of it."""
    return " ".join(plain(text).split()).casefold()


def read_text(file: Path, what: str = "text") -> str:
    """What a file says, made plain: UTF-8, or what an editor's mark at its start says.

    Raises:
        TarsError: It can't be read, or is no text.
    """
    try:
        raw = file.read_bytes()
        wide = raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and len(raw) > 2
        return plain(raw.decode("utf-16" if wide else "utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(file, what, error) from error


def unreadable(file: Path, what: str, error: Exception) -> TarsError:
    """The error for a file of text that can't be read."""
    remedy = "Save it as UTF-8." if isinstance(error, ValueError) else "Give another file."
    return TarsError(
        f"cannot read the {what} {str(file)!r} as UTF-8 text: {reason(error)}. {remedy}"
    )


def read_toml(file: Path, what: str) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        TarsError: It can't be read, or isn't TOML.
    """
    return parse_toml(read_text(file, what), f"the {what} {str(file)!r}")


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The table that a TOML text is; `where` names it in the error.

    Raises:
        TarsError: It isn't TOML.
    """
    try:
        return tomllib.loads(plain(text))
    except (ValueError, RecursionError) as error:
        raise TarsError(f"cannot read {where}: it is not TOML ({reason(error)}).") from error


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, one a line, where each line may also be broken to fit a page.

    A line break stands for a space where the next word would have made its line one of the
    longest, as in Project Gutenberg's books; a text with longer lines has none of these.
    """
    lines = [line.strip() for line in plain(text).split("\n")]
    width = max(map(len, lines))
    if not _NARROWEST <= width <= _WIDEST:
        return [line for line in lines if line]
    found: list[str] = []
    full, last = False, 0
    for line in lines:
        word = line.partition(" ")[0]
        if full and line and last + 1 + len(word) > width - _RAGGED:
            found[-1] += _joint(found[-1], line) + line
        elif line:
            found.append(line)
        full, last = bool(line), len(line)
    return found


def forms_in(text: str, forms: Iterable[str]) -> list[str]:
    """The surface forms that `text` contains, in any case and as whole words.

    An accent may be a letter's own or follow it, an apostrophe may be straight or curly, a space
    may be a line break. Scripts that write without spaces have no word edges; there any occurrence
    counts that is no piece of a syllable.
    """
    seen = unicodedata.normalize("NFKC", plain(text))
    return [form for form in forms if _pattern(unicodedata.normalize("NFKC", form)).search(seen)]


def occurrences(text: str, form: str, *, cased: bool = False) -> list[Any]:
    """The matches of a surface form in a text that is plain; `cased` in the form's own case."""
    return list(_pattern(form, cased).finditer(text))


def words(text: str) -> int:
    """The number of words; of a script without spaces, four characters count as one."""
    return len(_WORD.findall(text))


def substituted(text: str, forms: Iterable[str], substitute: str) -> str:
    """`text` with every occurrence of a form, the longest first, replaced by `substitute`."""
    text = plain(text)
    for form in sorted(set(forms), key=len, reverse=True):
        text = _pattern(form).sub(lambda _: "\0", text)
    return text.replace("\0", substitute)


def is_spaceless(character: str) -> bool:
    """Whether a character is of a script that writes without spaces between words."""
    return regex.match(f"[{_SPACELESS}]", character) is not None


def _joint(line: str, following: str) -> str:
    edge = f"{line[-1]}\n{following[0]}"
    return "" if _ENDS_IN_HYPHEN.search(line) or _BETWEEN_SPACELESS.match(edge) else " "


@lru_cache(4096)
def _pattern(form: str, cased: bool = False) -> Any:
    form = " ".join(plain(form).split())
    if _VOWELLED.search(form):
        form = regex.sub(r"[\p{Mn}\u0640]", "", form)
    word = rf"[\w--[{_SPACELESS}]]"
    left = "" if is_spaceless(form[:1]) else f"(?<!{word})"
    right = r"(?!\p{M})" if is_spaceless(form[-1:]) else rf"(?!{word}|\p{{M}})"
    return regex.compile(f"(?{'' if cased else 'i'}V1){left}{''.join(map(_letter, form))}{right}")


def _letter(character: str) -> str:
    """What stands for one character of a name, in a pattern."""
    if character == " ":
        return r"\s+"
    said = _ALIKE.get(character) or regex.escape(character, literal_spaces=True)
    if _VOWELLED.match(character):
        return said + _POINTS
    return said + r"[\u200c\u200d]?" if _JOINED.match(character) else said
