"""What the server that worker processes are forked from is prepared with; imported there alone."""

import sys
from types import TracebackType

import extract.decode  # noqa: F401  # workers then have it without importing it


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Tell of a worker that did not start, unless its pool stopped meanwhile."""
    last = trace
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = last.tb_frame.f_globals.get("__name__") if last else ""
    # The semaphores go with the pool, and only with it.
    if kind is not FileNotFoundError or where != "multiprocessing.synchronize":
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _tell
