"""`tars` and `paper` beside the baselines and the blocked token: one harness, one table."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tars_lens.common.cache import Advance, silent
from tars_lens.common.files import write_json, write_text
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept
from tars_lens.evaluation.base import Base
from tars_lens.evaluation.battery import fingerprint
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.control_edits import blocked
from tars_lens.evaluation.erasure import erase, peak_rss_bytes
from tars_lens.evaluation.markdown import markdown
from tars_lens.evaluation.measure import Result
from tars_lens.evaluation.registry import measures_of
from tars_lens.evaluation.storing import Store, rounded, write_table
from tars_lens.evaluation.subject import BLOCKED, Subject, patched, untouched
from tars_lens.evaluation.suites import QUICK, Suite
from tars_lens.evaluation.summary import figure_text
from tars_lens.evaluation.verdict import PARTS, verdict
from tars_lens.experiments.baselines.edits import Baseline, of_all
from tars_lens.method.describing import describe_model
from tars_lens.method.settings import MethodName, Settings
from tars_lens.model.lens import Lens
from tars_lens.patch.edit import package_versions
from tars_lens.text.corpus import Corpus, load_corpus

SCHEMA = 1
OURS: tuple[MethodName, ...] = ("tars", "paper")

_HEADLINES = ("forward", "reverse", "alias", "neighbour", "wikipedia", "logit_lens", "relearning")
_TIED = 0.001

Make = Callable[[], Subject]


@dataclass(frozen=True)
class Comparison:
    """What was found of every method.

    Attributes:
        report: `comparison.json`: all figures and verdicts by method, no times.
        results: By method, then by measure.
        cost: One row a method made in this run: method, seconds, and peak_rss_bytes, the most
            memory that the process had held by then.
    """

    report: dict[str, Any]
    results: dict[str, dict[str, Result]]
    cost: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row a method: method, score, the verdict's parts, and each measure's headline."""
        return pd.DataFrame(
            [
                {
                    "method": name,
                    "score": self.report["verdicts"][name]["score"],
                    **{part: self.report["verdicts"][name][part] for part in PARTS},
                    **{measure: result.value for measure, result in found.items()},
                }
                for name, found in self.results.items()
            ]
        )

    def duels(self) -> pd.DataFrame:
        """`tars` against every other, measure by measure.

        Returns:
            Columns measure, other, ours, theirs, outcome (won, lost or tied: no difference beyond
            0.001, or nothing to compare).
        """
        ours, rows = self.results[OURS[0]], []
        for name, theirs in self.results.items():
            for measure in self.report["measures"] if name != OURS[0] else ():
                a, b = ours[measure].value, theirs[measure].value
                low = self.report["measures"][measure]["better"] == "low"
                rows.append((measure, name, a, b, _outcome(a, b, low=low)))
        return pd.DataFrame(rows, columns=["measure", "other", "ours", "theirs", "outcome"])

    def save(self, folder: Path | str) -> tuple[str, ...]:
        """Writes the report, the tables and, apart, the cost; returns the names.

        Raises:
            TarsError: The folder can't be written.
        """
        folder = Path(folder)
        write_json(folder / "comparison.json", self.report)
        write_text(folder / "comparison.md", markdown(self.report))
        tables = {"comparison": self.to_frame(), "duels": self.duels(), "cost": self.cost}
        for name, table in tables.items():
            write_table(folder / f"{name}.csv", table)
        return ("comparison.json", "comparison.md", *(f"{name}.csv" for name in tables))


@undisturbed
def compare(
    lens: Lens,
    concepts: Sequence[Concept],
    baselines: Mapping[str, Baseline],
    *,
    suite: Suite = QUICK,
    seed: int = 0,
    corpus: Corpus | None = None,
    keep: Path | None = None,
    resume: bool = False,
    advance: Advance | None = None,
) -> Comparison:
    """Removes the concepts by every method in turn, and measures each by the same battery.

    One method's edit is in memory at a time; the base is left as it was found, bit by bit. The
    untouched model and the blocked token stand beside them, measured as fully.

    Args:
        lens: The base model.
        concepts: The cards, in the order of removal.
        baselines: By name, as `baselines_called` gives them.
        suite: `QUICK` or `FULL`.
        seed: Of the methods, of fine-tuning and of intervals.
        corpus: Plain text; the built-in sample of Wikipedia by default.
        keep: A folder for finished measures, so that a stopped run can go on.
        resume: Take what is kept there; a method all of whose measures are there isn't made again.
        advance: Told of the progress.

    Raises:
        TarsError: No concept, patches on the model, or a corpus that is too short.
    """
    say, text = advance or silent, corpus or load_corpus()
    say("asking the base model", 0, 1)
    base = Base(lens, concepts, text, suite, seed)
    store = Store(keep, fingerprint(base) if keep else "", resume=resume)
    makers = _makers(base, baselines)
    results: dict[str, dict[str, Result]] = {}
    cost: list[dict[str, Any]] = []
    for done, (name, make) in enumerate(makers.items()):
        say(f"{name}: removing", done, len(makers))
        results[name], made = _found(base, store, name, make, say, (done, len(makers)))
        cost += made
    say("compared", len(makers), len(makers))
    columns = ["method", "seconds", "peak_rss_bytes"]
    return Comparison(_report(base, results), results, pd.DataFrame(cost, columns=columns))


