"""What a table or figure of the paper needs, and what there is of it.

Every call of `micu-eval` with its manifests, features and checkpoint; what is missing comes with
the command that makes it.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import click

from micu.base.errors import ManifestError, StoreError
from micu.cli.features import find_feature_sets
from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.evaluate.order import is_frozen
from micu.evaluate.report import FROZEN
from micu.report.as_printed import Layout
from micu.report.compare import BOTH_WAYS
from micu.store.manifest import MODALITIES
from micu.sweep.conduct import CHECKPOINT, RunCommands
from micu.sweep.plan import SweepRun

PRETRAINING = "vggsound-avel40k"
"""Manifest that is pretrained on, as in the paper."""
CODES = "valor32k"
"""Manifest whose codes are counted for figure 6."""
ENHANCED = "-enhanced"
BACKBONES: Mapping[str, Mapping[str, str]] = {
    "": {"video": "vgg19", "audio": "vggish", "text": "bert"},
    ENHANCED: {"video": "swinv2", "audio": "htsat", "text": "bert"},
    BOTH_WAYS: {"video": "swinv2", "audio": "htsat", "flow": "slowonly"},
}
"""By what a setting's name ends in: modality → backbone; also what is pretrained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperJob:
    """One call of `micu-eval` for one method."""

    preset: str
    backbones: str
    """A key of `BACKBONES`."""
    task: str
    manifests: tuple[str, ...] = ()
    """Stems of the manifest, and of the target manifest where that is another one."""
    modalities: tuple[str, ...] = ()
    """Whose features are read."""
    words: tuple[str, ...] = ()
    """Options beside checkpoint, features and manifests; `{classes}` is the folder of lists."""

    @property
    def told(self) -> str:
        """Its name in messages."""
        setting = self.words[self.words.index("--setting") + 1] if "--setting" in self.words else ""
        return " ".join(filter(None, (self.preset, self.task, setting)))


@dataclass(frozen=True, kw_only=True)
class PaperOrder:
    """What was typed."""

    layout: Layout
    features: Path
    manifests: Path
    checkpoints: Mapping[str, Path]
    """By preset."""
    train: bool
    runs: Path
    assignments: tuple[str, ...]
    chosen: Mapping[str, str]
    """Backbone by modality, in place of the paper's."""
    options: tuple[str, ...]
    """Further words for evaluations with a probe."""
    seeds: int
    protocol: str
    out: Path
    device: str

    @property
    def results(self) -> Path:
        """The file of results."""
        return self.out / "results.csv"


@dataclass(slots=True)
class PaperPlan:
    """What there is to do."""

    trainings: dict[tuple[str, str], RunCommands] = field(default_factory=dict)
    """By preset and backbones."""
    evaluations: list[tuple[PaperJob, Path]] = field(default_factory=list)
    """Those that can be, or could once their checkpoint is trained; with that checkpoint."""
    missing: dict[str, str] = field(default_factory=dict)
    """What is missing → what to type for it."""
    blocked: list[tuple[PaperJob, list[str]]] = field(default_factory=list)
    """Those that cannot be, with what they lack."""


# --- what a table needs ------------------------------------------------------------------------


def evaluations_of(layout: Layout) -> list[PaperJob]:
    """Every evaluation of a table or figure, method by method."""
    found = []
    for method in layout.methods:
        for setting in layout.settings:
            found += [_evaluation(method.preset, setting, *job) for job in _jobs(setting)]
        if layout.number == 9:
            found.append(PaperJob(preset=method.preset, backbones="", task="efficiency"))
        if not layout.settings:
            found.append(
                PaperJob(
                    preset=method.preset,
                    backbones="",
                    task="codebook",
                    manifests=(CODES,),
                    modalities=("audio", "video", "text"),
                    words=("--protocol", "paper"),
                )
            )
    return found


