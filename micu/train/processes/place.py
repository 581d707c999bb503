"""Which of several processes this one is, from what torchrun or Slurm say; needs no torch.

torchrun's variables count before Slurm's. Under Slurm a process is one of several if it is a task
of a job step (`srun`); a batch script without srun is one process, whatever `--ntasks` says.
"""

import logging
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from micu.base.errors import ConfigError

FIRST_PORT, PORTS = 12000, 20000
"""Slurm jobs meet at port 12000 + (31 * job + step) mod 20000, unless `MASTER_PORT` says otherwise:
below the ports that Linux gives out by itself."""
LAUNCHER = ".launcher"
"""File in a run's folder that names the torchrun which started the run."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """One process among those of a run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""
    meet_at: str = "env://"
    """Where the processes find each other; `env://` is what torchrun has arranged."""
    restarts: int = 0
    """How often torchrun has started the processes of this machine again."""
    launcher: str = ""
    """Names the torchrun that started this process; empty for none."""

    def device_name(self, typed: str, gpus: int) -> str:
        """What `--device` means for one of several processes.

        Args:
            typed: `auto`, `cpu` or `cuda`; with one process anything.
            gpus: CUDA devices that this process sees.

        Returns:
            `cuda:LOCAL_RANK`, or the only device that Slurm lets a task see; else the CPU.

        Raises:
            ConfigError: One device cannot serve all, or there are too few.
        """
        if self.size == 1:
            return typed
        if typed == "cpu" or (typed == "auto" and not gpus):
            return "cpu"
        if typed not in ("auto", "cuda"):
            raise ConfigError(
                f"--device: expected auto, cpu or cuda with {self.size} processes, got {typed!r}: "
                "each process takes the GPU of its local rank"
            )
        if gpus == 1 and not self.launcher and self.meet_at != "env://":
            return "cuda:0"
        if self.local_rank >= gpus:
            raise ConfigError(
                f"--device {typed}: process {self.local_rank} of this machine has no GPU, there "
                f"are {gpus}; start as many processes as GPUs, or name --device cpu"
            )
        return f"cuda:{self.local_rank}"


def find_place(environ: Mapping[str, str]) -> Place:
    """The place that the environment gives this process.

    Raises:
        ConfigError: Variables are missing or are no numbers.
    """
    if "WORLD_SIZE" in environ or "RANK" in environ:
        local = ("LOCAL_RANK",) if "LOCAL_RANK" in environ else ()
        numbers = _numbers(environ, ("RANK", "WORLD_SIZE", *local))
        if numbers["WORLD_SIZE"] > 1:
            _check_master(environ)
        launcher = ""
        if "TORCHELASTIC_RUN_ID" in environ:
            launcher = f"{environ['TORCHELASTIC_RUN_ID']} {_parent()}"
            _check_restarts(environ)
        return Place(
            numbers["RANK"],
            numbers["WORLD_SIZE"],
            numbers.get("LOCAL_RANK", 0),
            restarts=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
            launcher=launcher,
        )
    if environ.get("SLURM_NTASKS", "1") == "1" or "SLURM_PROCID" not in environ:
        return Place()
    if "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" not in environ:
        logger.warning(
            "SLURM_NTASKS is %s, but this is no task of srun: training in one process",
            environ["SLURM_NTASKS"],
        )
        return Place()
    numbers = _numbers(environ, ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
    return Place(
        numbers["SLURM_PROCID"],
        numbers["SLURM_NTASKS"],
        numbers["SLURM_LOCALID"],
        f"tcp://{_slurm_address(environ)}",
    )


def _check_master(environ: Mapping[str, str]) -> None:
    """Refuse processes that are not told where to meet, which would look like one that is gone."""
    is_given = {
        "MASTER_ADDR": bool(environ.get("MASTER_ADDR")),
        "MASTER_PORT": environ.get("MASTER_PORT", "").isdecimal(),
    }
    bad = [name for name, given in is_given.items() if not given]
    if bad:
        raise ConfigError(
            f"{', '.join(bad)}: expected where process 0 of several listens, got "
            f"{', '.join(repr(environ.get(name)) for name in bad)}; start the processes with "
            "torchrun or srun, export the host and a free port of it, or unset RANK and WORLD_SIZE"
        )


def _check_restarts(environ: Mapping[str, str]) -> None:
    """Refuse restarts that would meet the addresses of the dead.

    torchrun keeps one address book for all starts, and counts the starts of each machine apart, so
    that processes of several machines cannot tell which pages are theirs.
    """
    is_shared = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_spread = environ.get("LOCAL_WORLD_SIZE") != environ["WORLD_SIZE"]
    if environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and is_shared and is_spread:
        raise ConfigError(
            "torchrun --max-restarts: processes of several machines would not find each other "
            "again; export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun"
        )


def _numbers(environ: Mapping[str, str], names: tuple[str, ...]) -> dict[str, int]:
    bad = [name for name in names if not environ.get(name, "").isdecimal()]
    if bad:
        raise ConfigError(
            f"{', '.join(bad)}: expected a number, got "
            f"{', '.join(repr(environ.get(name)) for name in bad)}; start several processes with "
            "torchrun or srun, or unset these variables"
        )
    return {name: int(environ[name]) for name in names}


def _slurm_address(environ: Mapping[str, str]) -> str:
    """`host:port` of the first task: `MASTER_ADDR` and `MASTER_PORT`, or by the rule above."""
    nodes = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_JOB_NODELIST", ""))
    host = environ.get("MASTER_ADDR") or first_host(nodes)
    if not host:
        raise ConfigError("MASTER_ADDR: not set, and Slurm names no nodes; export MASTER_ADDR=HOST")
    port = environ.get("MASTER_PORT")
    if port is None:
        job, step = (int(environ.get(f"SLURM_{name}_ID", "0")) for name in ("JOB", "STEP"))
        port = str(FIRST_PORT + (31 * job + step) % PORTS)
    return f"{host}:{port}"


def first_host(nodes: str) -> str:
    """The first name of a list as Slurm writes it: `gpu[07-09,12],login` gives `gpu07`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else ""


def _parent() -> str:
    """The parent process, in words that no other process will ever have."""
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat")
    # Field 22 is when it started, in ticks since boot; the second field may hold blanks.
    since = stat.read_text().rpartition(")")[2].split()[19] if stat.is_file() else ""
    return f"{socket.gethostname()} {parent} {since}".strip()
