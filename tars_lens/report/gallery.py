"""A run's figures for its page: which can be drawn, how large, and what is said under each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tars_lens.report import figures
from tars_lens.report.run import Run
from tars_lens.report.style import figure, inline_svg, visible
from tars_lens.report.verdict import key_of

_MAPS = 12
_WATERFALLS = 6


@dataclass(frozen=True)
class Shown:
    """A figure in the page.

    Attributes:
        name: Unique, for identifiers.
        caption: What it shows and how it is read.
        concept: The key of the one concept it is of, for the filter; empty for several.
        svg: The drawing.
    """

    name: str
    caption: str
    svg: Markup
    concept: str = ""


def effect_figures(run: Run) -> list[Shown]:
    """What the model no longer says, in which language, and what the concepts do to each other."""
    return list(_effect(run))


def damage_figures(run: Run) -> list[Shown]:
    """The divergence on plain text, and what more edits cost."""
    return list(_damage(run))


def silence_figures(run: Run) -> list[Shown]:
    """The measured KL of the last layer against its bound, where a certificate is in the folder."""
    if run.certificate is None or "spoken" not in run.tables:
        return []
    return [
        _draw(
            "silence",
            "Where the last layer's neurons speak: the KL against the bound on it. No point lies "
            "below the line.",
            figures.silence_bound,
            run.tables["spoken"],
            height=2.4,
        )
    ]


def flow_figures(run: Run) -> list[Shown]:
    """Where the concept flows and where it stops; which edit does it."""
    return list(_flow(run))


def vector_figures(run: Run) -> list[Shown]:
    """The targeting vectors that were reversed, where the method is `paper`; else none."""
    return list(_vectors(run)) if run.report["method"]["name"] == "paper" else []


def _effect(run: Run) -> Iterator[Shown]:
    probes = run.tables.get("probes")
    if probes is not None:
        for concept in probes["concept"].unique():
            own = probes[probes["concept"] == concept]
            known = own[own["known"] & own["kind"].isin(("forward", "reverse", "neighbour"))]
            yield _draw(
                f"probes-{key_of(concept)}",
                f"{visible(concept)}: the answer's probability at each known probe. Forward (from "
                "the description to the name) and reverse (from the name to its attributes): low "
                "is good. Neighbour (near things that must stay): high is good.",
                figures.probe_probabilities,
                own,
                height=figures.rows_height(len(known), known["kind"].nunique()),
                concept=key_of(concept),
            )
        of = probes[(probes["kind"] == "multilingual") & probes["known"]]
        rows = len(of.drop_duplicates(["concept", "language"]))
        yield _draw(
            "languages",
            "Other languages, though only English was targeted: low is good.",
            figures.languages,
            probes,
            height=figures.rows_height(rows, of["concept"].nunique()),
        )
    if "interference" in run.tables:
        table = run.tables["interference"]
        yield _draw(
            "interference",
            "Each concept removed alone (rows), every other asked for (columns).",
            figures.interference,
            table,
            height=max(2.1, 1.3 + 0.22 * table["edited"].nunique()),
            across=2,
        )


def _damage(run: Run) -> Iterator[Shown]:
    if "kl_histogram" in run.tables:
        yield _draw(
            "kl",
            "KL between base and edited model, position by position, on a logarithmic axis.",
            figures.kl_distribution,
            run.tables["kl_histogram"],
            height=2.4,
            figures=run.report["kl"],
        )
    if "curve" in run.tables:
        yield _draw(
            "curve",
            "What more edits buy, and what they cost.",
            figures.edit_curve,
            run.tables["curve"],
            height=2.1,
            across=3,
        )


def _flow(run: Run) -> Iterator[Shown]:
    if "propagation" in run.tables:
        yield from _maps(run.tables["propagation"])
    if "depth" in run.tables:
        table = run.tables["depth"]
        yield _draw(
            "depth",
            "Gone, or only hidden: the largest probability that any layer reads of the answer.",
            figures.depth,
            table,
            height=figures.rows_height(len(table), table["concept"].nunique()),
        )
    if "languages_by_layer" in run.tables:
        yield from _language_depths(run.tables["languages_by_layer"])
    if "edit_effects" in run.tables:
        table = run.tables["edit_effects"]
        named = ["label", *(["concept"] if "concept" in table else [])]
        rows = len(table[table["role"] == "neuron"].drop_duplicates(named))
        yield _draw(
            "effects",
            "What each edit does by itself, and what is lost without it.",
            figures.edit_effects,
            table,
            height=figures.rows_height(rows) + 0.12 * rows,
            across=2,
        )
    if "attribution" in run.tables:
        table = run.tables["attribution"]
        for prompt in table["prompt"].unique()[:_WATERFALLS]:
            rows = table[table["prompt"] == prompt]
            concept = _concept(rows)
            yield _draw(
                f"attribution{int(prompt)}",
                f"{visible(concept)}: which parts of the model write the answer's logit, and "
                f"which take it away{_after(rows)}".removeprefix(": "),
                figures.attribution_waterfall,
                rows,
                height=2.9,
                concept=key_of(concept) if concept else "",
            )


def _language_depths(table: Any) -> Iterator[Shown]:
    for concept in table["concept"].unique():
        rows = table[table["concept"] == concept]
        lines = len(rows.drop_duplicates(["language", "answer"]))
        yield _draw(
            f"languages-{key_of(concept)}",
            f"{visible(concept)}: in which language the layers read it, where the prompt is in "
            "another one: the logit lens at the prompt's end, by language and layer.",
            figures.language_depths,
            rows,
            height=figures.rows_height(2 * lines + 8),
            rows=2,
            across=2,
            concept=key_of(concept),
        )


def _maps(table: Any) -> Iterator[Shown]:
    for prompt in table["prompt"].unique()[:_MAPS]:
        rows = table[table["prompt"] == prompt]
        concept = _concept(rows)
        answer = f"{str(rows['answer'].iloc[0])!r}" if "answer" in rows else "the answer"
        yield _draw(
            f"map{int(prompt)}",
            f"{visible(concept)}: what the logit lens reads of {visible(answer)}, by layer and "
            f"position{_after(rows)}".removeprefix(": "),
            figures.propagation_map,
            rows,
            height=3.4,
            across=3,
            concept=key_of(concept) if concept else "",
        )


def _concept(rows: Any) -> str:
    """The one concept that a table's rows are of, where it tells."""
    return str(rows["concept"].iloc[0]) if "concept" in rows else ""


