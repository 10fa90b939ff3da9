"""One job, run by a worker: what it makes, as files in memory."""

import logging
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from tars_lens.common.errors import TarsError
from tars_lens.experiments.sweeping.jobs import Job

logger = logging.getLogger(__name__)

JOB_FILE = "job.json"


def run_job(job: Job) -> dict[str, bytes]:
    """Removes the job's concepts; the model stays loaded for the worker's next job.

    Returns:
        The files of the result by name: what `Erasure.save` writes, and the job itself.

    Raises:
        TarsError: What `load`, `load_corpus` and `erase` raise.
    """
    from tars_lens.evaluation.erasure import erase

    lens = _lens(job.model, job.dtype, job.device)
    erasure = erase(
        lens,
        job.cards,
        settings=job.method_settings(),
        corpus=_corpus(job.corpus),
        kl_tokens=job.kl_tokens,
    )
    with tempfile.TemporaryDirectory(prefix="tars_lens_job_") as name:
        erasure.save(name)
        files = {file.name: file.read_bytes() for file in sorted(Path(name).iterdir())}
    return {**files, JOB_FILE: job.to_json().encode()}


def try_job(job: Job) -> tuple[dict[str, bytes], str]:
    """`run_job`, or nothing and what went wrong; one job's failure is not the sweep's."""
    try:
        return run_job(job), ""
    except TarsError as error:
        return {}, str(error)
    except Exception as error:  # whatever it was, the other jobs are to go on
        logger.exception("%s failed", job.key)
        return {}, f"{type(error).__name__}: {error}"


@lru_cache(maxsize=1)
def _lens(model: str, dtype: str, device: str) -> Any:
    from tars_lens.model.loading import load

    return load(model, dtype=dtype, device=device, progress=False)


@lru_cache(maxsize=1)
def _corpus(source: str | None) -> Any:
    from tars_lens.text.corpus import load_corpus

    return load_corpus(source, progress=False)
