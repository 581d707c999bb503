"""What this process may compute on: the device that is typed after `--device`, cores and memory.

Also waiting for a device, and the memory that it took.
"""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from micu.base.errors import ConfigError

if TYPE_CHECKING:
    import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
SHARED = Path("/dev/shm")


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


def parse_devices(typed: str) -> tuple[str, ...]:
    """The devices that `all`, `0,1,3` or `cpu:2` names: CUDA's, or so many processes of the CPU.

    Raises:
        ConfigError: It names none, one twice, or one that this machine does not have.
    """
    import torch

    found = re.fullmatch(r"cpu:([1-9][0-9]{0,3})", typed)
    if found:
        return ("cpu",) * int(found[1])
    gpus = torch.cuda.device_count()
    numbers = [str(n) for n in range(gpus)] if typed == "all" else typed.split(",")
    known = all(re.fullmatch("0|[1-9][0-9]{0,3}", n) and int(n) < gpus for n in numbers)
    if not numbers or not known or len(set(numbers)) < len(numbers):
        raise ConfigError(
            f"--devices: expected all, different numbers such as 0,1,3, or cpu:2, got {typed!r} on "
            f"a machine with {gpus} CUDA devices; without one type --devices cpu:2"
        )
    return tuple(f"cuda:{n}" for n in numbers)


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


def available_memory() -> int | None:
    """Bytes that this process may still take without swapping; None if the system does not say.

    The least of what the machine has left and what its container may have.
    """
    known = [size for size in (_machine(), _container()) if size is not None]
    return min(known, default=None)


def shared_memory() -> int | None:
    """Bytes free where torch puts what processes share; None if there is no such place."""
    try:
        space = os.statvfs(SHARED)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize


def _machine() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


def _container() -> int | None:
    """What the control group has left, page cache counted as free; None without a limit."""
    for limit, used in (
        (CGROUP / "memory.max", CGROUP / "memory.current"),
        (CGROUP / "memory/memory.limit_in_bytes", CGROUP / "memory/memory.usage_in_bytes"),
    ):
        try:
            bound, taken = limit.read_text().strip(), int(used.read_text())
            statistics = (used.parent / "memory.stat").read_text().split()
        except (OSError, ValueError):
            continue
        if not bound.isdigit():
            return None
        counts = dict(zip(statistics[::2], statistics[1::2], strict=False))
        return max(0, int(bound) - taken + int(counts.get("inactive_file", 0)))
    return None
