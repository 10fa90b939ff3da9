"""A sweep: its jobs run wherever there is room, their results kept, and one table at the end."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tars_lens.common.cache import Advance, silent
from tars_lens.common.errors import TarsError, reason, told
from tars_lens.common.files import writable_folder, write_text
from tars_lens.experiments.sweep_jobs import JOB_FILE, Job, read_spec, run_job
from tars_lens.model.folders import whole_folder

logger = logging.getLogger(__name__)

TABLE = "results.csv"
COLUMNS = (
    *("concept", "removed_with", "model", "method", "seed", "status"),
    *("forward_known", "forward_after_max", "forward_erased", "reverse_kept", "neighbour_kept"),
    *("multilingual_kept", "kl_median", "kl_mean", "kl_p99", "edits", "verified", "seconds"),
    *("job", "error"),
)

_ATTEMPTS = 3  # how often a job is begun before its workers' deaths are held to be its fault

Submit = Callable[[Job], "Future[tuple[dict[str, bytes], str]]"]
"""Begins a job wherever there is room; its future gives what `run_job` does."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep has.

    Attributes:
        folder: Where it is kept: `results.csv`, and `jobs/` with a folder a job.
        jobs: What it was made of.
        table: See `sweep_table`.
        failed: What went wrong, by the job's key.
    """

    folder: Path
    jobs: tuple[Job, ...]
    table: pd.DataFrame
    failed: dict[str, str]

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()


def sweep(
    spec: Path | str | Sequence[Job],
    out: Path | str,
    *,
    workers: int | None = None,
    ray_address: str | None = None,
    ray: bool = False,
    cpus_per_job: int = 1,
    advance: Advance | None = None,
) -> Sweep:
    """Runs every job of a spec that has no result yet, and writes one table of all.

    Args:
        spec: A TOML file (see `read_spec`), or jobs.
        out: Where results go; those that it holds already are kept.
        workers: Processes on this machine; half of its cores where not given.
        ray_address: Of a Ray cluster (`auto`, or `ray://host:port`); means `ray`.
        ray: Run on Ray; models and corpora must be found by the same names on every machine.
        cpus_per_job: Cores that Ray gives a job.
        advance: Told the progress.

    Raises:
        TarsError: A malformed spec, a folder that can't be written, or no Ray where it was asked
            for. A job that fails is told in the table, and run again the next time.
    """
    if workers is not None and workers < 1:
        raise TarsError(f"--workers must be at least 1, got {workers}.")
    jobs = read_spec(spec) if isinstance(spec, str | Path) else list(spec)
    folder, say = writable_folder(out), advance or silent
    todo = [job for job in jobs if not is_done(folder, job)]
    todo.sort(key=lambda job: job.model)  # a worker keeps the model that it has loaded
    failed: dict[str, str] = {}
    done = len(jobs) - len(todo)
    say(f"{len(todo)} jobs to run", done, len(jobs))
    if ray or ray_address is not None:
        place = _on_ray(ray_address, cpus_per_job)
    else:
        place = _on_processes(workers or max(1, (os.cpu_count() or 2) // 2), folder)
    try:
        with place as submit:
            for job, problem in _results(todo, submit, folder):
                done += 1
                failed |= {job.key: problem} if problem else {}
                say(f"{job.key}{' failed' if problem else ''}", done, len(jobs))
    finally:  # an interrupted sweep has its table too
        table = sweep_table(folder, jobs, failed)
        write_text(folder / TABLE, table.to_csv(index=False))
    return Sweep(folder, tuple(jobs), table, failed)


def _results(jobs: Sequence[Job], submit: Submit, out: Path) -> Iterator[tuple[Job, str]]:
    """Runs jobs and keeps their results; gives each that is over, and what went wrong with it.

    A job whose worker, or its whole machine, is lost is run again.
    """
    waiting = {submit(job): (job, 1) for job in jobs}
    while waiting:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            job, attempt = waiting.pop(future)
            try:
                files, problem = future.result()
                if files:
                    store(out, job, files)
            except TarsError as error:
                problem = str(error)
            except Exception as error:  # each backend has its own for a worker that was lost
                if attempt < _ATTEMPTS:
                    what = f"{job.key} was lost ({reason(error)})"
                    logger.warning("the worker of %s; it is run again.", what)
                    waiting[submit(job)] = (job, attempt + 1)
                    continue
                problem = f"its worker died {_ATTEMPTS} times (out of memory?)."
            yield job, problem


@contextmanager
def _on_processes(workers: int, out: Path) -> Iterator[Submit]:
    """So many processes of this machine, each behind a thread that replaces it when it dies.

    A pool with one process each, as a pool in which one dies loses the jobs of all.
    """
    here, others = threading.local(), set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)

    def run(job: Job) -> tuple[dict[str, bytes], str]:
        if getattr(here, "pool", None) is None:
            here.pool = ProcessPoolExecutor(1, spawn, _begin, (out / "workers.log", threads))
        try:
            found: tuple[dict[str, bytes], str] = here.pool.submit(run_job, job).result()
        except BrokenProcessPool:
            here.pool = None
            raise
        return found

    pool = ThreadPoolExecutor(workers)
    try:
        yield lambda job: pool.submit(run, job)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()


def _begin(log: Path, threads: int) -> None:
    """Readies a worker: it ends with the sweep, and what its libraries say goes to a file."""
    import torch

    threading.Thread(target=_end_with, args=[multiprocessing.parent_process()], daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def _on_ray(address: str | None, cpus: int) -> Iterator[Submit]:
    """A Ray cluster, or one of this machine's own cores where no address is given."""
    try:
        import ray
    except ImportError as error:
        raise TarsError("a sweep on Ray needs it: pip install 'tars-lens[ray]'.") from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise TarsError(
                f"no Ray cluster can be reached at {address!r}: {reason(error)}."
            ) from error
    run: Any = ray.remote(max_retries=0)(run_job)  # a lost job is run again with a word on it

    def submit(job: Job) -> "Future[tuple[dict[str, bytes], str]]":
        placed = run.options(num_cpus=cpus, num_gpus=int(job.device != "cpu")).remote(job)
        found: Future[tuple[dict[str, bytes], str]] = placed.future()
        return found

    yield submit


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
    figures: list[dict[str, Any]] = [{} for _ in job.concepts]
    if is_done(out, job):
        file = job_folder(out, job) / "report.json"
        with told(f"cannot read {str(file)!r}", "Delete its folder."):
            report = json.loads(file.read_text(encoding="utf-8"))
            figures = [_figures(report, index) for index, _ in enumerate(job.concepts)]
    return [
        {
            "concept": card["name"],
            "removed_with": len(job.concepts) - 1,
            "model": job.model,
            "method": job.method,
            "seed": job.seed,
            "status": "done" if found else "failed" if error else "missing",
            "job": job.key,
            "error": error,
            **found,
        }
        for card, found in zip(job.concepts, figures, strict=True)
    ]


def _figures(report: dict[str, Any], index: int) -> dict[str, Any]:
    concept, kl, verified = report["concepts"][index], report["kl"] or {}, report["verified"]
    probes = {kind: found or {} for kind, found in concept["probes"].items()}
    forward = probes.get("forward", {})
    return {
        **{f"forward_{name}": forward.get(name) for name in ("known", "after_max", "erased")},
        **{
            f"{kind}_kept": probes.get(kind, {}).get("kept")
            for kind in ("reverse", "neighbour", "multilingual")
        },
        **{f"kl_{name}": kl.get(name) for name in ("median", "mean", "p99")},
        "edits": len(concept["edits"]),
        "verified": verified["rows_changed"] == verified["rows_planned"]
        and verified["others_identical"]
        and verified["restored_identical"],
        "seconds": concept["seconds"],
    }
