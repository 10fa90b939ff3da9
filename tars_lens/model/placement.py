"""Where the weights lie when a device map places them: all must stay where they can be edited."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from tars_lens.common.errors import TarsError

_CGROUP = Path("/sys/fs/cgroup/memory.max")


DeviceMap = str | dict[str, int | str] | None

_HOST = ("cpu", "disk")


def check_map(device_map: DeviceMap, name: str) -> None:
    """Refuses, before anything is read, a map that keeps layers away from where they run.

    accelerate brings such weights in for each forward pass and drops them after it, so that a row
    written in between would be lost; until then they are `meta` tensors, which hold no values and
    which TransformerLens refuses to read.

    Args:
        device_map: As `load` is given it; of a word only the outcome tells (`check_present`).
        name: What messages call the model.

    Raises:
        TarsError: What the map would keep elsewhere, what is allowed, and what to do.
    """
    away = offloaded(device_map) if isinstance(device_map, Mapping) else {}
    if away:
        raise refusal(name, away)


def offloaded(device_map: Mapping[str, Any]) -> dict[str, str]:
    """The modules that accelerate would keep away from where they run, and where.

    What is on the processor stays there only where the whole model does; beside a GPU it is
    brought to that GPU for each of its uses.
    """
    places = {module: str(place) for module, place in device_map.items()}
    alone = all(place in _HOST for place in places.values())
    return {
        module: place
        for module, place in places.items()
        if place == "disk" or (place == "cpu" and not alone)
    }


def check_present(model: torch.nn.Module, name: str) -> None:
    """Refuses a model whose weights are not all in memory where they run.

    Raises:
        TarsError: As `check_map`.
    """
    absent = [weight for weight, value in model.named_parameters() if value.is_meta]
    if absent:
        placed = offloaded(getattr(model, "hf_device_map", {}))
        raise refusal(name, placed or dict.fromkeys(absent, "no device"))


def refusal(name: str, away: Mapping[str, str]) -> TarsError:
    """What is said of modules or weights that lie elsewhere between their uses."""
    first, where = next(iter(away.items()))
    more = f" and {len(away) - 1} more" if len(away) > 1 else ""
    return TarsError(
        f"{name} doesn't fit on these devices: {first} (on {where}){more} would be kept off them "
        "between uses, where an edit would be lost. Allowed is a device map with every layer on "
        "a GPU, or every layer on the CPU. Choose bfloat16 or float16, use more GPUs, or "
        "device='cpu' without a map; ranking and export of a checkpoint on disk need no loaded "
        "model at all (inspect --vector, patch export)."
    )


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
