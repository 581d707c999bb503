"""How much memory there is to take."""

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
SHARED = Path("/dev/shm")


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
