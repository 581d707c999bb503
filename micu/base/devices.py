"""What this process may compute on: the device that is typed after `--device`, and cores.

Also waiting for a device, and the memory that it took.
"""

import os
import sys
from typing import TYPE_CHECKING

from micu.base.errors import ConfigError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> str:
    """The device that `name` means here: `auto` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: It is not a device name, or this machine does not have it.
    """
    import torch

    has = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if has[kind])
    kind, _, index = name.partition(":")
    if kind not in has or not (index == "" or index.isdigit()):
        raise ConfigError(f"--device: expected auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if int(index or 0) >= has[kind]:
        raise ConfigError(f"--device {name}: this machine has {has[kind]} {kind} devices")
    return name


def count_cores() -> int:
    """Cores that this process may run on, where a job or a container has some of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wait_for(device: "torch.device") -> None:
    """Return once the device has done all that it was given, so that a clock can be read."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: "torch.device") -> int | None:
    """Most bytes that torch has held on a GPU of NVIDIA; elsewhere, that this process has.

    None where the system does not say.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
