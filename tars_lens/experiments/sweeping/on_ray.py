"""Jobs on a Ray cluster: any number of machines, any of which may be lost."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tars_lens.common.errors import TarsError
from tars_lens.experiments.sweeping.jobs import Job
from tars_lens.experiments.sweeping.local import ATTEMPTS, Finish
from tars_lens.experiments.sweeping.results import store
from tars_lens.experiments.sweeping.running import try_job

logger = logging.getLogger(__name__)


def run_on_ray(
    jobs: Sequence[Job], out: Path, *, address: str | None, cpus: int, finish: Finish
) -> None:
    """Runs jobs as Ray tasks; results come back to this machine, which alone writes them.

    Args:
        jobs: What to run; models and corpora must be found by the same names on every machine.
        out: Where results go.
        address: Of the cluster (`auto`, or `ray://host:port`); one of this machine's own cores
            where not given.
        cpus: Cores that a job is given.
        finish: Told of each job that is over.

    Raises:
        TarsError: Ray isn't installed, or the cluster can't be reached.
    """
    ray = _ray(address)
    gpus = {True: 1, False: 0}
    run: Any = ray.remote(max_retries=0)(_task)  # a lost job is run again here, with a word on it

    def submit(job: Job) -> Any:
        return run.options(num_cpus=cpus, num_gpus=gpus[job.device != "cpu"]).remote(job.to_json())

    waiting = {submit(job): (job, 1) for job in jobs}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        for reference in ready:
            job, attempt = waiting.pop(reference)
            try:
                files, problem = ray.get(reference)
                if files:
                    store(out, job, files)
            except ray.exceptions.RayError as error:  # a worker, or its whole machine, was lost
                if attempt < ATTEMPTS:
                    logger.warning("the worker of %s was lost; it is run again.", job.key)
                    waiting[submit(job)] = (job, attempt + 1)
                    continue
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                problem = f"its worker died {ATTEMPTS} times: {reason}"
            except TarsError as error:
                problem = str(error)
            finish(job, problem)


def _task(line: str) -> tuple[dict[str, bytes], str]:
    return try_job(Job.from_json(line))


def _ray(address: str | None) -> Any:
    try:
        import ray
    except ImportError as error:
        raise TarsError("a sweep on Ray needs it: pip install 'tars-lens[ray]'.") from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise TarsError(f"no Ray cluster can be reached at {address!r}: {reason}") from error
    return ray
