"""What this process may compute on: the device that is typed after `--device`, and cores."""

import os

from micu.errors import ConfigError


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
