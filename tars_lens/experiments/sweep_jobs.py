"""What a sweep is made of: a spec (TOML), the jobs that it stands for, and how one is run."""

import hashlib
import json
import logging
import tempfile
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, get_args

from tars_lens.common.errors import TarsError, unknown
from tars_lens.common.files import user_path
from tars_lens.common.text import read_toml
from tars_lens.concept.card import Concept
from tars_lens.method.settings import MethodName, Settings, setting_value
from tars_lens.model.catalogue import BUILT_IN

logger = logging.getLogger(__name__)

JOB_FILE = "job.json"

_LISTS = {"concepts": True, "models": True, "seeds": False, "methods": False}  # required or not
_SINGLE = {"corpus": str, "kl_tokens": int, "dtype": str, "device": str, "settings": dict}


@dataclass(frozen=True)
class Job:
    """One erasure: all that a worker on any machine needs to know.

    Attributes:
        concepts: The cards, as `Concept.to_dict` gives them, in the order of removal.
        keys: Their names for files.
        model: A built-in name, a hub id, or an absolute path.
        seed: Of every random draw.
        method: `tars` or `paper`.
        settings: Further settings of the method.
        corpus: See `load_corpus`; the built-in sample where not given.
        kl_tokens: How much text the KL is measured on.
        dtype: See `load`.
        device: See `load`.
    """

    concepts: tuple[dict[str, Any], ...]
    keys: tuple[str, ...]
    model: str
    seed: int = 0
    method: str = "tars"
    settings: dict[str, Any] = field(default_factory=dict)
    corpus: str | None = None
    kl_tokens: int = 25_600
    dtype: str = "auto"
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Its folder's name: what it is, and a hash of everything that its result depends on."""
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:12]
        named = f"{'+'.join(self.keys)}-{Path(self.model).name}"
        plain = "".join(c if c.isalnum() or c in "+-._" else "_" for c in named)
        return f"{plain[:80]}-{self.method}-{self.seed}-{digest}"

    @property
    def cards(self) -> list[Concept]:
        """The concepts as cards."""
        pairs = zip(self.concepts, self.keys, strict=True)
        return [Concept.from_dict(card, where=key, key=key) for card, key in pairs]

    def method_settings(self) -> Settings:
        """The settings of the method.

        Raises:
            TarsError: A method or setting that there isn't, or one that makes no sense.
        """
        if self.method not in get_args(MethodName):
            raise unknown("method", self.method, get_args(MethodName))
        name: Any = self.method
        given = {key: setting_value(key, value, name) for key, value in self.settings.items()}
        return Settings(name=name, seed=self.seed, **given)

    def to_json(self) -> str:
        """One line, the same for the same job."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)


def run_job(job: Job) -> tuple[dict[str, bytes], str]:
    """Removes a job's concepts.

    Returns:
        The files of the result by name (what `Erasure.save` writes, and the job itself), or none
        and what went wrong: one job's failure is not the sweep's.
    """
    from tars_lens.evaluation.erasure import erase

    try:
        lens = _lens(job.model, job.dtype, job.device)
        text, settings = _corpus(job.corpus), job.method_settings()
        erasure = erase(lens, job.cards, settings=settings, corpus=text, kl_tokens=job.kl_tokens)
        with tempfile.TemporaryDirectory(prefix="tars_lens_job_") as name:
            erasure.save(name)
            files = {file.name: file.read_bytes() for file in sorted(Path(name).iterdir())}
    except TarsError as error:
        return {}, str(error)
    except Exception as error:  # whatever it was, the other jobs are to go on
        logger.exception("%s failed", job.key)
        return {}, f"{type(error).__name__}: {error}"
    return {**files, JOB_FILE: job.to_json().encode()}, ""


@lru_cache(maxsize=1)
def _lens(model: str, dtype: str, device: str) -> Any:
    """A model, which stays loaded for the worker's next job."""
    from tars_lens.model.loading import load

    return load(model, dtype=dtype, device=device, progress=False)


@lru_cache(maxsize=1)
def _corpus(source: str | None) -> Any:
    from tars_lens.text.corpus import load_corpus

    return load_corpus(source, progress=False)


def read_spec(path: Path | str) -> list[Job]:
    """The jobs of a sweep, every concept with every model, seed and method.

    A spec has `concepts` (built-in names or paths to cards; a list among them is removed
    together) and `models`, and may have `seeds` (`[0]`), `methods` (`["tars"]`), `corpus`,
    `kl_tokens`, `dtype`, `device` and a table `[settings]`. Paths are seen from its own folder.

    Raises:
        TarsError: No such file, a malformed one (names the key), or a card or setting that is.
    """
    path = user_path(path)
    spec = read_toml(path, "sweep")
    _check(spec, path)
    groups = [[g] if isinstance(g, str) else g for g in spec["concepts"]]
    cards = [[Concept.load(_placed(name, path.parent)) for name in group] for group in groups]
    models = [_placed(model, path.parent) for model in spec["models"]]
    single = {key: spec[key] for key in _SINGLE if key in spec}
    if "corpus" in single and not single["corpus"].startswith("datasets:"):
        single["corpus"] = str((path.parent / user_path(single["corpus"])).resolve())
    jobs = [
        Job(
            concepts=tuple(card.to_dict() for card in group),
            keys=tuple(card.key for card in group),
            model=model,
            seed=seed,
            method=method,
            **single,
        )
        for group, model, method, seed in product(
            cards, models, spec.get("methods", ["tars"]), spec.get("seeds", [0])
        )
    ]
    for job in jobs:
        job.method_settings()
    return list({job.key: job for job in jobs}.values())


def _placed(name: str, folder: Path) -> str:
    """A name as it is, or a path as an absolute one where it leads somewhere from the spec."""
    if name in BUILT_IN:
        return name
    path = folder / user_path(name)
    return str(path.resolve()) if path.exists() else name


def _check(spec: dict[str, Any], path: Path) -> None:
    for key in spec:
        if key not in _LISTS | _SINGLE:
            allowed = ", ".join(_LISTS | _SINGLE)
            raise TarsError(f"{path}: key {key!r} is unknown; allowed: {allowed}.")
    for key, required in _LISTS.items():
        if required and key not in spec:
            raise TarsError(f"{path}: key {key!r} is required.")
        value = spec.get(key, [0])
        if not isinstance(value, list) or not value:
            raise TarsError(f"{path}: key {key!r} must be a list that isn't empty.")
        kind = int if key == "seeds" else str
        rows = [r for v in value for r in (v if key == "concepts" and isinstance(v, list) else [v])]
        if key in spec and not all(type(row) is kind for row in rows):
            raise TarsError(f"{path}: key {key!r} must hold {kind.__name__} values alone.")
    for key, single in _SINGLE.items():
        if key in spec and type(spec[key]) is not single:
            raise TarsError(f"{path}: key {key!r} must be {single.__name__}.")
    for key in ("models", "concepts"):
        if any(isinstance(v, list) and not v for v in spec[key]):
            raise TarsError(f"{path}: key {key!r} holds an empty list.")
