"""A run's tables as a page shows them: titles, cells, and the value that each is sorted by."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from tars_lens.report.run import Run
from tars_lens.report.style import visible
from tars_lens.report.summary import said, share
from tars_lens.report.tokens import coloured, in_context
from tars_lens.report.verdict import key_of

NONE = "–"

_WORST = 25
_SPOKEN = 12
_BEFORE = 80  # characters of the text before a prediction
_SAID = {"before": "before", "after": "after", "substitute": "with the substitute"}
_ANSWERS = {True: "yes", False: "no", None: NONE}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What it shows; plain text is escaped by the template.
        sort: What it is sorted by; empty for its text.
        number: Whether it stands on the right.
        language: Of its text, where it is known.
    """

    text: str | Markup
    sort: str = ""
    number: bool = False
    language: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a page; each row with the key of its concept, for the filter."""

    caption: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def probability(value: Any, digits: int = 4) -> Cell:
    """A figure from 0 to 1; what is too small to show is said to be."""
    if value is None or value != value:
        return Cell(NONE, "-1", True)
    least = 10.0**-digits
    shown = f"< {least:.{digits}f}" if 0 < value < least / 2 else f"{value:.{digits}f}"
    return Cell(shown, repr(float(value)), True)


def words(value: Any, language: str = "") -> Cell:
    """Text, its control characters made visible."""
    known = language if re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", language) else ""
    return Cell(visible(str(value)), language=known)


def number(value: Any, pattern: str = "{:.0f}") -> Cell:
    """Any figure."""
    if value is None or value != value:
        return Cell(NONE, "-1", True)
    return Cell(pattern.format(value), repr(float(value)), True)


def effect_table(report: dict[str, Any]) -> Table:
    """What went, and what stayed, by concept."""
    rows = []
    for concept in report["concepts"]:
        probes = concept["probes"]
        forward, neighbour = probes["forward"], probes["neighbour"]
        cells = [words(concept["name"]), number(len(concept["edits"]))]
        cells += [probability(forward[k]) for k in ("before_mean", "after_mean", "after_max")]
        cells += [_kept(forward, "erased"), words(said(forward))]
        for kind in ("reverse", "multilingual", "neighbour"):
            cells += [_kept(probes[kind]), words(said(probes[kind]))]
        cells += [_worst(neighbour)]
        rows.append((key_of(concept["name"]), tuple(cells)))
    titles = (
        "concept",
        "edited vectors",
        "mean p before",
        "mean p after",
        "worst p after",
        "erased",
        "name said",
        "reverse kept",
        "attributes said",
        "languages kept",
        "languages said",
        "neighbours kept",
        "neighbours said",
        "worst neighbour",
    )
    return Table(
        "Effect, on the probes that the base model knows (p: of the forward ones)",
        titles,
        tuple(rows),
    )


def damage_table(report: dict[str, Any]) -> Table | None:
    """The five figures of the KL, everywhere and elsewhere; `None` where it was not measured."""
    kl = report["kl"]
    if kl is None:
        return None
    rows = []
    for name, row in (("all", kl), ("naming no removed concept", kl["elsewhere"])):
        cells = [words(name), number(row["tokens"], "{:,.0f}")]
        cells += [number(row[key], "{:.4f}") for key in ("median", "mean", "p95", "p99", "max")]
        shares = [row.get(key) for key in ("unchanged", "unchanged_from_silenced")]
        cells += [Cell(NONE if value is None else share(value), number=True) for value in shares]
        cells += [number(row.get("hosts_kl_mean"), "{:.4f}")]
        rows.append(("", tuple(cells)))
    titles = (
        *("text", "tokens", "median", "mean", "95 %", "99 %", "max"),
        *("unchanged", "unchanged from silenced", "mean, silenced"),
    )
    caption = f"Damage: KL(base || edited) of the next token, in nats, on {visible(kl['corpus'])}"
    return Table(caption, titles, tuple(rows))


def run_tables(run: Run) -> dict[str, Table | None]:
    """The run's own tables, by name; `None` for those that aren't there."""
    makers: dict[str, Callable[[pd.DataFrame], Table]] = {
        "probes": _probes,
        "neurons_used": _neurons_used,
        "parts": _parts,
        "edits": _edits,
        "kl_worst": _kl_worst,
        "spoken": _spoken,
        "depth": _depth,
        "propagation_summary": _propagation_summary,
    }
    return {
        name: make(run.tables[name]) if name in run.tables else None
        for name, make in makers.items()
    }


def flow_tokens(run: Run, prompts: int = 12) -> list[dict[str, Any]]:
    """Each prompt's tokens, coloured by the largest probability that any layer reads there.

    Returns:
        For each prompt `concept` (its key, empty where the table has none) and `views`: by when.
    """
    table = run.tables.get("propagation")
    if table is None:
        return []
    found = []
    for prompt in table["prompt"].unique()[:prompts]:
        of = table[table["prompt"] == prompt]
        rows = of.groupby("position", sort=True)
        tokens = list(rows["token"].first())
        view = {}
        for when in ("before", "after"):
            largest = rows[f"p_{when}"].max()
            if largest.notna().any():
                view[when] = coloured(tokens, list(largest), unit="p at its largest layer")
        concept = key_of(str(of["concept"].iloc[0])) if "concept" in of else ""
        found.append({"concept": concept, "views": view})
    return found


def settings_of(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Every setting of the method, as text."""
    method = report["method"]
    return [(visible(str(k)), _value(v)) for k, v in method.items() if k != "versions"]


