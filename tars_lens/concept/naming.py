"""What a user calls a concept: a built-in card, a path to one, or a name that gets a card."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from tars_lens.common.errors import TarsError, unknown
from tars_lens.common.files import file_key, user_path, write_text
from tars_lens.common.text import folded, plain, read_text
from tars_lens.concept.card import Concept, builtin_concepts

if TYPE_CHECKING:
    from tars_lens.common.cache import Advance
    from tars_lens.model.lens import Lens
    from tars_lens.text.corpus import Corpus

RULE = (
    "what ends in .toml, holds a slash, begins with ~ or is a file is a path; what is nearly a "
    "built-in name is refused with a guess; for any other name a card is made first"
)
"""How a word of the command line is read, for `--help`."""

HELP = f"Built-in names, paths to cards, or plain names: {RULE}."

_NEAR = 0.8
"""From this likeness on (difflib's ratio) a name is a built-in one misspelt: 'satrun', 'tokio',
not 'Saturday' (0.71) or 'Charles Dickens' (0.76)."""


@dataclass(frozen=True)
class Named:
    """Cards in the order in which they were asked for, and what was done to have them.

    Attributes:
        cards: One for each word.
        said: One line for each card that was made, or found as an earlier run made it.
    """

    cards: list[Concept]
    said: list[str]


def card_or_name(given: str) -> Concept | str:
    """The card that a word stands for, or the name for which one is to be made.

    Needs no model, so that a mistake is told before anything is loaded.

    Raises:
        TarsError: An empty word, a path without a card, or nearly the name of a built-in one.
    """
    name = " ".join(plain(given).split())
    builtin = builtin_concepts()
    if given in builtin or not name:
        return Concept.load(given)
    if _is_path(given):
        if not user_path(given).exists():
            remedy = "No card lies at that path; a name without a slash gets a card made."
            raise unknown("concept", given, builtin, remedy)
        return Concept.load(given)
    if guess := _nearly(name, builtin):
        raise unknown(
            "concept",
            given,
            builtin,
            f"A path to a card (.toml) works too. If {given!r} is no slip for {guess!r}, make its "
            f"card first: tars-lens card {name!r} --out {file_key(name)}.toml.",
            guess=guess,
        )
    return name


def with_cards(
    lens: "Lens",
    asked: Sequence[Concept | str],
    corpus: "Corpus | None" = None,
    folder: Path | None = None,
    *,
    advance: "Advance | None" = None,
) -> Named:
    """Makes the cards that are missing.

    A card that lies in the folder already serves as it is: somebody may have mended it.

    Args:
        lens: The base model, which says what it knows.
        asked: As `card_or_name` gives them.
        corpus: Where the names may be mentioned; the sample of Wikipedia by default.
        folder: Where made cards are written, as `marie_curie.toml`; nowhere without one.
        advance: Told of the progress.

    Raises:
        TarsError: A name that nothing leads the model to, or a folder that can't be written.
    """
    cards, said = [], []
    for one in asked:
        if isinstance(one, Concept):
            cards.append(one)
            continue
        file = folder / f"{file_key(one)}.toml" if folder is not None else None
        if file is not None and file.is_file():
            said.append(f"{one}: the card of an earlier run serves: {file}{_origin(file)}")
        else:
            from tars_lens.concept.card_making import make_card

            draft = make_card(lens, one, corpus, advance=advance)
            place = "kept nowhere; `tars-lens card` writes one to be mended"
            if file is None:
                cards.append(draft.concept)
            else:
                write_text(file, draft.to_toml())
                place = str(file)
            said.append(f"{one}: a card was made from the name: {place}")
        if file is not None:
            cards.append(_own_card(file, one))
    return Named(cards, said)


def _own_card(file: Path, name: str) -> Concept:
    """The card in a file that is called after a name; a mended one may be called otherwise.

    Raises:
        TarsError: It is another thing's: "C+" and "C#" have one file name.
    """
    card = Concept.load(file)
    called = (card.name, card.answer, *card.names, *card.aliases)
    if folded(name) not in map(folded, called):
        raise TarsError(
            f"{str(file)!r} is the card of {card.name!r}, not of {name!r}, whose card has the same "
            "file name. Give another --out, or the path of the card that is meant."
        )
    return card


def _is_path(given: str) -> bool:
    separators = {"/", os.sep}
    path = user_path(given)
    looks = given.startswith("~") or path.suffix == ".toml" or bool(separators & set(given))
    return looks or path.is_file()


def _nearly(name: str, builtin: Sequence[str]) -> str | None:
    """The built-in card whose key or full name is nearly this one."""
    keys = {key: key for key in builtin}
    keys |= {file_key(Concept.load(key).name): key for key in builtin}
    found = get_close_matches(file_key(name), list(keys), n=1, cutoff=_NEAR)
    return keys[found[0]] if found else None


def _origin(file: Path) -> str:
    """What the card says of where it comes from, as its first comment."""
    first = read_text(file, "concept card").split("\n", 1)[0]
    return f" ({first[2:].rstrip('.')})" if first.startswith("# ") else ""
