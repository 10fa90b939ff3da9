"""A search over the method's settings, on what settings may be chosen on; never on the probes.

Three things are made small at once: what is left of the concepts, what their neighbours lose, and
the KL's 99th percentile on plain text. None is traded for another here: the search gives the
settings that nothing else betters in all three, and picks one of them by a stated rule.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from tars_lens.common.cache import Advance, silent
from tars_lens.common.errors import TarsError, told
from tars_lens.common.files import user_path, writable_folder, write_json, write_text
from tars_lens.common.surroundings import undisturbed
from tars_lens.concept.card import Concept, ProbeSet
from tars_lens.method.settings import Settings, setting_value
from tars_lens.model.lens import Lens
from tars_lens.text.corpus import Corpus

OBJECTIVES = ("left", "neighbour_lost", "kl_p99")
"""What is made small: the concepts' largest probability at a validation prompt, the share of its
probability that the worst validation neighbour loses, and the KL's 99th percentile in nats."""

RULE = (
    "of the settings that leave at most the goal and whose worst neighbour loses at most 0.2, the "
    "one with the least kl_p99; where there is none, the one with the least left, then "
    "neighbour_lost, then kl_p99"
)
"""How one of them is picked."""

Space = Mapping[str, Sequence[Any]]
"""For each setting of `Settings` the values that are tried."""

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
"""The objectives of some settings, the KL on so many tokens."""

_NEIGHBOUR_BUDGET = 0.2
_CHEAP_SHARE = 8
_SURE = 2.0  # by how much a cheap KL, of fewer tokens, must exceed a full one to settle anything
_ABOUT, _CHEAP = "about", "cheap"  # attributes of the Optuna study, and of a trial


