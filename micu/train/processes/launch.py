"""`micu-train --devices`: the processes of one training on one machine, started as torchrun would.

They end together: where one dies, the others would wait for it for ever. What they end with is what
the run ends with, which torchrun makes a 1.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import click

from micu.base.devices import count_cores
from micu.base.process import EXIT_STOPPED, stop_signals

GRACE_S = 60.0
"""How long processes may go on once one of them has ended badly, s: they notice, and save."""
POLL_S = 0.1


def train_on(devices: Sequence[str], words: Sequence[str]) -> int:
    """Run a training in a process for each device, and return its exit code.

    A signal to stop is passed on, once, to all of them.

    Args:
        devices: As `micu.base.devices.parse_devices` returns them.
        words: Of `micu-train`, without `--devices`.
    """
    environment = {
        "OMP_NUM_THREADS": str(max(1, count_cores() // len(devices))),
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(len(devices)),
    }
    on_gpus = devices[0] != "cpu"
    if on_gpus:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        numbers = [int(device.removeprefix("cuda:")) for device in devices]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(
            seen[number] if seen != [""] else str(number) for number in numbers
        )
    command = [sys.executable, "-m", "micu.cli.train", *words]
    command += ["--device", "cuda" if on_gpus else "cpu"]
    processes: list[subprocess.Popen[bytes]] = []
    with stop_signals() as stop:
        try:
            for rank in range(len(devices)):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                processes.append(
                    # In a session of its own: Ctrl-C reaches it through here alone.
                    subprocess.Popen(command, env={**environment, **own}, start_new_session=True)
                )
            is_told, deadline = False, float("inf")
            while any(process.poll() is None for process in processes):
                if stop.name and not is_told:
                    is_told = True
                    for process in processes:
                        process.send_signal(signal.Signals[stop.name])
                bad = [process for process in processes if process.returncode]
                if bad and deadline == float("inf"):
                    deadline = time.monotonic() + GRACE_S
                if time.monotonic() > deadline:
                    _kill(processes)
                time.sleep(POLL_S)
        finally:  # after a second Ctrl-C
            _kill(processes)
    return _join_codes([process.wait() for process in processes])


def _kill(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.kill()


def _join_codes(codes: Sequence[int]) -> int:
    """The exit code of a run: the first that is not 0; one that can go on where a process died."""
    died = [(rank, code) for rank, code in enumerate(codes) if code < 0]
    if died:
        rank, code = died[0]
        click.echo(
            f"process {rank} of the training ended with {signal.Signals(-code).name}; type the "
            "same command with --resume to go on from the last checkpoint",
            err=True,
        )
        return EXIT_STOPPED
    return next((code for code in codes if code), 0)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
