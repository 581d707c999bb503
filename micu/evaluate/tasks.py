"""Every evaluation task; importing this fills the register, one line per task."""

from micu.evaluate import cmg, codebook_task, efficiency, oscmg, retrieval  # noqa: F401
from micu.evaluate.evaluation import TASKS, choose_task

__all__ = ["TASKS", "choose_task"]