def _jobs(setting: str) -> Iterator[tuple[str, tuple[str, ...], str, tuple[str, ...]]]:
    """Task, manifests, pairs and further words of each call that a setting takes."""
    name = setting.removesuffix(ENHANCED).removesuffix(BOTH_WAYS)
    data, _, count = name.rpartition("-")
    every = setting.endswith(BOTH_WAYS)
    both = "v:a,a:v,v:f,f:v,a:f,f:a" if every else "v:a,a:v"
    if data == "ucf-vgg":  # video and flow of UCF101, audio of VGGSound
        known = ("--known", f"{{classes}}/{name}.csv")
        yield "oscmg", ("ucf-vgg",), "v:a,f:a" if every else "v:a", known
        yield "oscmg", ("vgg-ucf",), "a:v,a:f" if every else "a:v", known
        if every:
            yield "oscmg", ("ucf-vgg", "vgg-ucf"), "v:f,f:v", known
    elif data == "ave" and count.isdigit():
        yield "oscmg", ("ave",), both, ("--known", f"{{classes}}/{name}.csv")
    elif data == "ucf" and count.isdigit():
        yield "oscmg", ("ucf101",), both, ("--known", f"{{classes}}/ucf51-{count}.csv")
    elif name == "ucf-vgg":
        yield "cmg", ("ucf-vgg",), "v:a", ()
        yield "cmg", ("vgg-ucf",), "a:v", ()
    elif name == "ave":
        yield "cmg", ("ave",), both, ()
    elif name in ("mscoco", "clotho"):
        items = ("--items", "500") if name == "mscoco" else ()
        yield "retrieval", (name,), "v:t" if name == "mscoco" else "a:t", items
    else:
        yield "localise", (name,), both, ()


def _evaluation(
    preset: str,
    setting: str,
    task: str,
    manifests: tuple[str, ...],
    pairs: str,
    words: tuple[str, ...],
) -> PaperJob:
    backbones = next((end for end in (ENHANCED, BOTH_WAYS) if setting.endswith(end)), "")
    letters = {letter for letter in pairs if letter.isalpha()}
    return PaperJob(
        preset=preset,
        backbones=backbones,
        task=task,
        manifests=manifests,
        modalities=tuple(name for name in MODALITIES if name[0] in letters),
        words=("--pairs", pairs, *words, "--setting", setting),
    )


# --- what there is of it -----------------------------------------------------------------------


def make_plan(order: PaperOrder) -> PaperPlan:
    """Look for manifests, features and checkpoints of every evaluation."""
    plan = PaperPlan()

    @cache
    def lacks(manifest: str, modality: str, backbone: str) -> str:
        """Name of what is missing to read these features; noted with what to type."""
        path = order.manifests / f"{manifest}.csv"
        flow = " --tvl1" if modality == "flow" else ""
        extract = (
            f"micu-extract {modality} {path} --backbone {backbone}{flow} --out {order.features}"
        )
        if not path.is_file():
            what = f"manifest {path}"
            plan.missing[what] = (
                f"micu-extract manifest {manifest} -o {path}   # from what: docs/data-sets.md"
            )
            plan.missing[f"{modality} features of {path} ({backbone})"] = extract
            return what
        what = f"{modality} features of {path} ({backbone})"
        try:
            find_feature_sets(order.features, (modality,), path, {modality: backbone})
        except ManifestError as error:
            plan.missing[what] = f"# {error}"
        except StoreError as error:
            plan.missing[what] = f"# {error}" if "changed" in str(error) else extract
        else:
            return ""
        return what

    def checkpoint(preset: str, backbones: str) -> tuple[Path, list[str]]:
        """Where a method's checkpoint is or will be, and what is missing for it."""
        if is_frozen(preset):
            return Path(preset), []
        typed = order.checkpoints.get(preset + backbones)
        if typed is None and one_kind:
            typed = order.checkpoints.get(preset)
        if typed is not None:
            return typed, []
        kind = backbones.strip("-") or "original"
        folder = order.runs / f"{preset}-{kind}"
        if not order.train and (folder / CHECKPOINT).is_file():
            return folder / CHECKPOINT, []
        names = {**BACKBONES[backbones], **_replaced(order, backbones)}
        if not order.train:
            what = f"checkpoint of {preset} ({kind} backbones)"
            plan.missing[what] = "add --train, or --checkpoint " + (
                f"{preset if one_kind else preset + backbones}=FILE.pt"
            )
            return folder / CHECKPOINT, [what]
        found = [lacks(PRETRAINING, modality, name) for modality, name in names.items()]
        if not any(found):
            plan.trainings[preset, backbones] = _training(order, preset, names, folder)
        return folder / CHECKPOINT, [what for what in found if what]

    checkpoints = cache(checkpoint)
    evaluations = evaluations_of(order.layout)
    one_kind = len({each.backbones for each in evaluations}) == 1
    for each in evaluations:
        path, missing = checkpoints(each.preset, each.backbones)
        names = _backbones_of(each, order)
        lacking = [
            lacks(manifest, modality, names[modality])
            for manifest, modality in _read_features(each)
        ]
        lists = [w for w in words_of(each, order) if w.startswith(str(order.manifests / "classes"))]
        for name in lists:
            if not Path(name).is_file():
                plan.missing[name] = "# class lists are in manifests/classes of the repository"
                lacking.append(name)
        problems = list(dict.fromkeys([*missing, *filter(None, lacking)]))
        if problems:
            plan.blocked.append((each, problems))
        else:
            plan.evaluations.append((each, path))
    return plan


