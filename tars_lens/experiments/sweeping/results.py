"""What a sweep keeps: each job's folder, whole or not at all, and one table of them."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tars_lens.common.errors import told
from tars_lens.experiments.sweeping.jobs import Job
from tars_lens.experiments.sweeping.running import JOB_FILE
from tars_lens.model.folders import whole_folder

COLUMNS = (
    *("concept", "removed_with", "model", "method", "seed", "status"),
    *("forward_known", "forward_after_max", "forward_erased", "reverse_kept", "neighbour_kept"),
    *("multilingual_kept", "kl_median", "kl_mean", "kl_p99", "edits", "verified", "seconds"),
    *("job", "error"),
)


def job_folder(out: Path, job: Job) -> Path:
    """Where a job's result is kept."""
    return out / "jobs" / job.key


def is_done(out: Path, job: Job) -> bool:
    """Whether a job's result is there; as folders appear whole, all of it is."""
    return (job_folder(out, job) / JOB_FILE).is_file()


def store(out: Path, job: Job, files: Mapping[str, bytes]) -> None:
    """Keeps a job's result, whole or not at all; one that is there already stays.

    Raises:
        TarsError: The folder can't be written.
    """
    if is_done(out, job):
        return
    shutil.rmtree(job_folder(out, job), ignore_errors=True)
    with whole_folder(job_folder(out, job)) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)


def sweep_table(
    out: Path | str, jobs: Sequence[Job], errors: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """One row for each concept of each job.

    Args:
        out: The sweep's folder.
        jobs: What it was made of.
        errors: What went wrong, by the job's key.

    Returns:
        The columns of `COLUMNS`: status is `done`, `failed` (error says why) or `missing`;
        figures are those of `report.json`, the KL and `verified` of the job as a whole.
    """
    rows = [row for job in jobs for row in _rows(Path(out), job, (errors or {}).get(job.key, ""))]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(out: Path, job: Job, error: str) -> list[dict[str, Any]]:
    report = _report(out, job)
    found = []
    for index, card in enumerate(job.concepts):
        row = {
            "concept": card["name"],
            "removed_with": len(job.concepts) - 1,
            "model": job.model,
            "method": job.method,
            "seed": job.seed,
            "status": "done" if report else "failed" if error else "missing",
            "job": job.key,
            "error": error,
        }
        found.append(row | (_figures(report, index) if report else {}))
    return found


def _report(out: Path, job: Job) -> dict[str, Any] | None:
    if not is_done(out, job):
        return None
    file = job_folder(out, job) / "report.json"
    with told(f"cannot read {str(file)!r}", "Delete its folder."):
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for index, _ in enumerate(job.concepts):
            _figures(report, index)
    return report


def _figures(report: dict[str, Any], index: int) -> dict[str, Any]:
    concept, kl, verified = report["concepts"][index], report["kl"] or {}, report["verified"]
    probes = concept["probes"]
    forward = probes.get("forward") or {}
    kept = {f"{kind}_kept": (probes.get(kind) or {}).get("kept") for kind in _KEPT}
    return {
        "forward_known": forward.get("known"),
        "forward_after_max": forward.get("after_max"),
        "forward_erased": forward.get("erased"),
        **kept,
        **{f"kl_{name}": kl.get(name) for name in ("median", "mean", "p99")},
        "edits": len(concept["edits"]),
        "verified": verified["rows_changed"] == verified["rows_planned"]
        and verified["others_identical"]
        and verified["restored_identical"],
        "seconds": concept["seconds"],
    }


_KEPT = ("reverse", "neighbour", "multilingual")
