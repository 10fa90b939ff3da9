"""A worker process: reads a job a line, writes a reply a line, until its input ends.

Run as `python -m tars_lens.experiments.sweeping.worker OUT`.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tars_lens.common.errors import TarsError
from tars_lens.experiments.sweeping.jobs import Job
from tars_lens.experiments.sweeping.results import store
from tars_lens.experiments.sweeping.running import try_job


def main(argv: Sequence[str]) -> None:
    """Works until standard input ends."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    for line in sys.stdin:
        job = Job.from_json(line)
        files, problem = try_job(job)
        try:
            if files:
                store(Path(argv[0]), job, files)
        except TarsError as error:
            problem = str(error)
        replies.write(json.dumps({"error": problem}) + "\n")
        replies.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