def versions_of(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The packages' versions, as the run recorded them."""
    versions = report["method"].get("versions")
    pairs = versions.items() if isinstance(versions, dict) else ()
    return [(visible(str(name)), visible(str(version))) for name, version in pairs]


def _probes(frame: pd.DataFrame) -> Table:
    rows = []
    for row in _records(frame):
        language = str(row["language"])
        cells = (
            words(row["concept"]),
            words(row["kind"]),
            words(language),
            words(row["prompt"], language),
            words(row["answer"], language),
            probability(row["p_before"]),
            Cell("yes" if row["known"] else "no"),
            probability(row["p_after"]),
            number(row["kept"], "{:.2f}"),
            *(Cell(_ANSWERS[row.get(f"top_{when}")]) for when in _SAID),
        )
        rows.append((key_of(str(row["concept"])), cells))
    titles = (
        *("concept", "kind", "language", "prompt", "answer", "p before", "known", "p after"),
        *("kept", *(f"said {when}" for when in _SAID.values())),
    )
    return Table("Every probe", titles, tuple(rows))


def _edits(frame: pd.DataFrame) -> Table:
    rows = []
    for row in _records(frame):
        cells = (
            words(row["concept"]),
            words(row["label"]),
            number(row["layer"]),
            words(row["role"]),
            number(row["cosine"], "{:.3f}"),
            number(row["old_norm"], "{:.2f}"),
            number(row["new_norm"], "{:.2f}"),
        )
        rows.append((key_of(str(row["concept"])), cells))
    titles = ("concept", "neuron", "layer", "role", "cosine with the target", "norm before")
    return Table("Every replaced weight vector", (*titles, "norm after"), tuple(rows))


def _neurons_used(frame: pd.DataFrame) -> Table:
    rows = []
    for row in _records(frame):
        cells = (
            words(row["concept"]),
            words(row["kind"]),
            number(row["layer"]),
            number(row["neuron"]),
            words(row["role"]),
            words(row["reads_or_writes"]),
            number(row["cosine"], "{:.3f}"),
            *(words(row[f"{which}_tokens"]) for which in ("new", "reversed", "old")),
        )
        rows.append((key_of(str(row["concept"])), cells))
    titles = (
        *("concept", "kind", "layer", "neuron", "role", "reads or writes"),
        *("cosine, reversed", "the new vector says", "its reversal says", "the old one said"),
    )
    caption = (
        "Every vector that was put in (a vector says the tokens that it raises most through the "
        "final norm's gain and the unembedding; cosine: of the old vector with the reversed new)"
    )
    return Table(caption, titles, tuple(rows))


def _parts(frame: pd.DataFrame) -> Table:
    rows = []
    heard = ("threshold", "own_prompts", "own_least", "near_most", "plain_p99")
    for row in _records(frame):
        cells = (
            words(row["concept"]),
            words(f"{row['kind']} L{row['layer']:.0f}N{row['neuron']:.0f}"),
            words(row["unit"]),
            *(number(row[key], "{:.2f}") for key in heard),
            Cell(NONE if row["speaks"] != row["speaks"] else share(row["speaks"]), number=True),
            number(row["strength"], "{:.1f}"),
            words(row["why"]),
        )
        rows.append((key_of(str(row["concept"])), cells))
    titles = (
        *("concept", "neuron", "hears in", "threshold", "own prompts", "least of them"),
        *("most at near ones", "99 % of plain text", "speaks on plain text", "strength"),
        "what it does above the threshold",
    )
    caption = (
        "What each neuron hears, and where it speaks (nats: of the concept's log-probability as "
        "the neuron predicts it; score: 1 at the concept's name, 0 on plain text)"
    )
    return Table(caption, titles, tuple(rows))


def _kl_worst(frame: pd.DataFrame) -> Table:
    high = float(frame["kl"].max())
    rows = []
    for row in _records(frame.head(_WORST)):
        view = in_context(row["context"], row["token"], row["next"], row["kl"], high=high)
        named = "yes" if row["names_concept"] else "no"
        rows.append(("", (number(row["kl"], "{:.3f}"), Cell(named), Cell(view))))
    titles = ("KL (nats)", "text names a concept", "text up to the token, and what comes next")
    caption = "The predictions that moved most: after the shaded token the models disagree"
    return Table(caption, titles, tuple(rows))


def _spoken(frame: pd.DataFrame) -> Table:
    rows = []
    for row in _records(frame.head(_SPOKEN)):
        text = f"{row['context']}{row['token']}"
        cells = [words(row[key]) for key in ("neuron", "says_base", "says_edited")]
        cells += [number(row[key], "{:.2g}") for key in ("kl", "bound")]
        rows.append(("", (*cells, words(text[-_BEFORE:]))))
    titles = ("neuron", "would say", "says", "KL (nats)", "bound (nats)", "after")
    return Table("Where the last layer's neurons speak, the largest KL first", titles, tuple(rows))


def _depth(frame: pd.DataFrame) -> Table:
    rows = []
    for row in _records(frame):
        cells = (
            words(row["concept"]),
            words(row["prompt"]),
            probability(row["largest_before"]),
            number(row["layer_before"]),
            probability(row["largest_after"]),
            number(row["layer_after"]),
        )
        rows.append((key_of(str(row["concept"])), cells))
    titles = ("concept", "prompt", "largest p before", "at layer", "largest p after", "at layer")
    return Table("What the logit lens reads at the layer where it reads most", titles, tuple(rows))


def _propagation_summary(frame: pd.DataFrame) -> Table:
    named = "concept" in frame and "answer" in frame
    rows = []
    for row in _records(frame):
        cells = (
            *((words(row["answer"]),) if named else ()),
            words(row["text"]),
            number(row["first_top_layer"]),
            probability(row["largest_before"]),
            number(row["stopped_layer"]),
            probability(row["largest_after"]),
        )
        rows.append((key_of(str(row["concept"])) if named else "", cells))
    titles = (
        *(("looked for",) if named else ()),
        *("prompt", "first the top token at layer", "largest p before", "stopped at layer"),
        "largest p after",
    )
    return Table("By prompt, at its last token", titles, tuple(rows))


def _kept(figures: dict[str, Any], key: str = "kept") -> Cell:
    cell = number(figures[key], "{:.2f}")
    return Cell(f"{cell.text} ({figures['known']} of {figures['n']})", cell.sort, True)


def _worst(figures: dict[str, Any]) -> Cell:
    if figures.get("worst") is None or figures["worst_kept"] is None:
        return Cell(NONE)
    return Cell(f"{visible(str(figures['worst']))} {figures['worst_kept']:.2f}")


def _records(frame: pd.DataFrame) -> Iterable[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _value(value: Any) -> str:
    return visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
