"""The pipeline: concepts removed one after another, measured, verified and reported."""

import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tars_lens.common.cache import Advance, silent
from tars_lens.common.errors import TarsError
from tars_lens.common.files import write_json, write_text
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.advice import advice
from tars_lens.concept.card import Concept
from tars_lens.evaluation.kl import Divergence, paired_kl
from tars_lens.evaluation.probes import base_frame, probe_figures, with_after
from tars_lens.method.describing import describe_model
from tars_lens.method.paper import reverse_literally
from tars_lens.method.recipe import Recipe
from tars_lens.method.settings import Settings
from tars_lens.model.lens import Lens
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch
from tars_lens.patch.patch_tools import merge
from tars_lens.patch.verification import Verification, verify
from tars_lens.text.corpus import Corpus, load_corpus
from tars_lens.text.windows import Windows, cut

logger = logging.getLogger(__name__)

SCHEMA = 1


@dataclass(frozen=True)
class Erasure:
    """What `erase` found: a patch a concept, the report, and the tables it is made of.

    Attributes:
        patches: One for each concept, in the order of removal.
        report: `report.json`, as the design's contract has it.
        tables: Data frames by name: `edits`, `probes`, `kl_worst`.
        divergence: The KL at every position; `None` where it was not measured.
    """

    patches: tuple[Patch, ...]
    report: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    divergence: Divergence | None = None

    def save(self, folder: Path | str) -> None:
        """Writes a patch file each, the tables as CSV, and `report.json`, which names them.

        Raises:
            TarsError: The folder can't be written.
        """
        folder = Path(folder)
        for patch in self.patches:
            patch.save(folder / f"{patch.label}.safetensors")
        for name, table in self.tables.items():
            write_text(folder / f"{name}.csv", table.to_csv(index=False))
        write_json(folder / "report.json", {**self.report, "tables": sorted(self.tables)})


@undisturbed
def erase(
    lens: Lens,
    concepts: Sequence[Concept],
    *,
    settings: Settings | None = None,
    corpus: Corpus | None = None,
    kl_tokens: int = 25_600,
    advance: Advance | None = None,
    keep: Callable[[Patch], None] | None = None,
    bases: Sequence[pd.DataFrame] | None = None,
) -> Erasure:
    """Removes concepts one after another; the model is left as it was found.

    Args:
        lens: The base model.
        concepts: Cards, in the order of removal.
        settings: Method, budgets and seed; the recipe's defaults where not given.
        corpus: Text for statistics and for the KL; the built-in Wikipedia sample by default.
        kl_tokens: How much text the KL is measured on; 0 leaves it out.
        advance: Told of the progress.
        keep: Given each patch as soon as it is made, so that an interrupted run loses nothing.
        bases: What `base_frame` gives for each concept, if that was measured before.

    Raises:
        TarsError: No concept or one twice, patches on the model, or a prompt that doesn't lead to
            its concept.
    """
    started = time.perf_counter()
    settings = settings or Settings()
    say = advance or silent
    _check(lens, concepts)
    windows = cut(lens, corpus or load_corpus(), reported_tokens=max(kl_tokens, 1))
    bases = bases or [base_frame(lens, concept) for concept in concepts]
    try:
        made, seconds = _sequence(lens, concepts, windows, settings, say, keep)
        pairs = zip(bases, concepts, strict=True)
        afters = [with_after(base, lens, concept) for base, concept in pairs]
    finally:
        for patch in stack.applied_patches(lens):
            stack.revert(lens, patch)
    divergence = _divergence(lens, made, windows, say) if kl_tokens else None
    say("verifying", 0, 1)
    verified = verify(lens, made)
    say("verifying", 1, 1)
    forms = [f for c in concepts for f in c.mentions]
    kl, probes = divergence.figures(forms) if divergence else None, list(map(probe_figures, afters))
    patches = tuple(
        patch.with_figures({"removed": [p.label for p in made], "probes": figures, "kl": kl})
        for patch, figures in zip(made, probes, strict=True)
    )
    report = {
        "schema": SCHEMA,
        "model": describe_model(lens),
        "method": {**settings.to_dict(), "versions": patches[0].versions},
        "concepts": list(map(_entry, concepts, patches, probes, seconds)),
        "kl": kl,
        "verified": _verified(verified),
        "cost": {"seconds": time.perf_counter() - started, "peak_rss_bytes": peak_rss_bytes()},
    }
    tables = {
        "edits": pd.concat([_labelled(p) for p in patches], ignore_index=True),
        "probes": pd.concat(afters, ignore_index=True),
    }
    if divergence:
        tables["kl_worst"] = divergence.worst(lens, forms)
    return Erasure(patches, report, tables, divergence)


