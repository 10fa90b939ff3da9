"""The report as a person reads it in a terminal; plain text in a pipe."""

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

NONE = "-"


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
                f"! {name}: not fully removed; one forward probe still says it with "
                f"p = {forward['after_max']:.4f}."
            )
        for part in concept.get("parts", []):
            if part.get("over_budget"):
                found.append(
                    f"! {name}: the {part['kind']} neuron L{part['layer']}N{part['neurons'][0]} "
                    f"disturbs validation text {part['over_budget']:.1f} times as much as its "
                    "budget allows; it is the quietest that was found."
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
    table = Table(title="What went, and what stayed (of the probes the base knows)", min_width=60)
    table.add_column("concept")
    for title in ("vectors", "forward, mean", "worst", "reverse kept", "languages kept"):
        table.add_column(title, justify="right")
    table.add_column("neighbours kept (worst)", justify="right")
    table.add_column("seconds", justify="right")
    for concept in report["concepts"]:
        probes = concept["probes"]
        forward, neighbour = probes["forward"], probes["neighbour"]
        table.add_row(
            escape(concept["name"]),
            str(len(concept["edits"])),
            f"{_p(forward['before_mean'])} > {_p(forward['after_mean'])} {_of(forward)}",
            _p(forward["after_max"], 4),
            f"{_p(probes['reverse']['kept'])} {_of(probes['reverse'])}",
            f"{_p(probes['multilingual']['kept'])} {_of(probes['multilingual'])}",
            _neighbours(neighbour),
            f"{concept['seconds']:.1f}",
        )
    return table


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
    return table


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


def _neighbours(figures: dict[str, Any]) -> str:
    if figures["kept"] is None:
        return f"{NONE} {_of(figures)}"
    worst = f"{escape(figures['worst'])} {figures['worst_kept']:.2f}"
    return f"{figures['kept']:.2f} ({worst}) {_of(figures)}"


def _of(figures: dict[str, Any]) -> str:
    return f"({figures['known']}/{figures['n']})"


def _p(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
