"""Sentences that name a thing, and what can be cut out of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import regex as re

from tars_lens.common.text import forms_in, is_spaceless, occurrences, paragraphs, plain, words

INSIDE = "within a longer name"
"""The kind of a prompt whose last word and the name may be one longer name."""

_STOP = re.compile(r"\p{STerm}$")
_END = re.compile(r"(?V1)(?<=\p{STerm})\s+(?=[\p{Lu}\p{Lo}\"'“‘«(¿¡])|(?<=[。！？])(?=\S)")
_WORD = re.compile(r"[^\W\d_][\w'-]*|\d{3,4}")
_FEWEST = 4  # words before a name that lead somewhere
_LONGEST = 60  # words of a sentence that is still one thought
_AFTER = 2  # words between a name and an attribute that is asked for
_CUTS = 4  # attributes asked for in one sentence
_IS = re.compile(
    r"^(?:The )?(?P<name>.+?),? (?:is|was) (?P<article>an|a|the|one of the) (?P<rest>.+)$"
)


@dataclass(frozen=True)
class Cut:
    """A prompt and its answer, and the sentence that both come from.

    Attributes:
        prompt: The text before the answer.
        answer: What comes next.
        sentence: The whole sentence: cuts of one sentence never stand in two splits.
        kind: How it was cut.
        distance: Of a prompt about another thing: how near that is to the concept.
    """

    prompt: str
    answer: str
    sentence: str
    kind: str
    distance: str = ""


def sentences_of(texts: Iterable[str], names: Sequence[str]) -> Iterator[str]:
    """Whole sentences that contain any of the names, each once."""
    seen = set()
    for text in texts:
        if not forms_in(text, names):
            continue
        for line in paragraphs(text):
            for sentence in _END.split(line):
                whole = _STOP.search(sentence) and _FEWEST < words(sentence) <= _LONGEST
                if whole and sentence not in seen and forms_in(sentence, names):
                    seen.add(sentence)
                    yield sentence


def forward_cuts(sentence: str, name: str, names: Sequence[str]) -> list[Cut]:
    """Prompts that lead to the name: the text before it, and what the sentence calls it.

    A text that names the concept already leads nowhere: it is left out. So is what ends within a
    longer word (`Boston/London`). What ends in a word in capitals (`based on Jack London`, `by Sir
    Isaac Newton`) is most often a piece of a longer name, and of another thing: its kind says so.
    """
    found = []
    sentence, begun = plain(sentence), is_spaceless(name[:1])
    for match in occurrences(sentence, name, cased=True):
        before = sentence[: match.start()]
        apart = begun or before[-1:].isspace()
        before = before.rstrip()
        if apart and words(before) >= _FEWEST and not forms_in(before, names):
            last = before.split()[-1]
            inside = last[0].isupper() and (last[-1].isalnum() or last[-1] == ".")
            found.append(Cut(before, name, sentence, INSIDE if inside else "before the name"))
    return [*found, *_descriptions(sentence, name, names)]


def reverse_cuts(sentence: str, names: Sequence[str]) -> list[Cut]:
    """Prompts that name the concept, and lead to a word of the same sentence.

    Words in capitals and numbers come first, as they say most; then the longest ones.
    """
    sentence = plain(sentence)
    ends = [match.end() for name in names for match in occurrences(sentence, name, cased=True)]
    if not ends:
        return []
    start = min(ends)
    every = list(_WORD.finditer(sentence, start))[_AFTER:]
    chosen = [word for word in every if _tells(word[0]) and not forms_in(word[0], names)]
    chosen.sort(key=lambda word: (not _proper(word[0]), -len(word[0])))
    return [
        Cut(sentence[: word.start()].rstrip(), word[0], sentence, "after the name")
        for word in chosen[:_CUTS]
        if word.start() and sentence[word.start() - 1] == " "
    ]


def capitalised(text: str) -> list[str]:
    """Names in a text: runs of up to three words in capitals that don't begin the sentence."""
    run = r"(?<=[a-z,;] )([A-Z][\w'-]+(?: [A-Z][\w'-]+){0,2})"
    return re.findall(run, text)


def _descriptions(sentence: str, name: str, names: Sequence[str]) -> list[Cut]:
    """`Saturn is a planet with rings.` as a question for the name."""
    match = _IS.match(sentence.rstrip(".!?"))
    if match is None or not forms_in(match["name"], names) or forms_in(match["rest"], names):
        return []
    rest = match["rest"].split(". ")[0]
    if words(rest) < _FEWEST - 1:
        return []
    rest = f"{'one of the' if match['article'] == 'one of the' else 'the'} {rest}"
    shapes = (
        f"{rest[0].upper()}{rest[1:]} is",
        f"{rest[0].upper()}{rest[1:]} is called",
        f"Question: What is the name of {rest}?\nAnswer:",
        f"Question: Who is {rest}?\nAnswer:",
    )
    return [Cut(shape, name, sentence, "described") for shape in shapes]


def _tells(word: str) -> bool:
    return len(word) >= 4 and word.lower() not in _EMPTY


def _proper(word: str) -> bool:
    return word[0].isupper() or word[0].isdigit()


_EMPTY = frozenset(
    [
        *("about", "above", "after", "also", "among", "because", "been", "before", "being"),
        *("between", "both", "could", "does", "doing", "during", "each", "even", "ever", "every"),
        *("first", "from", "have", "having", "here", "into", "just", "like", "made", "make"),
        *("many", "more", "most", "much", "often", "once", "only", "other", "over", "same"),
        *("several", "should", "since", "some", "such", "than", "that", "their", "them", "then"),
        *("there", "these", "they", "this", "those", "through", "time", "under", "until", "upon"),
        *("very", "were", "what", "when", "where", "which", "while", "will", "with", "within"),
        *("would", "years", "your", "called", "known", "name", "named"),
    ]
)
"""Words that say nothing of a concept."""