def _entry(
    concept: Concept, patch: Patch, figures: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """What the report says of one concept."""
    return {
        "name": concept.name,
        "edits": _edits(patch),
        "parts": patch.method["parts"],
        "probes": figures,
        "seconds": seconds,
        "advice": advice(concept),
    }


def peak_rss_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _check(lens: Lens, concepts: Sequence[Concept]) -> None:
    if not concepts:
        raise TarsError("no concept was given: name at least one card.")
    for names in ([concept.key for concept in concepts], [concept.name for concept in concepts]):
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise TarsError(f"the concept {twice!r} is given twice; each can be removed once.")
    if stack.applied_patches(lens):
        raise TarsError("patches are applied to the model: revert them, erase starts at the base.")


def _sequence(
    lens: Lens,
    concepts: Sequence[Concept],
    windows: Windows,
    settings: Settings,
    say: Advance,
    keep: Callable[[Patch], None] | None,
) -> tuple[list[Patch], list[float]]:
    """Removes each concept with all earlier ones gone, and leaves their patches on the model."""
    remover = _remover(lens, windows, settings, say)
    patches: list[Patch] = []
    seconds: list[float] = []
    for index, concept in enumerate(concepts):
        say(f"removing {concept.name}", index, len(concepts))
        started = time.perf_counter()
        patch = remover(concept, patches)
        patch.apply(lens)
        patches.append(patch)
        seconds.append(time.perf_counter() - started)
        if keep:
            keep(patch)
    say("removing concepts", len(concepts), len(concepts))
    return patches, seconds


def _remover(
    lens: Lens, windows: Windows, settings: Settings, say: Advance
) -> Callable[[Concept, Sequence[Patch]], Patch]:
    """How the chosen method removes one concept after others, with what it needs of the base."""
    if settings.name == "paper":
        return lambda concept, _earlier: reverse_literally(lens, concept, settings)
    say("reading plain text", 0, 1)
    recipe = Recipe.prepared(lens, windows.statistics, settings)
    say("reading plain text", 1, 1)

    def remove(concept: Concept, earlier: Sequence[Patch]) -> Patch:
        taken = {host for patch in earlier for host in patch.neurons}
        with stack.holding(lens, ()):  # each edit is made from the base alone
            return recipe.patch(concept, taken)

    return remove


def _divergence(lens: Lens, patches: Sequence[Patch], windows: Windows, say: Advance) -> Divergence:
    total = len(windows.reported)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        say("comparing on plain text", done, total)

    say("comparing on plain text", 0, total)
    return paired_kl(lens, merge(patches).new_rows, windows, advance=advance)


def _edits(patch: Patch) -> list[dict[str, Any]]:
    frame = patch.to_frame()
    frame["cosine"] = frame["cosine"].astype(object).where(frame["cosine"].notna(), None)
    return frame[["layer", "role", "neuron", "cosine"]].to_dict("records")


def _labelled(patch: Patch) -> pd.DataFrame:
    frame = patch.to_frame()
    frame.insert(0, "concept", patch.label)
    return frame


def _verified(verification: Verification) -> dict[str, Any]:
    return {
        "rows_changed": verification.rows_changed,
        "rows_planned": verification.rows_planned,
        "others_identical": verification.others_identical,
        "restored_identical": verification.restored_identical,
    }
