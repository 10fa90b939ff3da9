"""The verdict in words: what went, what fell short, and what was never known."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from tars_lens.evaluation.thresholds import BARS
from tars_lens.report.run import Run
from tars_lens.report.summary import hints, notes, share

_BARS = {".".join((bar.measure, *bar.path)): bar.value for bar in BARS}
_REVERSE = _BARS["reverse.kept"]
_NEIGHBOUR = _BARS["neighbour.kept"]
_READABLE = _BARS["logit_lens.largest_p"]
_DAMAGE = {name: _BARS[f"wikipedia.elsewhere.{name}"] for name in ("median", "mean", "p99")}
_LANGUAGES = 0.05
_TAIL = 1.0


@dataclass(frozen=True)
class Verdict:
    """What became of one concept.

    Attributes:
        name: The concept.
        key: Its name as an identifier.
        state: `gone`, `left` (some of it) or `unknown` (the base model didn't know it).
        word: The same in words.
        text: One sentence with its figures.
    """

    name: str
    key: str
    state: Literal["gone", "left", "unknown"]
    word: str
    text: str


def key_of(concept: str) -> str:
    """A concept's name as tables and patch files have it: `sherlock_holmes`."""
    return re.sub(r"\W+", "_", concept.lower()).strip("_")


def verdicts(report: dict[str, Any]) -> list[Verdict]:
    """One for each concept, in the order of removal."""
    return [_verdict(concept) for concept in report["concepts"]]


def lead(report: dict[str, Any]) -> str:
    """The run in one sentence; empty where the report doesn't say what greedy decoding gives."""
    probes = [concept["probes"] for concept in report["concepts"]]
    forward, reverse = ([found[kind] for found in probes] for kind in ("forward", "reverse"))
    if not all("said_after" in found for found in (*forward, *reverse)):
        return ""
    known, said = (sum(f[key] or 0 for f in forward) for key in ("known", "said_after"))
    facts, told = (sum(f[key] or 0 for f in reverse) for key in ("known", "said_after_own"))
    *others, last = (concept["name"] for concept in report["concepts"])
    names = f"{', '.join(others)} and {last}" if others else last
    one = len(probes) == 1
    parts = []
    if known:
        parts.append(
            f"{names} {'is' if one else 'are'} "
            + (f"still said on {said} of {known} prompts" if said else "no longer said on any of ")
            + ("" if said else f"{known} prompts")
        )
    if facts:
        about = "it" if one else "them"
        parts.append(
            f"{told or 'none'} of {facts} facts about {about} {'are' if told > 1 else 'is'} still "
            "said"
        )
    kl = report["kl"]
    if kl is not None and kl.get("unchanged_from_silenced") is not None:
        parts.append(
            "but for the idle neurons that were given up nothing moved on "
            f"{share(kl['unchanged_from_silenced'])} of {kl['tokens']:,} tokens"
        )
    return f"{'; '.join(parts)}." if parts else ""


def proven(report: dict[str, Any]) -> bool:
    """Whether exactly the planned vectors changed, nothing else, and undoing was exact."""
    verified = report["verified"]
    exact = verified["rows_changed"] == verified["rows_planned"]
    return bool(exact and verified["others_identical"] and verified["restored_identical"])


def misses(run: Run) -> list[tuple[str, str]]:
    """What fell short, and what the figures don't say, each with the key of its concept."""
    report = run.report
    found = [] if proven(report) else [("", "The edit is not verified: see the proof below.")]
    names = [concept["name"] for concept in report["concepts"]]
    for note in (*notes(report), *hints(report)):
        text = note.removeprefix("! ")
        owner = next((name for name in names if text.startswith(f"{name}:")), "")
        found.append((key_of(owner), text))
    for concept in report["concepts"]:
        sentences = (*_probe_misses(concept["probes"]), *_depth_misses(run, concept["name"]))
        found += [(key_of(concept["name"]), f"{concept['name']}: {text}") for text in sentences]
    found += [("", text) for text in _damage_misses(report["kl"])]
    return found + [("", text) for text in _never_known(report["concepts"])]


def _verdict(concept: dict[str, Any]) -> Verdict:
    name, probes = concept["name"], concept["probes"]
    forward, reverse, neighbour = (probes[kind] for kind in ("forward", "reverse", "neighbour"))
    if not forward["known"] or forward["erased"] is None:
        text = f"The base model knew none of {forward['n']} forward probes."
        return Verdict(name, key_of(name), "unknown", "nothing to remove", text)
    gone = round(forward["erased"] * forward["known"])
    whole = gone == forward["known"]
    word = "removed" if whole else "not fully removed"
    if whole and ((reverse["kept"] or 0) > _REVERSE or reverse.get("said_after_own")):
        word = "the name is removed, not all that it leads to"
    elif whole and (probes["multilingual"]["kept"] or 0) > _LANGUAGES:
        word = "removed, but not in every language"
    said = _said(name, forward, reverse)
    parts = [
        f"From the description to the name, {gone} of {forward['known']} known probes are erased "
        f"(mean p {forward['before_mean']:.2f} before, {_small(forward['after_mean'])} after; "
        f"worst {_small(forward['after_max'])})"
    ]
    if reverse["kept"] is None:
        parts.append("from the name to its attributes nothing was known to test")
    else:
        parts.append(f"from the name to its attributes {reverse['kept']:.0%} is left")
    if neighbour["kept"] is not None:
        parts.append(f"neighbours keep {neighbour['kept']:.0%}")
    state: Literal["gone", "left"] = "gone" if word == "removed" else "left"
    return Verdict(name, key_of(name), state, word, said + "; ".join(parts) + ".")


def _said(name: str, forward: dict[str, Any], reverse: dict[str, Any]) -> str:
    """What greedy decoding still gives, in a sentence; nothing where the report doesn't tell."""
    if "said_after" not in forward:
        return ""
    before, after, known = (forward[key] for key in ("said_before", "said_after", "known"))
    text = f"{name} is said on {after} of {known} prompts ({before} before)"
    if before and not after:
        text = f"{name} is no longer said on any of {known} prompts"
    if reverse["known"]:
        left, own = reverse["said_after"], reverse["said_after_own"]
        count = f"; {left or 'none'} of {reverse['known']} facts about it"
        text += f"{count} {'still ' if left else ''}{'are' if left > 1 else 'is'}"
        if left > own:
            text += f" ({left - own} of them with another name in its place too)"
    return f"{text}. "


def _small(p: float) -> str:
    return "< 0.0001" if 0 <= p < 0.0001 else f"{p:.4f}"


def _probe_misses(probes: dict[str, Any]) -> list[str]:
    found = []
    reverse, neighbour, languages = (probes[k] for k in ("reverse", "neighbour", "multilingual"))
    if reverse["kept"] is not None and reverse["kept"] > _REVERSE:
        found.append(
            f"asked by its name, the model still has {reverse['kept']:.0%} of what it knew "
            f"({reverse['known']} of {reverse['n']} reverse probes known)."
        )
    elif not reverse["known"]:
        found.append(
            f"none of {reverse['n']} reverse probes counts, so that direction is untested."
        )
    if reverse.get("said_after_own"):
        found.append(
            f"asked by its name, the model still says {reverse['said_after_own']} of "
            f"{reverse['known']} known attributes that it doesn't say of another name."
        )
    if languages["kept"] is not None and languages["kept"] > _LANGUAGES:
        found.append(
            f"in other languages {languages['kept']:.0%} is left"
            + (f"; worst: {languages['worst']}." if languages.get("worst") else ".")
        )
    if neighbour["kept"] is not None and neighbour["kept"] < _NEIGHBOUR:
        found.append(f"neighbours keep {neighbour['kept']:.0%} of their probability on average.")
    if neighbour["worst_kept"] is not None and neighbour["worst_kept"] < _NEIGHBOUR:
        found.append(
            f"the neighbour {neighbour.get('worst')} fell to {neighbour['worst_kept']:.0%} of its "
            "probability."
        )
    return found


def _depth_misses(run: Run, name: str) -> list[str]:
    if "depth" not in run.tables:
        return []
    table = run.tables["depth"]
    largest = table.loc[table["concept"].map(key_of) == key_of(name), "largest_after"].max()
    if not largest > _READABLE:
        return []
    return [f"hidden rather than gone: one layer still reads it with p = {largest:.2f}."]


def _damage_misses(kl: dict[str, Any] | None) -> list[str]:
    if kl is None:
        return ["Damage on plain text was not measured."]
    damage, found = kl["elsewhere"], []
    over = [
        name for name, bar in _DAMAGE.items() if damage[name] is not None and damage[name] > bar
    ]
    if over:
        figures = ", ".join(f"{name} {damage[name]:.4f} (bar {_DAMAGE[name]})" for name in over)
        found.append(f"Where no removed concept is named, plain text pays: KL {figures}.")
    if damage["max"] is not None and damage["max"] > _TAIL:
        found.append(
            f"The damage has a tail: where no removed concept is named, the worst of "
            f"{damage['tokens']:,} predictions moved by {damage['max']:.1f} nats "
            f"(the median by {damage['median']:.4f})."
        )
    return found


def _never_known(concepts: list[dict[str, Any]]) -> list[str]:
    counts = {c["name"]: c["probes"]["multilingual"] for c in concepts}
    short = [
        f"{name} {languages['n'] - languages['known']} of {languages['n']}"
        for name, languages in counts.items()
        if languages["known"] < languages["n"]
    ]
    if not short:
        return []
    return [
        "Probes in other languages that the base model never knew show nothing: "
        f"{', '.join(short)}."
    ]
