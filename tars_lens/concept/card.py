"""The concept card: what is to be removed, and the texts that it is made, chosen and judged on."""

import logging
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from tars_lens.common.errors import TarsError, unknown
from tars_lens.common.files import file_key, user_path
from tars_lens.common.text import folded, occurrences, parse_toml, plain, read_text
from tars_lens.common.text import forms_in as forms_in
from tars_lens.common.text import substituted as substituted

logger = logging.getLogger(__name__)

DISTANCES = ("sibling", "field", "unrelated", "homograph")
"""How near a neighbour probe may be to the concept, the nearest kin first."""


@dataclass(frozen=True)
class Probe:
    """A prompt, and the text that a model which knows would write next.

    Attributes:
        prompt: The text before the answer.
        answer: What should come next; `""` in a forward probe, where it is the card's answer.
        language: ISO 639-1 code, of multilingual probes only.
        distance: One of `DISTANCES`, of neighbour probes only; `""` where the card doesn't say.
    """

    prompt: str
    answer: str = ""
    language: str = ""
    distance: str = ""


@dataclass(frozen=True)
class ProbeSet:
    """One split of a card's probes: `validation` (chosen on) or `probes` (reported)."""

    forward: tuple[Probe, ...] = ()
    reverse: tuple[Probe, ...] = ()
    neighbour: tuple[Probe, ...] = ()
    multilingual: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class Concept:
    """A concept card.

    Attributes:
        name: What the concept is called in reports.
        answer: What must no longer be said; tried with and without a leading space.
        prompt: The detailed prompt, whose next text is the answer.
        aliases: Further surface forms of the answer.
        names: How texts name the concept; the card's name where the card gives none.
        substitute: Another of its kind, for the floor of a reverse probe; `""` where there is none.
        prompts: More text to make the vector from.
        contrast: Near things to leave alone, for making the vector.
        validation: Probes that settings are chosen on.
        probes: Probes that are reported; nothing is ever chosen on them.
        key: The file's stem, a name for files; made of the card's name where not given.
    """

    name: str
    answer: str
    prompt: str
    aliases: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    substitute: str = ""
    prompts: tuple[str, ...] = ()
    contrast: tuple[Probe, ...] = ()
    validation: ProbeSet = field(default_factory=ProbeSet)
    probes: ProbeSet = field(default_factory=ProbeSet)
    key: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", self.names or (self.name,))
        object.__setattr__(self, "key", self.key or file_key(self.name))

    @property
    def concept_prompts(self) -> tuple[str, ...]:
        """The detailed prompt and the further ones, in the card's order."""
        return (self.prompt, *self.prompts)

    @property
    def surface_forms(self) -> tuple[str, ...]:
        """The answer and its aliases."""
        return (self.answer, *self.aliases)

    @property
    def mentions(self) -> tuple[str, ...]:
        """Every way in which a text may name the concept: its names and its surface forms."""
        return (*self.names, *self.surface_forms)

    @classmethod
    def load(cls, source: str | Path) -> "Concept":
        """Loads a built-in card by name, or any card by path.

        Raises:
            TarsError: No such card, or a malformed one (names the key and the file).
        """
        if str(source) in builtin_concepts():  # whatever lies in the working folder
            file = resources.files("tars_lens.concept") / "cards" / f"{source}.toml"
            text = file.read_text(encoding="utf-8")
            return cls.parse(text, where=file.name, key=str(source))
        path = user_path(source)
        if path.suffix == ".toml" or path.is_file():
            return cls.parse(read_text(path, "concept card"), where=str(path), key=path.stem)
        raise unknown(
            "concept", str(source), builtin_concepts(), "A path to a card (.toml) works too."
        )

    @classmethod
    def parse(cls, text: str, *, where: str = "card", key: str = "") -> "Concept":
        """Reads a card from TOML text; `where` and `key` name it in errors and in files.

        Raises:
            TarsError: Not TOML, an unknown or missing key, a wrong type, or empty text.
        """
        return cls.from_dict(parse_toml(text, where), where=where, key=key)

    @classmethod
    def from_dict(cls, table: dict[str, Any], *, where: str = "card", key: str = "") -> "Concept":
        """Validates a card that has been read; the inverse of `to_dict`."""
        read = _Reader(where)
        read.keys(table, _CARD_KEYS, required=("name", "answer", "prompt"), at="")
        name = read.text(table["name"], "name")
        concept = cls(
            name=name,
            answer=read.text(table["answer"], "answer"),
            prompt=read.text(table["prompt"], "prompt"),
            aliases=read.texts(table.get("aliases", []), "aliases"),
            names=read.texts(table.get("names", []), "names"),
            substitute=read.text(table["substitute"], "substitute")
            if "substitute" in table
            else "",
            prompts=read.texts(table.get("prompts", []), "prompts"),
            contrast=read.probes(table.get("contrast", []), "contrast", ("prompt", "answer")),
            validation=read.split(table.get("validation", {}), "validation"),
            probes=read.split(table.get("probes", {}), "probes"),
            key=key,
        )
        _check_neighbours(concept, where)
        return _without_repeats(concept, where)

    def to_dict(self) -> dict[str, Any]:
        """The card as plain values, without what is empty."""
        table = {k: v for k, v in asdict(self).items() if k != "key" and v}
        for split in ("validation", "probes"):
            kinds = {kind: _rows(kind, rows) for kind, rows in table.pop(split, {}).items() if rows}
            if kinds:
                table[split] = kinds
        if "contrast" in table:
            table["contrast"] = _rows("contrast", table["contrast"])
        return {k: list(v) if isinstance(v, tuple) else v for k, v in table.items()}


