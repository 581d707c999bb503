"""A job script for Slurm: one task of an array per part, put back into the queue when stopped."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from micu.base.slurm import ArrayJob, array_script


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """What to ask Slurm for."""

    modality: str
    """The command of `micu-extract`."""
    parts: int
    arguments: Sequence[str]
    """The command's own arguments."""
    cpus: int
    gpus: int = 0
    time: str = ""
    """Limit of one task as Slurm writes it, for example `24:00:00`; empty takes the cluster's."""
    partition: str = ""


def job_script(job: SlurmJob) -> str:
    """The text of a script for `sbatch`."""
    workers = [] if _typed(job.arguments, "--workers") else ["--workers", str(job.cpus)]
    own = shlex.join(["micu-extract", job.modality, *job.arguments, *workers])
    merge = shlex.join(["micu-extract", "merge", _value(job.arguments, "--out") or "features"])
    return array_script(
        ArrayJob(
            name=f"micu-{job.modality}",
            what="extraction",
            tasks=job.parts,
            command=f'{own} --part "$SLURM_ARRAY_TASK_ID/{job.parts}"',
            notes=(
                f"{job.parts} parts of one extraction. Submit with: sbatch THIS_FILE",
                "A task that is stopped (time limit, preemption) publishes what is whole and goes "
                "back into the",
                "queue. To join the parts when all are through, or to see which are missing:",
                f"  sbatch --dependency=afterany:ARRAY_JOB_ID --wrap {shlex.quote(merge)}",
                "To run single parts again: sbatch --array=2,5 THIS_FILE",
            ),
            cpus=job.cpus,
            gpus=job.gpus,
            time=job.time,
            partition=job.partition,
        )
    )


def _typed(arguments: Sequence[str], option: str) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in arguments)


def _value(arguments: Sequence[str], option: str) -> str:
    """What was typed after an option; empty if it was not typed."""
    value = ""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == option:
            value = following
        elif word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
    return value
