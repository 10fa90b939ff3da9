"""A search over the method's settings, on what settings may be chosen on; never on the probes.

Three things are made small at once: what is left of the concepts, what their neighbours lose, and
the KL's 99th percentile on plain text. None is traded for another here: the search gives the
settings that nothing else betters in all three, and picks one of them by a stated rule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tars_lens.common.cache import Advance, silent
from tars_lens.common.errors import TarsError
from tars_lens.common.files import user_path, writable_folder
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept, ProbeSet
from tars_lens.experiments.search_results import OBJECTIVES, Search, Space, dominates, summarise
from tars_lens.method.settings import Settings, setting_value
from tars_lens.model.lens import Lens
from tars_lens.text.corpus import Corpus

_CHEAP_SHARE = 8
_SURE = 2.0  # by how much a cheap KL, of fewer tokens, must exceed a full one to settle anything

SPACE: Space = {
    "said_threshold": (0.0001, 0.0003, 0.0005, 0.001, 0.002),
    "read_threshold": (0.001, 0.003, 0.01, 0.03),
    "said_reversal": (1.2, 1.5, 2.0, 2.5, 3.0),
    "read_reversal": (1.2, 1.5, 2.0),
    "reader_ridge": (0.1, 0.3, 1.0, 3.0),
    "neighbour_weight": (3.0, 10.0, 30.0),
}
"""What is searched where not told otherwise."""

Measure = Callable[[Settings, int], dict[str, float]]
"""The objectives of some settings, the KL on so many tokens; `kl_p99` is left out with 0."""


@undisturbed
def search(
    lens: Lens,
    concepts: Sequence[Concept],
    journal: Path | str,
    *,
    corpus: Corpus | None = None,
    trials: int = 50,
    space: Space | None = None,
    base: Settings | None = None,
    kl_tokens: int = 4_096,
    seed: int = 0,
    advance: Advance | None = None,
) -> Search:
    """Tries settings until the journal holds so many trials; begun ones are gone on with.

    Several processes, on one machine or many, may work on one journal at the same time. Ctrl-C
    loses the trial under way and nothing else.

    Args:
        lens: The base model.
        concepts: Cards with validation probes, removed together in each trial.
        journal: A file; made where there is none.
        corpus: Plain text. Only every second document is used, so that no tuning is done on a
            whole corpus that is later reported on.
        trials: How many trials the journal is to hold, those of other workers included.
        space: The values tried of each setting; `SPACE` where not given.
        base: The other settings.
        kl_tokens: How much text the KL is measured on; an eighth of it decides what isn't worth
            more.
        seed: Of the sampler.
        advance: Told the progress.

    Raises:
        TarsError: No optuna, no validation probes, a setting that there isn't or a value that it
            can't have, or a journal that belongs to another search.
    """
    start = base or Settings()
    measure = erasure_measure(lens, concepts, corpus)
    about = {"model": lens.sha256 or lens.name, "concepts": [c.name for c in concepts]}
    return search_settings(
        measure,
        journal,
        trials=trials,
        space=space or SPACE,
        base=start,
        kl_tokens=kl_tokens,
        seed=seed,
        about=about,
        advance=advance,
    )


def search_settings(
    measure: Measure,
    journal: Path | str,
    *,
    trials: int,
    space: Space,
    base: Settings,
    kl_tokens: int,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    advance: Advance | None = None,
) -> Search:
    """`search`, with any measure of settings.

    Raises:
        TarsError: See `search`.
    """
    space = check_space(space, base)
    if trials < 1 or kl_tokens < _CHEAP_SHARE:
        raise TarsError(
            f"a search needs at least 1 trial and {_CHEAP_SHARE} tokens, got {trials} and "
            f"{kl_tokens}."
        )
    from tars_lens.experiments.search_journal import open_journal

    study = open_journal(
        journal, {**(about or {}), "space": space_values(space), "kl_tokens": kl_tokens}, seed
    )
    say = advance or silent
    while (done := study.count()) < trials:
        say("trying settings", done, trials)
        with study.trial() as trial:
            settings = replace(base, **{k: trial.choose(k, v) for k, v in space.items()})
            _run(trial, settings, measure, kl_tokens, study.complete())
    say("trying settings", trials, trials)
    return summarise(study.rows(), base, space)


def check_space(space: Space, base: Settings) -> dict[str, tuple[Any, ...]]:
    """The space with every value in the kind that its setting is of; each makes sense by itself.

    Raises:
        TarsError: Nothing to search, no setting of a name, no values, or one that is of another
            kind or makes no sense.
    """
    if not space:
        raise TarsError("there is nothing to search: give at least one setting and its values.")
    found = {
        name: tuple(setting_value(name, value, base.name) for value in values)
        for name, values in space.items()
    }
    for name, values in found.items():
        if not values:
            raise TarsError(f"the setting {name!r} has no values to try.")
        for value in values:
            replace(base, **{name: value})  # refuses what makes no sense
    return found


def space_values(space: Space) -> dict[str, list[Any]]:
    """The space as JSON values."""
    plain = {k: [list(v) if isinstance(v, tuple) else v for v in vs] for k, vs in space.items()}
    return dict(sorted(plain.items()))


def erasure_measure(
    lens: Lens, concepts: Sequence[Concept], corpus: Corpus | None = None
) -> Measure:
    """Objectives by `erase`, on cards that have their validation probes in the probes' place.

    Raises:
        TarsError: A card without validation probes of the concept.
    """
    from tars_lens.evaluation.erasure import erase
    from tars_lens.text.corpus import load_corpus

    cards = [blinded(concept) for concept in concepts]
    text = _half(corpus or load_corpus())

    def measure(settings: Settings, kl_tokens: int) -> dict[str, float]:
        found = erase(lens, cards, settings=settings, corpus=text, kl_tokens=kl_tokens)
        probes = [concept["probes"] for concept in found.report["concepts"]]
        left = [p["forward"]["after_max"] for p in probes]
        worst = [p["neighbour"].get("worst_kept") for p in probes]
        figures = {
            "left": max((float(v) for v in left if v is not None), default=0.0),
            "neighbour_lost": max((max(0.0, 1 - v) for v in worst if v is not None), default=0.0),
        }
        if kl_tokens:
            figures["kl_p99"] = float(found.report["kl"]["p99"])
        return figures

    return measure


def blinded(concept: Concept) -> Concept:
    """A card whose reported probes are gone, and whose validation stands in their place.

    Raises:
        TarsError: It has no validation probes of the concept.
    """
    if not concept.validation.forward:
        raise TarsError(
            f"the card of {concept.name!r} has no [validation] with forward prompts, and settings "
            "are never chosen on the reported probes: write some."
        )
    return replace(concept, validation=ProbeSet(), probes=concept.validation)


def _run(
    trial: Any,
    settings: Settings,
    measure: Measure,
    kl_tokens: int,
    complete: Sequence[tuple[float, ...]],
) -> None:
    """The cheap measures first; the whole KL only where no complete trial is surely better."""
    cheap = measure(settings, max(1, kl_tokens // _CHEAP_SHARE))
    seen = tuple(cheap[name] for name in OBJECTIVES)
    trial.note(seen)
    hoped = (*seen[:2], seen[2] / _SURE)
    if any(dominates(other, hoped) for other in complete):
        trial.prune()
        return
    found = measure(settings, kl_tokens)
    trial.complete(tuple(found[name] for name in OBJECTIVES))


def _half(corpus: Corpus) -> Corpus:
    return replace(corpus, name=f"{corpus.name} (half)", documents=corpus.documents[::2])


def search_folder(path: Path | str) -> Path:
    """The folder of a search, proven to be writable."""
    return writable_folder(user_path(path))
