"""What memory and speed there is: of this machine, or of one that a plan is made for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from tars_lens.common.errors import TarsError

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_MEASURE_WIDTH = 1024
_MEASURE_BYTES = 1 << 26


@dataclass(frozen=True)
class Machine:
    """What a plan reckons with.

    Attributes:
        name: What reports call it.
        devices: How many GPUs; 0 for the processor.
        device_bytes: Memory of each GPU.
        host_bytes: Memory of the machine that is free.
        flops: Multiplications and additions a second that a forward pass gets, on one device.
        read_bytes: Bytes a second that one device reads from its memory.
        disk_bytes: Bytes a second from disk.
    """

    name: str
    devices: int
    device_bytes: int
    host_bytes: int
    flops: float
    read_bytes: float
    disk_bytes: float = 1e9

    @property
    def usable_bytes(self) -> int:
        """Where the weights may lie without going over the bus."""
        return self.devices * self.device_bytes or self.host_bytes


def this_processor() -> Machine:
    """This machine's processor, its speed measured in a quarter of a second."""
    a = torch.randn(_MEASURE_WIDTH, _MEASURE_WIDTH)
    flops = 2 * _MEASURE_WIDTH**3 / _fastest(lambda: a @ a)
    memory = torch.ones(_MEASURE_BYTES // 4)
    read = _MEASURE_BYTES / _fastest(memory.sum)
    threads = torch.get_num_threads()
    # a forward pass is not all large products: on SmolLM2-135M it gets about half of their speed
    return Machine(f"{threads} processor threads", 0, 0, free_host_bytes(), flops / 2, read)


def gpus(
    count: int, gigabytes: float = 80, *, teraflops: float = 400, gigabytes_a_second: float = 2000
) -> Machine:
    """So many GPUs; by default of the size and about half of the speed of one H100.

    Raises:
        TarsError: None of them, or none of their memory.
    """
    if count < 1 or gigabytes <= 0:
        raise TarsError(f"a plan for GPUs needs at least one with memory, got {count}.")
    name = f"{count} GPU{'s' if count > 1 else ''} of {gigabytes:g} GB"
    size = int(gigabytes * 1e9)
    return Machine(name, count, size, free_host_bytes(), teraflops * 1e12, gigabytes_a_second * 1e9)


def free_host_bytes() -> int:
    """Memory that this process may still take: of the machine, and of its container's share."""
    free = psutil.virtual_memory().available
    try:
        limit = int(_CGROUP.read_text())
    except (OSError, ValueError):  # no container, or "max"
        return free
    return min(free, max(0, limit - psutil.Process().memory_info().rss))


def free_bytes(device: torch.device) -> int:
    """Memory that is free where a device keeps its tensors."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes()


def _fastest(run: Callable[[], Any], seconds: float = 0.1) -> float:
    """The least time that one call took, of as many as fit into so many seconds."""
    run()
    best, stop = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < stop:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best
