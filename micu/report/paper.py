"""The figures printed in the paper's tables 2 to 9, and what each setting of ours is called there.

`paper_results.csv` beside this file holds one printed figure per row:

    table      2 to 9
    task       oscmg, cmg, retrieval, efficiency
    setting    a name from `SETTINGS`; `vggsound-avel40k` (the pretraining set) in table 9
    method     CODIS, TURN, CMCM, DCID, MICU; MICU[fine+coarse] for the loss terms of an ablation
    direction  V->A: the probe learns from video and is tested on audio; V<->A: mean of both ways
    metric     as in a results file (os_star, unk, hos, acc, f1, r1, r5, r10), and table 9's own
               (gpu_memory_gb, hours_per_epoch, epochs, mean_hos, mean_cmg)
    value      as printed: rates in percent
    note       what is wrong with a figure, if something is

Source: Huang et al., ICCV 2025, tables 2 to 9. The paper calls `acc` precision and `r1` R@1.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from micu.base.errors import ConfigError
from micu.evaluate.columns import COLUMN_TITLES
from micu.evaluate.markdown import TextTable
from micu.evaluate.report import CHANGES, RELEASED

DATA = "paper_results.csv"
COLUMNS = ("table", "task", "setting", "method", "direction", "metric", "value", "note")
TABLES = MappingProxyType(
    {
        2: "Open-set cross-modal generalisation",
        3: "Cross-modal generalisation",
        4: "Cross-modal zero-shot retrieval, mean of both directions",
        5: "Open-set, original and enhanced backbones",
        6: "Open-set among video, audio and flow, mean of both directions",
        7: "Open-set, loss terms",
        8: "Cross-modal generalisation, loss terms",
        9: "Cost of pretraining (batch 80, RTX 3090) and mean scores",
    }
)
LETTERS = MappingProxyType({"video": "V", "audio": "A", "flow": "F", "text": "T"})
BASELINES = ("codis", "turn", "cmcm", "dcid")
"""Presets that stand for a method of the paper other than MICU."""

_WHOLE = ("micu", "paper", "reference")
"""Presets of the whole method; `ablation-fine-cujp` and its like name the terms that are left."""
_ABLATION = "ablation"
_ABLATED = {"weights.fine": "fine", "weights.coarse": "coarse", "weights.jigsaw": "cujp"}
_NOT_TRAINED = ("None", "0", "0.0")
"""Weights of a loss that is left out, or only logged."""
_ORACLE = "threshold and epoch are the best on the test set"
_BEST_EPOCH = "the epoch is the best on the test set"
_UCF_SEEN = "every known test clip is the other modality of a training clip"
_VGG_SEEN = (
    "all VGGSound clips of it were pretrained on, with their class as text; Bowling (UCF) and "
    "playing frisbee (VGGSound) have no clip on one side"
)
_AVE_SEEN = "351 of AVE's 4,143 clips were pretrained on"
_AVVP_SEEN = "72 of AVVP's 1,855 rows were pretrained on"
_PICKED = "the checkpoint is the best on AVE's downstream task"
_LABELS = "the sentences of the pretraining are its labels, one for each class"
_NO_CODE = "no program for it was released, so how clips are compared is our reading"


@dataclass(frozen=True, slots=True)
class Setting:
    """One column of the paper's tables: data, known classes and backbones."""

    task: str
    told: str
    """What it is, in words."""
    rests_on: tuple[str, ...]
    """What a fair figure would not rest on, as the published scripts and lists show it."""


def _settings() -> Iterator[tuple[str, Setting]]:
    open_set = {
        "ave": ("AVE", (14, 21), 28, (_ORACLE, _AVE_SEEN)),
        "ucf": ("UCF-101", (17, 34), 51, (_ORACLE, _UCF_SEEN)),
        "ucf-vgg": ("UCF video with VGGSound audio", (8, 12), 16, (_ORACLE, _VGG_SEEN)),
    }
    backbones = {
        "": "",
        "-enhanced": "; Swin-V2 and HTS-AT",
        "-vaf": "; Swin-V2, HTS-AT and SlowOnly, pretrained on video, audio and flow",
    }
    for suffix, told in backbones.items():
        for name, (data, counts, classes, leaks) in open_set.items():
            for known in counts:
                yield (
                    f"{name}-{known}{suffix}",
                    Setting("oscmg", f"{data}, {known} of {classes} classes known{told}", leaks),
                )
    scored_on_train = "tested on the split that the probe was trained on, in the other modality"
    yield "ave", Setting("cmg", "AVE, accuracy", (_BEST_EPOCH, scored_on_train, _AVE_SEEN))
    twice = "1,652 files are both in the training and in the test list"
    trained_on_all = (
        "the probe is trained on AVE's validation and test clips too, and 56 of AVVP's rows are "
        "videos of AVE"
    )
    batches = "F1 is of precision and recall averaged over batches, background included"
    yield (
        "avvp",
        Setting("cmg", "AVVP, localisation", (_BEST_EPOCH, twice, _AVVP_SEEN, batches)),
    )
    both = (_BEST_EPOCH, trained_on_all, _AVE_SEEN, _AVVP_SEEN, batches)
    yield "ave-avvp", Setting("cmg", "AVE to AVVP, localisation", both)
    yield "ucf-vgg", Setting("cmg", "UCF with VGGSound, accuracy", (_BEST_EPOCH, _VGG_SEEN))
    gallery = "its figures are those of 500 or 1,000 pictures with one caption each, which not said"
    yield "mscoco", Setting("retrieval", "MSCOCO, pictures and captions", (_NO_CODE, gallery))
    yield "clotho", Setting("retrieval", "Clotho, sounds and captions", (_NO_CODE,))