def _after(rows: Any) -> str:
    text = str(rows["text"].iloc[0]) if "text" in rows else ""
    return f", after {visible(text)!r}." if text else "."


def _vectors(run: Run) -> Iterator[Shown]:
    null = run.tables.get("null")
    threshold = None
    if null is not None and "threshold" in null and null["threshold"].notna().any():
        threshold = float(null["threshold"].max())
    if "edits" in run.tables:
        yield _draw(
            "neurons",
            "The replaced weight vectors, by layer and role.",
            figures.neurons_by_layer,
            run.tables["edits"],
            height=2.4,
            n_layers=run.report["model"]["layers"],
            threshold=threshold,
        )
    if null is not None:
        yield _draw(
            "cosines",
            "All weight vectors of the model beside chance.",
            figures.cosine_distribution,
            null,
            height=2.4,
            threshold=threshold,
        )
    if "trajectory" in run.tables:
        yield _draw(
            "trajectory",
            "The refinement of the targeting vector by noise.",
            figures.refinement_trajectory,
            run.tables["trajectory"],
            height=2.1,
            across=2,
        )


def _draw(
    name: str,
    caption: str,
    draw: Any,
    table: Any,
    *,
    height: float,
    rows: int = 1,
    across: int = 1,
    concept: str = "",
    **options: Any,
) -> Shown:
    made, axes = figure(2, height=height, rows=rows, across=across)
    draw(table, axes, **options)
    return Shown(name, caption, Markup(inline_svg(made, name, caption)), concept)
