"""How metrics are shown: titles, which are rates, and which a task's table has."""

from collections.abc import Set

NOT_RATES = frozenset(
    [
        *(
            "threshold",
            "probe",
            "perplexity",
            "active_codes",
            "parameters",
            "parameters_downstream",
            "epochs",
        ),
        *("training_memory_mib", "inference_memory_mib", "seconds_per_step", "seconds_per_clip"),
    ]
)
"""Metrics that are not in [0, 1], and are never shown in percent."""

COLUMN_TITLES = {
    "os_star": "OS*",
    "os_star_class_mean": "OS* (class mean)",
    "unk": "UNK",
    "hos": "HOS",
    "hos_class_mean": "HOS (class mean)",
    "acc": "closed-set acc.",
    "auroc": "AUROC",
    "oscr": "OSCR",
    "fpr_unk_at_95tpr_known": "FPR unk@95 known",
    "fpr_known_at_95tpr_unk": "FPR known@95 unk",
    "acc_class_mean": "acc. (class mean)",
    "hos_perceivable": "HOS (perceivable)",
    "acc_perceivable": "acc. (perceivable)",
    "f1_micro": "F1 (micro, no background)",
    "f1": "F1 (as published)",
    **{f"r{k}": f"R@{k}" for k in (1, 5, 10)},
    **{f"r{k}_mean": f"R@{k}, both ways" for k in (1, 5, 10)},
}
"""Titles of table columns; other metrics keep their name."""


SHOWN = tuple(name for name in COLUMN_TITLES if name != "hos_class_mean")
"""Columns of a table unless others are asked for; the results file has all."""

_SHOWN_BY_TASK = {
    "cmg": (
        *("acc", "acc_class_mean", "acc_perceivable", "f1_micro", "precision_micro"),
        *("recall_micro", "f1", "precision", "recall"),
    ),
    "retrieval": ("r1", "r5", "r10", "r1_mean", "r5_mean", "r10_mean"),
    "efficiency": (
        *("parameters", "parameters_downstream", "training_memory_mib", "inference_memory_mib"),
        *("seconds_per_step", "seconds_per_clip", "epochs"),
    ),
}


def shown_metrics(task: str, there: Set[str]) -> tuple[str, ...]:
    """Columns of a task's table, of those metrics that are there."""
    if task == "codebook":
        shared = sorted(name for name in there if name.startswith("shared_by"))
        return ("perplexity", "active_codes", "used_by_all", "agreement", *shared)
    return _SHOWN_BY_TASK.get(task, SHOWN)
