"""The report as a person reads it in a terminal; plain text in a pipe."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tars_lens.common.printable import printable, visible

NONE = "-"

_KINDS = {
    "forward": "forward",
    "reverse": "reverse",
    "multilingual": "languages",
    "neighbour": "neighbours",
}


def summary(report: dict[str, Any]) -> RenderableType:
    """Effect, damage and proof of an erasure, in that order, from its `report.json`."""
    parts: list[RenderableType] = [_heading(report), _effect(report), _damage(report)]
    parts += [Text(line) for line in (*notes(report), *hints(report))]
    parts.append(_proof(report))
    return Group(*parts)


def print_summary(report: dict[str, Any], console: Console) -> None:
    """Prints `summary`, with a blank line before; in a pipe a note is one line."""
    console.print()
    console.print(summary(report), soft_wrap=not console.is_terminal)


def certificate_lines(figures: dict[str, Any]) -> list[str]:
    """What `Certificate.figures` has, in sentences."""
    lines = [
        f"On {figures['tokens']:,} tokens of {figures['corpus']}, {share(figures['unchanged'])} of "
        f"the predictions are the base's to the bit, and "
        f"{share(figures['unchanged_from_silenced'])} those of the base with the edited neurons "
        f"silenced, which alone moves them by {figures['hosts_kl_mean']:.2g} nats on average "
        f"(of {figures['mean']:.2g})."
    ]
    if last := figures["last_layer"]:
        lines.append(
            f"The last layer's neurons ({len(last['neurons'])}) are silent on "
            f"{share(last['silent'])}. Where they speak, their activations bound the KL by at most "
            f"{last['bound']['max']:.2g} nats; it is at most {last['kl']['max']:.2g}. The bound "
            f"{'holds' if last['held'] else 'IS BROKEN'} at every position."
        )
    return lines


def print_certificate(
    figures: dict[str, Any], spoken: Iterable[dict[str, Any]], console: Console
) -> None:
    """Prints `certificate_lines`, and some positions at which the last layer speaks."""
    table = Table("neuron", "after", "would say", "says", "KL (nats)", "bound")
    for row in spoken:
        read = " ".join(printable(f"{row['context'][-40:]}{row['token']}").split())
        said = (visible(row[key]) for key in ("says_base", "says_edited"))
        numbers = (f"{row[key]:.2g}" for key in ("kl", "bound"))
        table.add_row(row["neuron"], *(escape(text) for text in (f"...{read}", *said)), *numbers)
    parts: list[RenderableType] = [Text(line) for line in certificate_lines(figures)]
    console.print(Group(*parts, *([table] if table.rows else [])), soft_wrap=True)


def print_audit(found: dict[str, Any], console: Console) -> None:
    """Prints what `Audit.to_dict` has."""
    rows, differing = found["found"], found["differing"]
    lines = [
        f"{len(rows) or 'None'} of {found['neurons']:,} neurons of {found['model']} "
        f"{'looks' if len(rows) == 1 else 'look'} planted."
    ]
    if differing is not None:
        seen = sum(row["suspicious"] for row in differing)
        others = ", ".join(found["others"][:5]) or "none"
        more = f" and {len(found['others']) - 5} more" if len(found["others"]) > 5 else ""
        lines.append(
            f"{len(differing):,} MLP vectors differ from the base, {seen} of them in neurons that "
            f"look planted; other tensors that differ: {others}{more}."
        )
    table = Table("neuron", "why", "gate over in, nats", "silences", "reads")
    for row in rows:
        factor = "-" if row["imbalance"] is None else f"{row['imbalance']:.1f}"
        said = (escape(printable(row[key])) for key in ("silences", "reads"))
        table.add_row(row["neuron"], row["why"], factor, *said)
    parts: list[RenderableType] = [Text(line) for line in lines]
    console.print(Group(*parts, *([table] if rows else [])), soft_wrap=True)


def notes(report: dict[str, Any]) -> list[str]:
    """What a reader must know beside the figures: what was not known, and what fell short."""
    found = []
    for concept in report["concepts"]:
        name, probes = concept["name"], concept["probes"]
        forward = probes["forward"]
        if not forward["n"]:
            found.append(f"! {name}: the card has no forward probes, so its removal is not shown.")
        elif not forward["known"]:
            found.append(f"! {name}: the model knows none of the {forward['n']} forward probes.")
        elif forward["after_max"] > 0.005:
            found.append(
                f"! {name}: not fully removed; one forward probe still gives it "
                f"p = {forward['after_max']:.4f}."
            )
    return found


def hints(report: dict[str, Any]) -> list[str]:
    """What more text on the cards would help."""
    return [
        f"{concept['name']}: its card would do better with more text: {text}"
        for concept in report["concepts"]
        for text in concept.get("advice", [])
    ]


def _heading(report: dict[str, Any]) -> Text:
    model, method = report["model"], report["method"]
    names = ", ".join(concept["name"] for concept in report["concepts"])
    return Text.assemble(
        (names, "bold"),
        f" removed from {model['name']} ({model['layers']} layers, d_model {model['d_model']}), "
        f"method {method['name']}, seed {method['seed']}\n",
    )


def _effect(report: dict[str, Any]) -> Table:
    about = "What went, and what stayed, of the probes the base knows"
    table = Table(title=f"{about} (anyway: of the substitute too)")
    for title in ("concept", "probes", "known", "kept", "worst", "said"):
        words = title in ("concept", "probes", "worst")
        table.add_column(title, justify="left" if words else "right")
    for concept in report["concepts"]:
        vectors, seconds = len(concept["edits"]), concept["seconds"]
        first = (escape(concept["name"]), f"{vectors} vectors", f"{seconds:.1f} s", "")
        for (kind, name), beside in zip(_KINDS.items(), first, strict=True):
            figures = concept["probes"][kind]
            known = f"{figures['known']}/{figures['n']}"
            table.add_row(beside, name, known, *_left(figures), said(figures))
        table.add_section()
    return table


def _left(figures: dict[str, Any]) -> tuple[str, str]:
    """What is kept of a kind's probability, on the whole and at its worst probe."""
    if "after_max" in figures:
        mean = f"p {_p(figures['before_mean'])} > {_p(figures['after_mean'])}"
        return mean, f"p {_p(figures['after_max'], 4)}"
    worst = figures.get("worst")
    return _p(figures["kept"]), f"{escape(worst)} {_p(figures['worst_kept'])}" if worst else NONE


