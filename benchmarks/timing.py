"""What the benchmarks share: interleaved repeats, peak memory, a named machine, a table."""

import argparse
import gc
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from tars_lens.common.files import write_text

Case = Callable[[], Any]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def arguments(
    description: str | None, *, repeats: int | None = None, model: str = "smollm2-135m"
) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=model, help="built-in name, hub id, folder or .gguf")
    parser.add_argument("--out", type=Path, help="write the table to this CSV file too")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help=f"default {repeats}")
    return parser


def interleaved(
    cases: Mapping[str, Case], repeats: int, *, before: Case | None = None
) -> dict[str, float]:
    """Median seconds of each case, after one warm-up, the cases taking turns.

    Taking turns spreads whatever else the machine does over all cases alike. With `before`, which
    is called ahead of each run and not timed, there is no warm-up.
    """
    for run in () if before is not None else cases.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            gc.collect()
            if before is not None:
                before()
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def compared(seconds: Mapping[str, float], reference: str) -> pd.DataFrame:
    """One row a case: columns case, seconds, ratio (to the reference's seconds)."""
    return pd.DataFrame(
        [
            {"case": name, "seconds": taken, "ratio": taken / seconds[reference]}
            for name, taken in seconds.items()
        ]
    )


def added_peak_bytes(run: Case) -> float:
    """How far the resident memory rises above its level before; NaN where Linux doesn't tell."""
    gc.collect()
    if not reset_peak():
        return float("nan")
    before = peak_bytes()
    run()
    return peak_bytes() - before


def reset_peak() -> bool:
    """Makes the peak of resident memory its present value, where Linux allows it."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> float:
    """The peak of resident memory since the last reset; NaN without a Linux `/proc`."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return float("nan")
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def show(title: str, frame: pd.DataFrame, *, reference: str, out: Path | None) -> None:
    """Prints a table under its title and the machine's name, and writes it as CSV."""
    where = machine()
    print(f"{title}\n{where}\nreference: {reference}\n")
    print(frame.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.3g}"))
    if out is not None:
        write_text(out, frame.assign(machine=where).to_csv(index=False))


def machine() -> str:
    """Processor, cores, memory and the thread count of torch."""
    import psutil
    import torch  # late: a parent that only waits for its children stays small

    gib = psutil.virtual_memory().total / 2**30
    return (
        f"{_processor()}, {os.cpu_count()} cores, {gib:.0f} GiB, torch {torch.__version__}, "
        f"{torch.get_num_threads()} torch threads"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
