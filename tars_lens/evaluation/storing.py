"""Results on disk: whole files, the same bytes for the same figures, and parts to resume from."""

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import pandas as pd

from tars_lens.common.files import write_json, write_text
from tars_lens.evaluation.measure import Result

logger = logging.getLogger(__name__)

_FORMAT = 1
_DIGITS = 6


class Store:
    """A folder of finished measures, for `--resume`.

    Args:
        folder: Where parts are kept; nothing is kept without one.
        fingerprint: What every part depends on: model, subject, cards, suite, seed, versions.
        resume: Read parts that a stopped run has left.
    """

    def __init__(self, folder: Path | None, fingerprint: str, *, resume: bool) -> None:
        self.folder, self.fingerprint, self.resume = folder, fingerprint, resume

    def load(self, subject: str, digest: str, measure: str) -> Result | None:
        """A part that is whole and of this very evaluation, or `None`."""
        if self.folder is None or not self.resume:
            return None
        try:
            table = json.loads(self._path(subject, digest, measure).read_text(encoding="utf-8"))
            interval = table["interval"]
            return Result(
                measure,
                table["headline"],
                table["figures"],
                tuple(interval) if interval else None,
                pd.DataFrame(table["items"], columns=table["columns"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, subject: str, digest: str, result: Result) -> None:
        """Writes a part."""
        if self.folder is None:
            return
        items = result.items.astype(object).where(result.items.notna(), None)
        write_json(
            self._path(subject, digest, result.measure),
            {
                "headline": result.headline,
                "figures": finite(result.figures),
                "interval": result.interval,
                "columns": list(result.items.columns),
                "items": items.to_dict("records"),
            },
        )

    def _path(self, subject: str, digest: str, measure: str) -> Path:
        parts = (str(_FORMAT), self.fingerprint, subject, digest, measure)
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        if self.folder is None:
            raise ValueError("a store without a folder keeps nothing")
        return self.folder / f"{file_name(subject)}-{measure}-{key}.json"


def file_name(subject: str) -> str:
    """A subject's name as a part of a file's."""
    return subject.replace(" ", "_")


def write_table(path: Path, items: pd.DataFrame) -> None:
    """Writes items as CSV, floats with six significant digits."""
    write_text(path, items.to_csv(index=False, float_format=f"%.{_DIGITS}g"))


def rounded(value: Any) -> Any:
    """Plain values with every float at six significant digits, and NaN as `None`."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def finite(value: Any) -> Any:
    """Plain values with `None` for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
