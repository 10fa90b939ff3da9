"""The folder of a run, read and checked before anything is made of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tars_lens.common.errors import TarsError, reason
from tars_lens.common.files import user_path

SCHEMA = 1

_TRUE = {"true": True, "1": True, "false": False, "0": False, "": False}

# of each table: the columns of text, of numbers and of truth values that are needed
_TABLES: dict[str, tuple[str, str, str]] = {
    "probes": ("concept kind language prompt answer", "p_before p_after kept", "known"),
    "edits": ("concept role label", "layer neuron cosine old_norm new_norm", ""),
    "kl_worst": ("context token next", "kl", "names_concept"),
    "kl_histogram": ("", "bin_low bin_high count elsewhere_count", ""),
    "texts": ("concept prompt before after", "", ""),
    "propagation": ("token", "prompt position layer p_before p_after", ""),
    "propagation_summary": (
        "text",
        "prompt first_top_layer largest_before stopped_layer largest_after",
        "",
    ),
    "attribution": ("component label", "prompt layer logit_before logit_after", ""),
    "edit_effects": ("label role mode kind", "effect", ""),
    "interference": ("edited concept", "forward_after reverse_kept", ""),
    "depth": ("concept prompt", "largest_before largest_after layer_before layer_after", ""),
    "neurons_used": (
        "concept kind role reads_or_writes new_tokens reversed_tokens old_tokens",
        "layer neuron cosine",
        "",
    ),
    "parts": (
        "concept kind unit why",
        "layer neuron threshold own_prompts own_least near_most plain_p99 speaks strength",
        "",
    ),
    "languages_by_layer": ("concept language prompt answer word", "layer p_before p_after", ""),
    "curve": ("concept", "edits forward_worst neighbours_kept plain_kl", ""),
    "trajectory": ("", "step probability angle_degrees", ""),
    "null": ("source", "quantile cosine", ""),
    "spoken": ("neuron says_base says_edited context token", "window position kl bound", ""),
}
# numbers and truth values that a table may have beside
_NUMBERS = ("rank_before", "rank_after", "cosine_before", "cosine_after", "vectors", "threshold")
_TRUTHS = ("top_before", "top_after", "top_substitute")

_FIGURES = ("median", "mean", "p95", "p99", "max")
_NUMBER = (int, float)
_MAYBE = (int, float, type(None))
_SHAPE: dict[str, Any] = {
    "model": {"name": str, "sha256": str, "layers": int, "d_model": int, "d_mlp": int},
    "method": {"name": str, "seed": int},
    "concepts": [
        {
            "name": str,
            "edits": list,
            "seconds": _NUMBER,
            "probes": {
                "forward": {
                    "n": int,
                    "known": int,
                    "before_mean": _MAYBE,
                    "after_mean": _MAYBE,
                    "after_max": _MAYBE,
                    "erased": _MAYBE,
                },
                "reverse": {"n": int, "known": int, "kept": _MAYBE},
                "neighbour": {"n": int, "known": int, "kept": _MAYBE, "worst_kept": _MAYBE},
                "multilingual": {"n": int, "known": int, "kept": _MAYBE},
            },
        }
    ],
    "verified": {
        "rows_changed": int,
        "rows_planned": int,
        "others_identical": bool,
        "restored_identical": bool,
    },
    "cost": {"seconds": _NUMBER, "peak_rss_bytes": _NUMBER},
}
_KL: dict[str, Any] = {"corpus": str, "tokens": int, **dict.fromkeys(_FIGURES, _MAYBE)}


_CERTIFICATE: dict[str, Any] = {
    **_KL,
    **dict.fromkeys(("unchanged", "unchanged_from_silenced", "hosts_kl_mean"), _NUMBER),
    "last_layer": (dict, type(None)),
}
_LAST_LAYER: dict[str, Any] = {
    **{"neurons": list, "silent": _NUMBER, "held": bool},
    **{"kl": {"max": _NUMBER}, "bound": {"max": _NUMBER}},
}


@dataclass(frozen=True)
class Run:
    """What `tars-lens erase` left in a folder.

    Attributes:
        report: `report.json`.
        tables: By name, those of the known tables that are there and have rows.
        certificate: What `tars-lens certify --out` wrote into the same folder, if it did.
    """

    report: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    certificate: dict[str, Any] | None = None


def load_run(folder: Path | str) -> Run:
    """Reads a run's report and tables; one that isn't there, or is of an earlier run, is left out.

    Raises:
        TarsError: No such folder, no `report.json` in it, one of another schema or shape, or a
            table that can't be read.
    """
    folder = user_path(folder)
    report = _report(folder)
    tables = {}
    certificate = _certificate(folder)
    named = [*report.get("tables", list(_TABLES)), *(["spoken"] if certificate else [])]
    for name in _TABLES:
        path = folder / f"{name}.csv"
        if name in named and path.is_file():
            table = _table(path, name)
            if len(table):
                tables[name] = table
    return Run(report, tables, certificate)


def _certificate(folder: Path) -> dict[str, Any] | None:
    path = folder / "certificate.json"
    if not path.is_file():
        return None
    found = _json(path, "Run certify again, or remove the file.")
    wrong = _differs(found, _CERTIFICATE, "")
    if not wrong and found["last_layer"] is not None:
        wrong = _differs(found["last_layer"], _LAST_LAYER, "last_layer.")
    if wrong:
        raise TarsError(f"{str(path)!r} is no certificate: {wrong}. Run certify again.")
    return dict(found)


def _json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TarsError(
            f"{str(path)!r} can't be read as JSON: {reason(error)}. {remedy}"
        ) from error


def _report(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise TarsError(
            f"there is no folder {str(folder)!r}: give one that `tars-lens erase` made."
        )
    path = folder / "report.json"
    if not path.is_file():
        raise TarsError(
            f"{str(folder)!r} has no report.json: give a folder that `tars-lens erase` made."
        )
    report = _json(path, "Run erase again.")
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        given = report.get("schema") if isinstance(report, dict) else None
        raise TarsError(
            f"{str(path)!r} has schema {given!r}; this version reads schema {SCHEMA}. Make the run "
            "and the report with one version of tars_lens."
        )
    wrong = _differs(report, _SHAPE, "")
    if not wrong and "kl" not in report:
        wrong = "kl is missing"
    if not wrong and report["kl"] is not None:
        wrong = _differs(report["kl"], {**_KL, "elsewhere": dict}, "kl.")
        wrong = wrong or _differs(report["kl"]["elsewhere"], {**_KL, "corpus": object}, "")
    wrong = wrong or _differs(report.get("tables", ["probes"]), [str], "tables.")
    if wrong:
        raise TarsError(f"{str(path)!r} is not a run's report: {wrong}. Run erase again.")
    return report


def _differs(value: Any, shape: Any, where: str) -> str:
    """In what way a value has not the shape that it should have; empty where it has."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{where.rstrip('.') or 'it'} is no object"
        for key, inner in shape.items():
            if key not in value and inner is not object:
                return f"{where}{key} is missing"
            found = _differs(value.get(key), inner, f"{where}{key}.")
            if found:
                return found
        return ""
    if isinstance(shape, list):
        if not isinstance(value, list) or not value:
            return f"{where.rstrip('.')} is no list, or empty"
        parts = (_differs(v, shape[0], f"{where}{i}.") for i, v in enumerate(value))
        return next((part for part in parts if part), "")
    wrong_truth = isinstance(value, bool) and shape in (int, _NUMBER, _MAYBE)
    if wrong_truth or not isinstance(value, shape):
        return f"{where.rstrip('.')} is {value!r}"
    return ""


def _table(path: Path, name: str) -> pd.DataFrame:
    # all as text at first: a token that reads "null" or "nan" is no missing value
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError) as error:
        raise TarsError(
            f"{str(path)!r} can't be read as a table: {reason(error)}. Run erase again."
        ) from error
    texts, numbers, truths = (columns.split() for columns in _TABLES[name])
    lacking = [c for c in (*texts, *numbers, *truths) if c not in frame]
    if lacking:
        raise TarsError(
            f"{str(path)!r} lacks the columns {', '.join(lacking)}. Make the run and the report "
            "with one version of tars_lens, or remove the table."
        )
    for column in (*numbers, *(c for c in _NUMBERS if c in frame)):
        frame[column] = pd.to_numeric(frame[column], errors="coerce")
    for column in (*truths, *(c for c in _TRUTHS if c in frame)):
        frame[column] = [_TRUE.get(value.lower(), True) for value in frame[column]]
    return frame
