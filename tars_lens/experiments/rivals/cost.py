"""How long a block takes, and the most memory that the process holds meanwhile."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

_EVERY = 0.02  # seconds


@dataclass
class Cost:
    """Of a block that has run.

    Attributes:
        seconds: On the clock.
        peak_rss_bytes: The most memory that the process held, looked at fifty times a second.
        more_rss_bytes: The same less what it held when the block began.
    """

    seconds: float = 0.0
    peak_rss_bytes: int = 0
    more_rss_bytes: int = 0


@contextmanager
def measured() -> Iterator[Cost]:
    """Measures the block; the figures stand when it has ended."""
    cost, process, done = Cost(), psutil.Process(), threading.Event()
    before = process.memory_info().rss
    cost.peak_rss_bytes = before

    def watch() -> None:
        while not done.wait(_EVERY):
            cost.peak_rss_bytes = max(cost.peak_rss_bytes, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - started
        done.set()
        watcher.join()
        cost.peak_rss_bytes = max(cost.peak_rss_bytes, process.memory_info().rss)
        cost.more_rss_bytes = cost.peak_rss_bytes - before
