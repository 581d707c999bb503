"""What the server that worker processes are forked from is prepared with; imported there alone."""

import sys
from types import TracebackType

import micu_extract.media.readers  # noqa: F401  # workers then have it without importing it

_TOLD_BY_THE_RUN = {
    (FileNotFoundError, "multiprocessing.synchronize"),  # semaphores go with the pool alone
    (EOFError, "multiprocessing.reduction"),  # the server has no handles left
}
"""What ends a worker or the server, and where, that the run speaks of itself."""


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Tell of a worker that did not start, unless its pool stopped meanwhile."""
    last = trace
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = last.tb_frame.f_globals.get("__name__") if last else ""
    if (kind, where) not in _TOLD_BY_THE_RUN:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _tell