def _makers(base: Base, baselines: Mapping[str, Baseline]) -> dict[str, Make]:
    """How each method's subject is made, none of them yet."""
    lens, concepts = base.lens, base.concepts

    def ours(name: MethodName) -> Subject:
        settings = Settings(name=name, seed=base.seed)
        found = erase(lens, concepts, settings=settings, corpus=base.corpus, kl_tokens=0)
        return patched(lens, found.patches)

    def theirs(baseline: Baseline) -> Subject:
        return Subject("", of_all(baseline, lens, concepts, base.windows, base.seed))

    return {
        **{name: partial(ours, name) for name in OURS},
        **{name: partial(theirs, baseline) for name, baseline in baselines.items()},
        BLOCKED: lambda: blocked(lens, concepts),
        "untouched": untouched,
    }


def _found(
    base: Base, store: Store, name: str, make: Make, say: Advance, at: tuple[int, int]
) -> tuple[dict[str, Result], list[dict[str, Any]]]:
    """Every measure of one method, and what it cost to make where it had to be made."""
    plan = measures_of(base.suite, Subject(name, untouched().held))
    digest = f"method {name}"
    kept = {m.name: store.load(name, digest, m.name) for m in plan}
    found = {measure: result for measure, result in kept.items() if result is not None}
    missing = [measure for measure in plan if measure.name not in found]
    if not missing:
        return found, []
    started = time.perf_counter()
    context = Context(base, replace(make(), name=name, control=False))
    seconds = time.perf_counter() - started
    cost = {"method": name, "seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}
    for measure in missing:
        say(f"{name}: {measure.name}", *at)
        found[measure.name] = measure.run(context)
        store.keep(name, digest, found[measure.name])
    return {measure.name: found[measure.name] for measure in plan}, [cost]


def _report(base: Base, results: dict[str, dict[str, Result]]) -> dict[str, Any]:
    found: dict[str, Any] = rounded(
        {
            "schema": SCHEMA,
            "model": describe_model(base.lens),
            "concepts": [concept.name for concept in base.concepts],
            "suite": asdict(base.suite),
            "seed": base.seed,
            "corpus": base.corpus.name,
            "versions": package_versions(),
            "measures": {
                measure.name: {
                    "about": measure.about,
                    "better": measure.better,
                    **{name: found[measure.name].to_dict() for name, found in results.items()},
                }
                for measure in measures_of(base.suite, untouched())
            },
            "verdicts": {name: verdict(found) for name, found in results.items()},
        }
    )
    return found


def _outcome(ours: float | None, theirs: float | None, *, low: bool) -> str:
    if ours is None or theirs is None or abs(ours - theirs) <= _TIED:
        return "tied"
    return "won" if (ours < theirs) == low else "lost"


def print_summary(found: Comparison, console: Console) -> None:
    """The verdict on each method with its headlines, and where `tars` wins and loses."""
    report = found.report
    heading = Text.assemble(
        (", ".join(report["concepts"]), "bold"),
        f" in {report['model']['name']}: suite {report['suite']['name']}, seed {report['seed']}",
    )
    for line in (Text(), heading, Text(), _table(found), *map(Text, _duel_lines(found))):
        console.print(line, soft_wrap=not console.is_terminal)


def _duel_lines(found: Comparison) -> list[str]:
    lines = []
    for other, rows in found.duels().groupby("other", sort=False):
        if other != "untouched":
            won, lost = (
                ", ".join(rows.loc[rows["outcome"] == outcome, "measure"]) or "none"
                for outcome in ("won", "lost")
            )
            lines.append(f"{OURS[0]} against {other}: better on {won}; worse on {lost}.")
    return lines


def _table(found: Comparison) -> Table:
    taken = found.report["measures"]
    measures = [name for name in _HEADLINES if name in taken]
    signs = {name: "+" if taken[name]["better"] == "high" else "-" for name in measures}
    columns = {**dict.fromkeys(("score", *PARTS), "+"), **signs}
    table = Table(title="Every method by the same measures; + and - say which way is good")
    table.add_column("method")
    for name, sign in columns.items():
        table.add_column(f"{name} ({sign})", justify="right")
    for row in found.to_frame().to_dict("records"):
        cells = (figure_text(None if pd.isna(row[name]) else row[name]) for name in columns)
        table.add_row(escape(str(row["method"])), *cells)
    return table