def builtin_concepts() -> tuple[str, ...]:
    """The names of the cards that come with the package, sorted."""
    folder = resources.files("tars_lens.concept") / "cards"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


_CARD_KEYS = tuple(f.name for f in fields(Concept) if f.name != "key")
_SPLIT_KEYS = tuple(f.name for f in fields(ProbeSet))


@dataclass(frozen=True)
class _Reader:
    """Checks a card's values, naming the key and the file in every error."""

    where: str

    def fail(self, at: str, problem: str) -> TarsError:
        return TarsError(f"{self.where}: key {at!r} {problem}")

    def keys(
        self, table: Any, allowed: tuple[str, ...], *, required: tuple[str, ...], at: str
    ) -> None:
        if not isinstance(table, dict):
            raise self.fail(at, f"must be a table, got {type(table).__name__}.")
        prefix = f"{at}." if at else ""
        for key in table:
            if key not in allowed:
                raise self.fail(prefix + key, f"is unknown; allowed: {', '.join(allowed)}.")
        for key in required:
            if key not in table:
                raise self.fail(prefix + key, "is required.")

    def text(self, value: Any, at: str) -> str:
        if not isinstance(value, str):
            raise self.fail(at, f"must be text, got {type(value).__name__}.")
        if not value.strip():
            raise self.fail(at, "is empty.")
        return plain(value)

    def array(self, value: Any, at: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.fail(at, f"must be an array, got {type(value).__name__}.")
        return value

    def texts(self, value: Any, at: str) -> tuple[str, ...]:
        return tuple(self.text(v, f"{at}[{i}]") for i, v in enumerate(self.array(value, at)))

    def probes(self, value: Any, at: str, keys: tuple[str, ...], *more: str) -> tuple[Probe, ...]:
        rows = []
        for i, row in enumerate(self.array(value, at)):
            here = f"{at}[{i}]"
            self.keys(row, (*keys, *more), required=keys, at=here)
            rows.append(Probe(**{key: self.text(row[key], f"{here}.{key}") for key in row}))
            if (given := rows[-1].distance) not in ("", *DISTANCES):
                allowed = ", ".join(DISTANCES)
                raise self.fail(f"{here}.distance", f"is {given!r}; allowed: {allowed}.")
        return tuple(rows)

    def split(self, table: Any, at: str) -> ProbeSet:
        self.keys(table, _SPLIT_KEYS, required=(), at=at)
        pair = ("prompt", "answer")
        return ProbeSet(
            forward=tuple(Probe(t) for t in self.texts(table.get("forward", []), f"{at}.forward")),
            reverse=self.probes(table.get("reverse", []), f"{at}.reverse", pair),
            neighbour=self.probes(table.get("neighbour", []), f"{at}.neighbour", pair, "distance"),
            multilingual=self.probes(
                table.get("multilingual", []), f"{at}.multilingual", ("language", *pair)
            ),
        )


def _without_repeats(concept: Concept, where: str) -> Concept:
    """Drops probes whose prompt is put to an earlier use on the card, and says so.

    The order is that of the work: what the vector is made from, what settings are chosen on, what
    is reported. Case and spaces make no other prompt of one.
    """
    made_from = (*concept.concept_prompts, *(probe.prompt for probe in concept.contrast))
    used = {folded(prompt) for prompt in made_from}
    splits: dict[str, ProbeSet] = {}
    for split in ("validation", "probes"):
        given: ProbeSet = getattr(concept, split)
        kept = {}
        for kind in _SPLIT_KEYS:
            kept[kind] = tuple(p for p in getattr(given, kind) if folded(p.prompt) not in used)
            for probe in getattr(given, kind):
                if folded(probe.prompt) in used:
                    logger.warning(
                        "%s: %s.%s repeats %r, which the card already makes the vector from or "
                        "chooses on; it is left out there.",
                        *(where, split, kind, probe.prompt),
                    )
        splits[split] = ProbeSet(**kept)
        used |= {folded(p.prompt) for kind in _SPLIT_KEYS for p in getattr(given, kind)}
    return replace(concept, validation=splits["validation"], probes=splits["probes"])


def _check_neighbours(concept: Concept, where: str) -> None:
    """Refuses a neighbour prompt that names the concept; "an apple" doesn't name Apple."""
    for split, probes in (("validation", concept.validation), ("probes", concept.probes)):
        for i, probe in enumerate(probes.neighbour):
            named = [
                name
                for name in concept.names
                for match in occurrences(probe.prompt, name)
                if name.islower() or not match[0].islower()
            ]
            if named:
                raise TarsError(
                    f"{where}: key '{split}.neighbour[{i}]' names the concept ({named[0]!r}); "
                    "a neighbour probe must not."
                )


def _rows(kind: str, probes: Any) -> list[Any]:
    if kind == "forward":
        return [p["prompt"] for p in probes]
    return [{k: v for k, v in p.items() if v} for p in probes]
