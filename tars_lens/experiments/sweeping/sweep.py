"""A sweep: its jobs run wherever there is room, their results kept, and one table at the end."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tars_lens.common.cache import Advance, silent
from tars_lens.common.errors import TarsError
from tars_lens.common.files import writable_folder, write_text
from tars_lens.experiments.sweeping.jobs import Job, read_spec
from tars_lens.experiments.sweeping.local import run_locally
from tars_lens.experiments.sweeping.results import is_done, sweep_table

TABLE = "results.csv"


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
        ray_address: Of a Ray cluster; means `ray`.
        ray: Run on Ray instead of processes of our own.
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

    def finish(job: Job, problem: str) -> None:
        nonlocal done
        done += 1
        if problem:
            failed[job.key] = problem
        say(f"{job.key}{' failed' if problem else ''}", done, len(jobs))

    say(f"{len(todo)} jobs to run", done, len(jobs))
    try:
        if todo and (ray or ray_address is not None):
            from tars_lens.experiments.sweeping.on_ray import run_on_ray

            run_on_ray(todo, folder, address=ray_address, cpus=cpus_per_job, finish=finish)
        elif todo:
            count = workers or max(1, (os.cpu_count() or 2) // 2)
            run_locally(todo, folder, workers=count, finish=finish)
    finally:  # an interrupted sweep has its table too
        table = sweep_table(folder, jobs, failed)
        write_text(folder / TABLE, table.to_csv(index=False))
    return Sweep(folder, tuple(jobs), table, failed)
