"""The journal that a search's workers share: an Optuna study in a file that is only added to."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tars_lens.common.errors import TarsError, told
from tars_lens.common.files import shell_path, writable_folder
from tars_lens.experiments.search_results import OBJECTIVES

_NAME = "tars-lens search"
_ABOUT = "about"
_CHEAP = "cheap"


class Trial:
    """One set of settings on trial."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial
        self.values: tuple[float, ...] | None = None
        self.pruned = False

    def choose(self, name: str, values: Sequence[Any]) -> Any:
        """The sampler's choice among a setting's values."""
        # Optuna's journal holds plain values alone, and a setting may be a tuple
        index = self._trial.suggest_categorical(name, list(range(len(values))))
        return values[index]

    def note(self, values: Sequence[float]) -> None:
        """Keeps what the cheap measures gave."""
        self._trial.set_user_attr(_CHEAP, list(values))

    def prune(self) -> None:
        """Ends it: it isn't worth the whole measure."""
        self.pruned = True

    def complete(self, values: tuple[float, ...]) -> None:
        """Ends it with its objectives."""
        self.values = values


class Journal:
    """A study, as the search needs it."""

    def __init__(self, study: Any, optuna: Any, space: Mapping[str, Sequence[Any]]) -> None:
        self._study, self._optuna, self._space = study, optuna, space

    def count(self) -> int:
        """The trials that are over or under way; failed ones aren't counted."""
        failed = self._optuna.trial.TrialState.FAIL
        return sum(trial.state != failed for trial in self._trials())

    def complete(self) -> list[tuple[float, ...]]:
        """The objectives of the complete trials."""
        done = self._optuna.trial.TrialState.COMPLETE
        return [tuple(t.values) for t in self._trials() if t.state == done]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a trial, for `summarise`."""
        for trial in self._trials():
            state = trial.state.name.lower().replace("fail", "failed")
            values = trial.values or trial.user_attrs.get(_CHEAP) or [None] * len(OBJECTIVES)
            chosen = {k: self._space[k][i] for k, i in trial.params.items()}
            figures = dict(zip(OBJECTIVES, values, strict=True))
            yield {"trial": trial.number, "state": state, **figures, **chosen}

    @contextmanager
    def trial(self) -> Iterator[Trial]:
        """A new trial; whatever stops the block, the journal says so."""
        states = self._optuna.trial.TrialState
        asked = self._study.ask()
        trial = Trial(asked)
        try:
            yield trial
        except BaseException:
            self._study.tell(asked, state=states.FAIL)
            raise
        if trial.pruned:
            self._study.tell(asked, state=states.PRUNED)
        elif trial.values is None:
            self._study.tell(asked, state=states.FAIL)
        else:
            self._study.tell(asked, list(trial.values))

    def _trials(self) -> list[Any]:
        found: list[Any] = self._study.get_trials(deepcopy=False)
        return found


def open_journal(path: Path | str, about: Mapping[str, Any], seed: int) -> Journal:
    """Opens a search's journal, or begins one.

    Args:
        path: The file.
        about: What it is a search of, with its `space`; another search's journal is refused.
        seed: Of the sampler.

    Raises:
        TarsError: Optuna isn't installed, the file can't be written, or is of another search.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise TarsError("a search needs optuna: pip install 'tars-lens[search]'.") from error
    logging.getLogger("optuna").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = shell_path(str(path))
    writable_folder(path.parent)
    with told(f"cannot open the journal {str(path)!r}", "Give another folder."):
        study = optuna.create_study(
            study_name=_NAME,
            storage=JournalStorage(JournalFileBackend(str(path))),
            directions=["minimize"] * 3,
            sampler=optuna.samplers.TPESampler(seed=_own_seed(seed, path)),
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
    return Journal(study, optuna, plain["space"])


def _own_seed(seed: int, path: Path) -> int:
    """A worker that joins draws other settings than those that were drawn before."""
    lines = path.read_bytes().count(b"\n") if path.is_file() else 0
    return (seed + 1_000_003 * lines) % 2**32
