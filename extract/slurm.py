"""A job script for Slurm: one task of an array per part, put back into the queue when stopped."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

from micu.commands import EXIT_STOPPED

NOTICE_S = 120
"""How long before the time limit Slurm says so, s: a batch and a shard take less to finish."""

_SCRIPT = Template("""\
#!/bin/bash
$directives
# $parts parts of one extraction. Submit with: sbatch THIS_FILE
# A task that is stopped (time limit, preemption) publishes what is whole and goes back into the
# queue. To join the parts when all are through, or to see which are missing:
#   sbatch --dependency=afterany:ARRAY_JOB_ID --wrap ${merge}
# To run single parts again: sbatch --array=2,5 THIS_FILE

run=
signalled=0
pass_on() {
  signalled=1
  [ -z "$$run" ] || kill -USR1 "$$run" 2>/dev/null
}
trap pass_on USR1 TERM

# In the background: bash runs a trap only after a command in the foreground has ended.
$command &
run=$$!

code=1
while :; do
  signalled=0
  wait "$$run"
  ended=$$?
  [ "$$ended" = 127 ] || code=$$ended  # 127: waited for already
  [ "$$signalled" = 1 ] || break      # a signal cut the waiting short: wait again
done

# Slurm does not requeue a task that ends by itself. $stopped: stopped, and can go on; 138 and 143:
# the same signals (USR1, TERM), but before the extraction had begun.
case "$$code" in
  $stopped | 138 | 143) scontrol requeue "$$SLURM_JOB_ID" ;;
esac
exit "$$code"
""")


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
    options = {
        "job-name": f"micu-{job.modality}",
        "array": f"1-{job.parts}",
        "ntasks": "1",
        "cpus-per-task": str(job.cpus),
        "gres": f"gpu:{job.gpus}" if job.gpus else "",
        "time": job.time,
        "partition": job.partition,
        "signal": f"B:USR1@{NOTICE_S}",
        "requeue": None,
        "open-mode": "append",
        "output": f"micu-{job.modality}-%A_%a.log",
    }
    directives = "".join(
        f"#SBATCH --{name}{'' if value is None else f'={shlex.quote(value)}'}\n"
        for name, value in options.items()
        if value != ""
    )
    workers = [] if _typed(job.arguments, "--workers") else ["--workers", str(job.cpus)]
    own = shlex.join(["micu-extract", job.modality, *job.arguments, *workers])
    merge = shlex.join(["micu-extract", "merge", _value(job.arguments, "--out") or "features"])
    return _SCRIPT.substitute(
        directives=directives,
        parts=job.parts,
        merge=shlex.quote(merge),
        # Signals reach what srun started, and srun passes them on; a bare command may get none.
        command=f'srun --cpus-per-task={job.cpus} {own} --part "$SLURM_ARRAY_TASK_ID/{job.parts}"',
        stopped=EXIT_STOPPED,
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