@dataclass(frozen=True)
class Search:
    """What a search has found.

    Attributes:
        trials: One row a trial: trial, state (`complete`, `pruned`, `failed` or `running`), the
            objectives, pareto (no other betters it in every objective), picked, and a column a
            setting.
        picked: The settings that the rule picks; `None` where no trial is complete.
    """

    trials: pd.DataFrame
    picked: Settings | None

    def to_frame(self) -> pd.DataFrame:
        """The trials."""
        return self.trials.copy()

    @property
    def front(self) -> pd.DataFrame:
        """The trials that no other betters in every objective, by kl_p99."""
        return self.trials[self.trials["pareto"]].sort_values("kl_p99", ignore_index=True)

    def save(self, folder: Path | str) -> None:
        """Writes `trials.csv`, `front.csv` and `picked.json`.

        Raises:
            TarsError: The folder can't be written.
        """
        folder = Path(folder)
        write_text(folder / "trials.csv", self.trials.to_csv(index=False))
        write_text(folder / "front.csv", self.front.to_csv(index=False))
        settings = self.picked.to_dict() if self.picked else None
        write_json(folder / "picked.json", {"rule": RULE, "settings": settings})


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
        journal: Optuna's file; made where there is none.
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
    return search_settings(
        erasure_measure(lens, concepts, corpus),
        journal,
        trials=trials,
        space=space or SPACE,
        base=base or Settings(),
        kl_tokens=kl_tokens,
        seed=seed,
        about={"model": lens.sha256 or lens.name, "concepts": [c.name for c in concepts]},
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
    found = {**(about or {}), "space": dict(sorted(space.items())), "kl_tokens": kl_tokens}
    study, say = _study(user_path(journal), found, seed), advance or silent

    def objective(trial: Any) -> tuple[float, ...]:
        # Optuna's journal holds plain values alone, and a setting may be a tuple
        chosen = {k: v[trial.suggest_categorical(k, [*range(len(v))])] for k, v in space.items()}
        return _tried(trial, replace(base, **chosen), measure, kl_tokens)

    # Optuna's own count of trials is of this process; other workers add theirs to the journal
    while (done := sum(t.state.name != "FAIL" for t in study.get_trials(deepcopy=False))) < trials:
        say("trying settings", done, trials)
        study.optimize(objective, n_trials=1)
    say("trying settings", trials, trials)
    return _summary(study, base, space)


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


def erasure_measure(
    lens: Lens, concepts: Sequence[Concept], corpus: Corpus | None = None
) -> Measure:
    """Objectives by `erase`, on cards that have their validation probes in the probes' place.

    Raises:
        TarsError: A card without validation probes of the concept.
    """
    from tars_lens.evaluation.erasure import erase
    from tars_lens.text.corpus import load_corpus

    cards, whole = [blinded(concept) for concept in concepts], corpus or load_corpus()
    text = replace(whole, name=f"{whole.name} (half)", documents=whole.documents[::2])

    def measure(settings: Settings, kl_tokens: int) -> dict[str, float]:
        found = erase(lens, cards, settings=settings, corpus=text, kl_tokens=kl_tokens)
        probes = [concept["probes"] for concept in found.report["concepts"]]
        left = [p["forward"]["after_max"] for p in probes]
        worst = [p["neighbour"].get("worst_kept") for p in probes]
        return {
            "left": max((float(v) for v in left if v is not None), default=0.0),
            "neighbour_lost": max((max(0.0, 1 - v) for v in worst if v is not None), default=0.0),
            "kl_p99": float(found.report["kl"]["p99"]),
        }

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


def pick(front: Mapping[Any, tuple[float, ...]], goal: float) -> Any:
    """The key of the trial that `RULE` picks, or `None` where there is none."""
    good = {k: v for k, v in front.items() if v[0] <= goal and v[1] <= _NEIGHBOUR_BUDGET}
    if good:
        return min(good, key=lambda key: good[key][2])
    return min(front, key=lambda key: front[key], default=None)


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is as small as `b` everywhere and smaller somewhere."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def _study(path: Path, about: Mapping[str, Any], seed: int) -> Any:
    """The Optuna study of a journal; another search's is refused."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise TarsError("a search needs optuna: pip install 'tars-lens[search]'.") from error
    logging.getLogger("optuna").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    writable_folder(path.parent)
    # a worker that joins draws other settings than those that were drawn before
    lines = path.read_bytes().count(b"\n") if path.is_file() else 0
    with told(f"cannot open the journal {str(path)!r}", "Give another folder."):
        study = optuna.create_study(
            study_name="tars-lens search",
            storage=JournalStorage(JournalFileBackend(str(path))),
            directions=["minimize"] * len(OBJECTIVES),
            sampler=optuna.samplers.TPESampler(seed=(seed + 1_000_003 * lines) % 2**32),
            load_if_exists=True,
        )
    plain = json.loads(json.dumps(about))
    known = study.user_attrs.get(_ABOUT)
    if known is None:
        study.set_user_attr(_ABOUT, plain)
    elif known != plain:
        differs = ", ".join(k for k in sorted(plain) if known.get(k) != plain[k])
        raise TarsError(
            f"the journal {str(path)!r} is of another search ({differs} differ): give another file."
        )
    return study


def _tried(trial: Any, settings: Settings, measure: Measure, kl_tokens: int) -> tuple[float, ...]:
    """The cheap measures first; the whole KL only where no complete trial is surely better."""
    from optuna import TrialPruned

    cheap = measure(settings, max(1, kl_tokens // _CHEAP_SHARE))
    seen = [cheap[name] for name in OBJECTIVES]
    trial.set_user_attr(_CHEAP, seen)
    hoped = [*seen[:2], seen[2] / _SURE]
    known = trial.study.get_trials(deepcopy=False)
    if any(dominates(t.values, hoped) for t in known if t.state.name == "COMPLETE"):
        raise TrialPruned
    found = measure(settings, kl_tokens)
    return tuple(found[name] for name in OBJECTIVES)


def _summary(study: Any, base: Settings, space: Space) -> Search:
    """The table of trials, which of them nothing betters, and the one that is picked."""
    best = {trial.number: tuple(trial.values) for trial in study.best_trials}
    chosen = pick(best, base.goal)
    rows, picked = [], None
    for trial in study.get_trials(deepcopy=False):
        values = trial.values or trial.user_attrs.get(_CHEAP) or [None] * len(OBJECTIVES)
        settings = {name: space[name][index] for name, index in trial.params.items()}
        if trial.number == chosen:
            picked = replace(base, **settings)
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower().replace("fail", "failed"),
                **dict(zip(OBJECTIVES, values, strict=True)),
                "pareto": trial.number in best,
                "picked": trial.number == chosen,
                **settings,
            }
        )
    columns = ["trial", "state", *OBJECTIVES, "pareto", "picked", *space]
    return Search(pd.DataFrame(rows, columns=columns), picked)