def said(figures: dict[str, Any]) -> str:
    """How many known answers greedy decoding gives, before and after.

    Those of `reverse` that it gives with the substitute in the name's place too stand in brackets.
    """
    if not figures["known"] or "said_after" not in figures:
        return NONE
    shown = f"{figures['said_before']} > {figures['said_after']}"
    anyway = figures["said_after"] - figures.get("said_after_own", figures["said_after"])
    return f"{shown} ({anyway} anyway)" if anyway else shown


def _damage(report: dict[str, Any]) -> RenderableType:
    kl = report["kl"]
    if kl is None:
        return Text("Damage on plain text was not measured (--kl-tokens 0).")
    table = Table(title=f"Damage: KL(base || edited) in nats on {escape(kl['corpus'])}")
    table.add_column("text")
    for title in ("tokens", "median", "mean", "p95", "p99", "max"):
        table.add_column(title, justify="right")
    for name, row in (("all", kl), ("naming no removed concept", kl["elsewhere"])):
        figures = (_p(row[key], 4) for key in ("median", "mean", "p95", "p99", "max"))
        table.add_row(name, f"{row['tokens']:,}", *figures)
    return Group(table, Text(_silence(kl["elsewhere"])))


def _silence(row: dict[str, Any]) -> str:
    if row.get("unchanged") is None:
        return ""
    return (
        f"Where none is named, {share(row['unchanged'])} of the predictions are the base's to the "
        f"bit, and {share(row['unchanged_from_silenced'])} those of the base with the edited "
        f"neurons silenced, which alone moves them by {row['hosts_kl_mean']:.4f} nats on average."
    )


def share(value: float) -> str:
    """A share in percent; what is not all or nothing isn't rounded to it."""
    return f"{value if value in (0, 1) else min(max(value, 0.0001), 0.9999):.2%}"


def _proof(report: dict[str, Any]) -> Text:
    verified, cost = report["verified"], report["cost"]
    ok = verified["rows_changed"] == verified["rows_planned"] and verified["others_identical"]
    return Text(
        f"\n{'Verified' if ok and verified['restored_identical'] else 'NOT VERIFIED'}: "
        f"{verified['rows_changed']} of {verified['rows_planned']} planned weight vectors changed, "
        f"all else bit-identical: {_yes(verified['others_identical'])}; "
        f"undone bit-identically: {_yes(verified['restored_identical'])}.\n"
        f"{cost['seconds']:.0f} s, peak memory {cost['peak_rss_bytes'] / 1e9:.2f} GB."
    )


def _p(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
