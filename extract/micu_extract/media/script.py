"""Scripts that start an extraction, which worker processes import before they begin.

A script that starts it while it is imported would start it again in every worker, and so on: it has
to do so under `if __name__ == "__main__":`.
"""

import ast
import multiprocessing
import os
import sys
from multiprocessing import spawn
from multiprocessing.context import BaseContext
from pathlib import Path
from types import FrameType

import click

from micu.base.process import EXIT_USAGE


def leave_import() -> None:
    """End this process, without a word, if it is a worker that imports the script of the run."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(EXIT_USAGE)


def check_script(context: BaseContext) -> None:
    """End the run with a sentence and exit code 2 if workers cannot import the script that runs.

    Args:
        context: What starts the workers.
    """
    main = spawn.get_preparation_data("").get("init_main_from_path")
    if main is not None and not Path(main).exists():
        click.echo(
            f"error: {main}: expected an extraction that is started from a file, which every "
            "worker process imports, got a script that is none; save it as a file, and type: "
            "python FILE",
            err=True,
        )
        sys.exit(EXIT_USAGE)
    script = unguarded_script(sys._getframe())
    if script is None:
        return
    # Only an import tells for certain: there are many ways to write a guard.
    trial = context.Process(target=_nothing)  # type: ignore[attr-defined]
    trial.start()
    trial.join()
    if trial.exitcode != 0:
        click.echo(
            f"error: {script}: expected the extraction to start under if __name__ == '__main__', "
            "got it while the script is imported, which every worker process does; write: "
            "if __name__ == '__main__': and indent what starts it",
            err=True,
        )
        sys.exit(EXIT_USAGE)


def unguarded_script(frame: FrameType | None) -> Path | None:
    """The script whose import seems to have led to a frame; None if it is guarded, or none has."""
    while frame is not None and frame.f_globals.get("__name__") != "__main__":
        frame = frame.f_back
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    if frame is None:
        return None
    path, line = Path(frame.f_code.co_filename), frame.f_lineno
    try:
        statements = ast.parse(path.read_bytes()).body
    except (OSError, ValueError, SyntaxError, RecursionError):  # typed, piped in, or compiled
        return None
    for statement in statements:
        if statement.lineno <= line <= (statement.end_lineno or statement.lineno):
            is_guard = isinstance(statement, ast.If) and "__name__" in ast.dump(statement.test)
            return None if is_guard else path
    return None


def _nothing() -> None:
    """What a trial does once it has imported the script."""
