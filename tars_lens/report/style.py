"""The look of every figure: widths, palette, text that can't break it, and files of fixed bytes."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from markupsafe import escape
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font

from tars_lens.common.errors import TarsError
from tars_lens.common.files import whole_file

INK = "#1a1a1a"
PAPER = "#ffffff"
GREY = "#8a8a8a"
BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#56b4e9",
    "#cc79a7",
)
"""Of Okabe and Ito's palette, which the common kinds of colour blindness tell apart."""

BEFORE, AFTER = BLUE, ORANGE
SERIES = (
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": ORANGE, "linestyle": "--", "marker": "s"},
    {"color": GREEN, "linestyle": "-.", "marker": "^"},
    {"color": VERMILLION, "linestyle": ":", "marker": "D"},
    {"color": PURPLE, "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": SKY, "linestyle": (0, (1, 2)), "marker": "P"},
)
"""Line and marker differ with the colour, so that a grey print can be read too."""

WIDTHS = {1: 3.3, 2: 6.8}
"""Inches of one and of two columns."""

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the bytes depend on no installed font
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "hatch.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "text.usetex": False,
    "text.parse_math": True,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "tars_lens",
}

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def paper_style() -> Iterator[None]:
    """The figures' settings of matplotlib, for the block alone."""
    with matplotlib.rc_context(STYLE):
        yield


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Makes a function draw in `paper_style`, whatever the caller's settings are."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with paper_style():
            return draw(*args, **kwargs)

    return inside


@styled
def figure(
    columns: int = 1,
    *,
    height: float | None = None,
    rows: int = 1,
    across: int = 1,
    **options: Any,
) -> tuple[Figure, Any]:
    """A figure of one or two columns' width that pyplot knows nothing of.

    Args:
        columns: 1 (3.3 in) or 2 (6.8 in).
        height: Inches; 0.62 of the width for each row of panels where not given.
        rows: Panels one above another.
        across: Panels side by side.
        options: Of `Figure.subplots`.

    Returns:
        The figure, and its `Axes` or array of them.

    Raises:
        TarsError: Another number of columns.
    """
    if columns not in WIDTHS:
        raise TarsError(f"a figure is one or two columns wide, got columns={columns!r}.")
    width = WIDTHS[columns]
    size = (width, height if height is not None else rows * 0.62 * width / across)
    made = Figure(figsize=size, layout="constrained")
    return made, made.subplots(rows, across, **options)


@styled
def save(figure: Figure, stem: Path | str, *, svg: bool = False) -> tuple[Path, ...]:
    """Writes `stem.pdf` and `stem.png` (300 dpi), and `stem.svg` on request.

    The same figure gives the same bytes: no dates, no version, no random identifiers.

    Returns:
        The files.

    Raises:
        TarsError: They can't be written.
    """
    kinds: dict[str, dict[str, Any]] = {
        "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
        "png": {"metadata": {"Software": None}, "dpi": 300},
    }
    if svg:
        kinds["svg"] = {"metadata": {"Date": None, "Creator": None}}
    stem = Path(stem)
    files = []
    for kind, options in kinds.items():
        path = stem.with_name(f"{stem.name}.{kind}")
        with whole_file(path) as temporary:
            figure.savefig(temporary, format=kind, **options)
        files.append(path)
    return tuple(files)


@styled
def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element for a page, in the page's own ink.

    Args:
        figure: What to show.
        name: Unique in the page; the identifiers within begin with it.
        description: What a reader who can't see it is told.
    """
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", text, flags=re.S)
    # images are named by their content, and nothing refers to them
    text = re.sub(r' id="image\w+"', "", text)
    # two figures of a page must not share an identifier
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    for color, name_in_page in ((PAPER, "paper"), (BLUE, "plot-blue")):
        text = text.replace(color, f"var(--{name_in_page}, {color})")
    text = text.replace(INK, "currentColor")
    pixels = round(figure.get_size_inches()[0] * 130)
    head = (
        f'<svg role="img" aria-label="{escape(description)}" style="width:{pixels}px" '
        f'viewBox="{_view_box(text)}" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return head + text[text.index(">") + 1 :].strip()


def token_text(text: str, limit: int = 16) -> str:
    """A token as a figure can show it: every space visible (`␣`), long ones cut at the end."""
    shown = safe_text(text.replace(" ", "␣"))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def prompt_text(text: str, limit: int = 48) -> str:
    """A prompt as a figure can show it: on one line, cut at the start, as its end matters."""
    shown = safe_text(text)
    if len(shown) <= limit:
        return shown
    end = shown[1 - limit :]
    word = end.find(" ")
    if 0 <= word < 12:
        end = end[word + 1 :]
    # not within an escaped dollar sign, half of which would be a formula's beginning
    return "…" + end.removeprefix("$")


def safe_text(text: str) -> str:
    """Any text as matplotlib shows it literally, and without a warning.

    Line ends and tabs become `⏎` and `⇥`, control characters their code points, dollar signs
    begin no formula, and characters that the font lacks are counted by script: `⟨4 katakana⟩`.
    """
    text = visible(text)
    parts = []
    for lacking, run in groupby(text, key=_lacking):
        characters = "".join(run)
        parts.append(f"⟨{len(characters)} {lacking}⟩" if lacking else characters)
    return "".join(parts).replace("$", r"\$")


def visible(text: str) -> str:
    """Text with line ends, tabs, control and direction characters made visible."""
    return "".join(_visible(character) for character in text)


def visible_lines(text: str) -> str:
    """The same, with line ends and tabs left to do their work."""
    return "".join(c if c in "\n\t" else _visible(c) for c in text)


def _visible(character: str) -> str:
    known = {"\n": "⏎", "\t": "⇥", "\u00a0": "⍽"}
    if character in known:
        return known[character]
    if character in "\u200c\u200d":  # joiners, without which Hindi or Persian is spelt wrong
        return character
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"⟨U+{ord(character):04X}⟩"
    return character


def _lacking(character: str) -> str:
    """The script of a character that the font doesn't have; empty for one that it has."""
    if ord(character) in _glyphs():
        return ""
    name = unicodedata.name(character, "unknown")
    return re.split(r"[ -]", name)[0].lower()


@cache
def _glyphs() -> frozenset[int]:
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return frozenset(get_font(str(font)).get_charmap())


def _view_box(text: str) -> str:
    found = re.search(r'viewBox="([-\d. ]+)"', text)
    return found.group(1) if found else "0 0 1 1"