def _read_features(each: PaperJob) -> Iterator[tuple[str, str]]:
    """Manifest and modality of every feature set that an evaluation reads."""
    if "--pairs" not in each.words:
        yield from ((name, modality) for name in each.manifests for modality in each.modalities)
        return
    source, target = each.manifests[0], each.manifests[-1]
    for pair in each.words[each.words.index("--pairs") + 1].split(","):
        for manifest, letter in zip((source, target), pair.split(":"), strict=True):
            yield manifest, next(name for name in MODALITIES if name[0] == letter)


def _backbones_of(each: PaperJob, order: PaperOrder) -> dict[str, str]:
    """Backbone by modality that a call reads."""
    if is_frozen(each.preset):
        return dict.fromkeys(each.modalities, each.preset.removeprefix(FROZEN))
    return {**BACKBONES[each.backbones], **_replaced(order, each.backbones)}


def _replaced(order: PaperOrder, backbones: str) -> dict[str, str]:
    own = BACKBONES[backbones]
    return {name: text for name, text in order.chosen.items() if text and name in own}


def _training(
    order: PaperOrder, preset: str, names: Mapping[str, str], folder: Path
) -> RunCommands:
    modalities = ",".join(name for name in MODALITIES if name in names)
    config = with_overrides(
        PRESETS[preset](), [f"modalities={modalities}", "data.splits=", *order.assignments]
    )
    features = [word for name, text in names.items() for word in (f"--{name}-features", text)]
    own = [word for text in ("data.splits=", *order.assignments) for word in ("--set", text)]
    return RunCommands(
        run=SweepRun(
            setting=folder.name,
            values={},
            preset=preset,
            assignments=order.assignments,
            config=config,
        ),
        folder=folder,
        train=[
            *("--preset", preset, "--modalities", modalities, "--features", str(order.features)),
            *("--manifest", str(order.manifests / f"{PRETRAINING}.csv"), *features, *own),
            *("--device", order.device, "--out", str(folder)),
        ],
        evaluate=None,
    )


def words_of(each: PaperJob, order: PaperOrder) -> list[str]:
    """Words of `micu-eval` after the task and the checkpoint."""
    classes = str(order.manifests / "classes")
    words = [word.replace("{classes}", classes) for word in each.words]
    if each.task != "efficiency":
        given = ("--manifest", "--target-manifest")
        for option, name in zip(given, each.manifests, strict=False):
            words += [option, str(order.manifests / f"{name}.csv")]
        words += ["--features", str(order.features)]
        names = _backbones_of(each, order)
        if not is_frozen(each.preset):
            words += [w for name in each.modalities for w in (f"--{name}-features", names[name])]
        seen = order.manifests / f"{PRETRAINING}.csv"
        if seen.is_file() and not is_frozen(each.preset):
            words += ["--pretraining-manifest", str(seen)]
        words += ["--protocol", order.protocol] if each.task != "codebook" else []
    if each.task in ("oscmg", "cmg", "localise"):
        words += [] if is_frozen(each.preset) else order.options
        words += ["--seeds", str(order.seeds)]
    if each.task == "codebook":
        words += ["--codebook-out", str(order.out / "codebook.csv")]
    return [*words, "--device", order.device, "--out", str(order.results)]


def tell_plan(plan: PaperPlan, order: PaperOrder) -> None:
    """The plan, and what is missing with the command for it."""
    layout, ready = order.layout, len(plan.evaluations)
    total = ready + len(plan.blocked)
    click.echo(
        f"{layout.kind} {layout.number}, {layout.title}: {total} evaluations of "
        f"{len(layout.methods)} methods, {ready} can be done, {len(plan.trainings)} trainings first"
    )
    for job in plan.trainings.values():
        click.echo(f"train     {shlex.join(['micu-train', *job.train])}")
    for each, path in plan.evaluations:
        words = ["micu-eval", each.task, str(path), *words_of(each, order)]
        click.echo(f"evaluate  {shlex.join(words)}")
    for each, problems in plan.blocked:
        click.echo(f"lacking   {each.told}: {'; '.join(problems)}")
    for what, typed in plan.missing.items():
        click.echo(f"missing   {what}\n          {typed}")