def _with_pretraining(name: str, setting: Setting) -> Setting:
    """What figures of every setting rest on; the sentences only where text was pretrained on."""
    shared = (_PICKED,) if name.endswith("-vaf") else (_PICKED, _LABELS)
    return replace(setting, rests_on=(*setting.rests_on, *shared))


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {name: _with_pretraining(name, setting) for name, setting in _settings()}
)
"""What `--setting` may name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """One figure of the paper."""

    table: int
    task: str
    setting: str
    method: str
    direction: str
    metric: str
    value: str
    """As printed."""
    note: str

    @property
    def number(self) -> float:
        """The figure, rates in percent."""
        return float(self.value)


@cache
def read_printed() -> tuple[Printed, ...]:
    """Every figure, in the order of the paper's tables."""
    lines = files("micu.report").joinpath(DATA).read_text(encoding="utf-8").splitlines()
    return tuple(
        Printed(**{**row, "table": int(row["table"])})  # type: ignore[arg-type]
        for row in csv.DictReader(lines)
    )


@cache
def _index() -> dict[tuple[str, str, str, str], Printed]:
    """By setting, method, direction and metric; what several tables print, by the first."""
    found: dict[tuple[str, str, str, str], Printed] = {}
    for figure in read_printed():
        key = (figure.setting, figure.method, figure.direction, figure.metric)
        found.setdefault(key, figure)
    return found


def find_printed(setting: str, method: str, direction: str, metric: str) -> Printed | None:
    """The figure that the paper prints for it, from the first table that has it."""
    return _index().get((setting, method, direction, metric))


def paper_method(preset: str) -> str:
    """What the paper's tables call a row's `preset`; empty for one that they print nothing of.

    It is a baseline, MICU, or MICU with some loss terms alone. Whatever else was changed in such a
    run, it is compared with these: the report names the change. Presets of figures 3 to 5, the
    base model without any method's losses and unknown ones are in no table.
    """
    name, _, changes = preset.partition(CHANGES)
    if name.startswith(RELEASED):
        file = name.removeprefix(RELEASED).partition("(")[0].strip().lower()
        name = file if file in BASELINES else "micu"
    if name in BASELINES:
        return name.upper()
    family, *terms = name.split("-")
    if name not in _WHOLE and family != _ABLATION:
        return ""
    values = dict(change.partition("=")[::2] for change in changes.split())
    if values.get("weights.mmjp", "None") not in _NOT_TRAINED:
        return ""
    kept = [
        term
        for key, term in _ABLATED.items()
        if (values[key] not in _NOT_TRAINED if key in values else name in _WHOLE or term in terms)
    ]
    if len(kept) == len(_ABLATED):
        return "MICU"
    return f"MICU[{'+'.join(kept)}]" if kept else ""


def direction_of(train_modality: str, test_modality: str, *, both_ways: bool = False) -> str:
    """Two modalities as the paper's tables name them: V->A, or V<->A for the mean of both ways."""
    letters = [LETTERS.get(name, name) for name in (train_modality, test_modality)]
    if both_ways:
        letters.sort(key="VAFT".find)
    return ("<->" if both_ways else "->").join(letters)


def check_setting(setting: str, task: str) -> None:
    """Refuse a setting that is not the paper's, or is of another task.

    Raises:
        ConfigError: It is.
    """
    known = [name for name, entry in SETTINGS.items() if entry.task == task]
    if setting not in known:
        others = f"the paper's settings of task {task} are {', '.join(known)}"
        raise ConfigError(
            f"--setting {setting}: expected one of the paper's; "
            f"{others if known else f'the paper has none for task {task}'}; leave it out for "
            "data of your own"
        )


def select_table(number: int | None) -> tuple[Printed, ...]:
    """The figures of one table, or of all.

    Raises:
        ConfigError: There is no such table.
    """
    if number is not None and number not in TABLES:
        raise ConfigError(
            f"--table {number}: expected one of {', '.join(map(str, TABLES))}; without --table, "
            "all are printed"
        )
    return tuple(figure for figure in read_printed() if number in (None, figure.table))


def tabulate_printed(figures: Sequence[Printed]) -> TextTable:
    """One line per setting, direction and method; one column per metric, as printed."""
    metrics = list(dict.fromkeys(figure.metric for figure in figures))
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for figure in figures:
        key = (figure.setting, figure.direction, figure.method)
        mark = "*" if figure.note else ""
        lines.setdefault(key, {})[figure.metric] = figure.value + mark
    header = ("setting", "direction", "method", *(metric_title(name) for name in metrics))
    ordered = sorted(lines, key=lambda key: (_place(key[0]), -key[1].find("V->"), key[1]))
    body = [(*key, *(lines[key].get(name, "") for name in metrics)) for key in ordered]
    return TextTable((header, *body))


def _place(setting: str) -> int:
    return list(SETTINGS).index(setting) if setting in SETTINGS else len(SETTINGS)


def metric_title(metric: str) -> str:
    """Title of a metric's column."""
    titles = {
        "r1": "R@1",
        "r5": "R@5",
        "r10": "R@10",
        "f1": "F1",
        "mean_hos": "mean HOS",
        "mean_cmg": "mean CMG",
    }
    return COLUMN_TITLES.get(metric) or titles.get(metric) or metric.replace("_", " ")
