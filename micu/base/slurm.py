"""A job script for Slurm's arrays whose tasks go back into the queue when they are stopped."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

from micu.base.errors import UNSEEN, ConfigError
from micu.base.process import EXIT_STOPPED

NOTICE_S = 120
"""How long before the time limit Slurm says so, s: what a task finishes when stopped takes less."""

_SCRIPT = Template("""\
#!/bin/bash
$directives
$notes

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
# the same signals (USR1, TERM), but before the $what had begun.
case "$$code" in
  $stopped | 138 | 143) scontrol requeue "$$SLURM_JOB_ID" ;;
esac
exit "$$code"
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayJob:
    """What to run, and what to ask Slurm for."""

    name: str
    what: str
    """What a task does, one word."""
    tasks: int
    command: str
    """Of one task, for bash; it ends with `EXIT_STOPPED` when it was stopped and can go on."""
    notes: Sequence[str]
    """Lines that say how to use the script."""
    cpus: int
    gpus: int = 0
    time: str = ""
    """Limit of one task as Slurm writes it, for example `24:00:00`; empty takes the cluster's."""
    partition: str = ""


def array_script(job: ArrayJob) -> str:
    """The text of a script for `sbatch`.

    Raises:
        ConfigError: What was typed holds characters that a script must not: a line feed would end a
            comment, and what follows it would be run.
    """
    for text in (job.name, job.time, job.partition, job.command, *job.notes):
        for place, char in enumerate(text):
            if char in "\n\t" or UNSEEN.match(char):
                raise ConfigError(
                    "a script for Slurm: expected arguments of printable text, got "
                    f"{char!r} in {text[max(0, place - 40) : place + 20]!r}; rename that file or "
                    "folder, or type the argument without it"
                )
    options = {
        "job-name": job.name,
        "array": f"1-{job.tasks}",
        "ntasks": "1",
        "cpus-per-task": str(job.cpus),
        "gres": f"gpu:{job.gpus}" if job.gpus else "",
        "time": job.time,
        "partition": job.partition,
        "signal": f"B:USR1@{NOTICE_S}",
        "requeue": None,
        "open-mode": "append",
        "output": f"{job.name}-%A_%a.log",
    }
    directives = "".join(
        f"#SBATCH --{name}{'' if value is None else f'={shlex.quote(value)}'}\n"
        for name, value in options.items()
        if value != ""
    )
    return _SCRIPT.substitute(
        directives=directives,
        notes="\n".join(f"# {line}" for line in job.notes),
        # Signals reach what srun started, and srun passes them on; a bare command may get none.
        command=f"srun --cpus-per-task={job.cpus} {job.command}",
        what=job.what,
        stopped=EXIT_STOPPED,
    )
