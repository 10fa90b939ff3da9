"""An evaluation as a person reads it in a terminal."""

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tars_lens.evaluation.subject import BLOCKED
from tars_lens.evaluation.verdict import PARTS

_NONE = "-"


def summary(report: dict[str, Any]) -> RenderableType:
    """Headlines of the result with their intervals, the controls beside them, and the verdicts."""
    subjects = list(report["verdicts"])
    heading = Text.assemble(
        (", ".join(report["concepts"]), "bold"),
        f" in {report['model']['name']}: suite {report['suite']['name']}, seed {report['seed']}",
    )
    lines = [Text(line) for line in notes(report)]
    return Group(heading, Text(), _measures(report, subjects), _verdicts(report), *lines)


def print_summary(report: dict[str, Any], console: Console) -> None:
    """Prints `summary`, with a blank line before."""
    console.print()
    console.print(summary(report), soft_wrap=not console.is_terminal)


def print_exam(report: dict[str, Any], console: Console) -> None:
    """Prints what each kind of question scores in all, and each group."""
    table = Table(title=f"The exam, base and edited {escape(report['model']['name'])}")
    for title in ("group", "kind", "n", "score", "base", "edited", "chance"):
        words = title in ("group", "kind", "score")
        table.add_column(title, justify="left" if words else "right")
    for row in (*report["groups"], *({"group": "all", **total} for total in report["all"])):
        scores = [key.removesuffix("_before") for key in row if key.endswith("_before")]
        for score in scores:
            sides = (figure_text(row[f"{score}_{when}"]) for when in ("before", "after"))
            chance = figure_text(row["chance"]) if row["kind"] == "choice" else _NONE
            table.add_row(escape(row["group"]), row["kind"], str(row["n"]), score, *sides, chance)
    console.print(table)


def _measures(report: dict[str, Any], subjects: list[str]) -> Table:
    table = Table(title="What each measure found; + and - say which way is good")
    table.add_column("measure")
    for subject in subjects:
        table.add_column(escape(subject), justify="right")
    table.add_column(f"95 % interval of {escape(subjects[0])}", justify="right")
    for name, measure in report["measures"].items():
        cells = [figure_text(measure.get(subject, {}).get("value")) for subject in subjects]
        interval = measure.get(subjects[0], {}).get("interval")
        said = f"{figure_text(interval[0])} to {figure_text(interval[1])}" if interval else _NONE
        sign = "+" if measure["better"] == "high" else "-"
        table.add_row(f"{name} ({sign})", *cells, said)
    return table


def _verdicts(report: dict[str, Any]) -> Table:
    table = Table(title="The verdict: the harmonic mean of its parts")
    table.add_column("subject")
    for title in ("score", *PARTS):
        table.add_column(title, justify="right")
    for subject, found in report["verdicts"].items():
        score = (
            f"{figure_text(found['score'])}{'' if 'fluency' in found['parts'] else ' (of three)'}"
        )
        table.add_row(escape(subject), score, *(figure_text(found[part]) for part in PARTS))
    return table


def notes(report: dict[str, Any]) -> list[str]:
    """What a reader must know beside the figures."""
    found = []
    for name, measure in report["measures"].items():
        edited = measure.get(report["subject"]["name"], {})
        if edited.get("value") is None:
            found.append(f"! {name}: nothing to measure (known {edited.get('known', 0)}).")
    ours = report["subject"]["name"]
    forward = report["measures"].get("forward", {}).get(ours, {})
    reverse = report["measures"].get("reverse", {}).get(ours, {})
    if forward and reverse:
        found.append(
            f"Known to the base: {forward.get('known')} of {forward.get('n')} forward and "
            f"{reverse.get('known')} of {reverse.get('n')} reverse probes "
            f"({reverse.get('set_phrases')} set phrases left out)."
        )
        found.append(
            f"Greedy decoding still says the concept on {forward.get('said_after')} of these "
            f"({forward.get('said_before')} before), and {reverse.get('said_after_own')} facts "
            f"about it ({reverse.get('said_before')} before), those left out that it says of the "
            "card's substitute too."
        )
    near = report["measures"].get("neighbour", {}).get(ours, {}).get("distances", {})
    if near:
        found.append(f"Neighbours kept: {'; '.join(distance_lines(near))}.")
    fall = report["measures"].get("hidden", {}).get(ours, {})
    if fall.get("share_lost") is not None:
        found.append(
            f"Hidden or removed: {fall['share_lost']:.0%} of what took the logit down by "
            f"{fall['fall']:.1f} is support lost, the rest is said against the concept."
        )
    if BLOCKED in report["verdicts"]:
        found += _beaten(report)
    return found


def distance_lines(distances: dict[str, Any]) -> list[str]:
    """One line a distance: what neighbours so near keep, and the worst of them."""
    return [
        f"{name} {figure_text(found['kept'])} of {found['known']} known (of {found['n']})"
        + (f", worst {found['worst']} {figure_text(found['worst_kept'])}" if found["known"] else "")
        for name, found in distances.items()
    ]


def _beaten(report: dict[str, Any]) -> list[str]:
    """Where the edit only hides the word as well as blocking its token does."""
    found = []
    for name in ("reverse", "alias", "logit_lens"):
        measure = report["measures"].get(name, {})
        ours = measure.get(report["subject"]["name"], {}).get("value")
        theirs = measure.get(BLOCKED, {}).get("value")
        if ours is not None and theirs is not None and ours >= theirs:
            found.append(f"! {name}: no better than blocking the token ({figure_text(ours)}).")
    return found


def figure_text(value: float | None) -> str:
    """A figure with three decimals, or two digits where it is small."""
    if value is None:
        return _NONE
    return f"{value:.2g}" if 0 < abs(value) < 0.001 else f"{value:.3f}"
