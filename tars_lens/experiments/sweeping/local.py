"""Jobs on this machine's cores: worker processes, each with a thread that feeds it."""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tars_lens.experiments.sweeping.jobs import Job

logger = logging.getLogger(__name__)

Finish = Callable[[Job, str], None]
"""Told of each job that is over, and what went wrong with it (`""`: nothing)."""

ATTEMPTS = 3
"""How often a job is begun before its workers' deaths are held to be its fault."""


def run_locally(jobs: Sequence[Job], out: Path, *, workers: int, finish: Finish) -> None:
    """Runs jobs in so many processes; one that dies is replaced and its job run again.

    A model stays loaded in its process, so jobs of one model should follow one another. Ctrl-C
    ends the workers; what was finished is kept.
    """
    todo: queue.SimpleQueue[tuple[Job, int]] = queue.SimpleQueue()
    for job in jobs:
        todo.put((job, 1))
    over: queue.SimpleQueue[tuple[Job, str] | None] = queue.SimpleQueue()
    crew = [_Worker(out, todo, over, workers) for _ in range(min(workers, len(jobs)))]
    try:
        for worker in crew:
            worker.start()
        left = len(crew)
        while left:
            event = over.get()
            if event is None:
                left -= 1
            else:
                finish(*event)
    finally:
        for worker in crew:
            worker.stop()


class _Worker(threading.Thread):
    """Feeds jobs to one process at a time until there are none."""

    def __init__(
        self,
        out: Path,
        todo: "queue.SimpleQueue[tuple[Job, int]]",
        over: "queue.SimpleQueue[tuple[Job, str] | None]",
        workers: int,
    ) -> None:
        super().__init__(daemon=True)
        self._out, self._todo, self._over = out, todo, over
        threads = max(1, (os.cpu_count() or 1) // workers)
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self) -> None:
        try:
            while not self._stopped:
                try:
                    job, attempt = self._todo.get_nowait()
                except queue.Empty:
                    break
                self._one(job, attempt)
        finally:
            self._end()
            self._over.put(None)

    def stop(self) -> None:
        """Ends the process; its thread then sees that there is nothing to wait for."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def _one(self, job: Job, attempt: int) -> None:
        reply = self._ask(job)
        if reply is not None:
            self._over.put((job, str(json.loads(reply)["error"])))
        elif self._stopped:
            return
        elif attempt < ATTEMPTS:
            logger.warning("the worker of %s was lost; it is run again.", job.key)
            self._todo.put((job, attempt + 1))
        else:
            self._over.put((job, f"its worker died {ATTEMPTS} times (out of memory?)."))

    def _ask(self, job: Job) -> str | None:
        """The process's reply, or nothing where it died."""
        process = self._alive()
        if process.stdin is None or process.stdout is None:
            return None
        try:
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except OSError:
            reply = ""
        if not reply.endswith("\n"):
            self._end()
            return None
        return reply

    def _alive(self) -> "subprocess.Popen[str]":
        if self._process is None:
            with (self._out / "workers.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tars_lens.experiments.sweeping.worker", str(self._out)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C is for the sweep, which then ends its workers
                )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
