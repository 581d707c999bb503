"""Training and evaluation from Python: the commands' own code, given objects in place of words."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micu.base.errors import ConfigError, TrainError
from micu.base.files import hold_folders
from micu.base.process import EXIT_FAILURES
from micu.base.registry import suggest
from micu.cli.eval_options import OPTIONS
from micu.cli.evaluate import run as run_evaluation
from micu.cli.features import parse_pairs
from micu.cli.train import TrainingOrder, build_config
from micu.cli.train import run as run_training
from micu.config.sections import TrainConfig
from micu.evaluate.order import EvaluationOrder
from micu.store.manifest import MODALITIES
from micu.store.sets import FeatureStore
from micu.train.checkpoint import LAST
from micu.train.processes.place import Place

if TYPE_CHECKING:
    import pandas as pd

    from micu.library.model import Model

FeatureSource = str | os.PathLike[str] | FeatureStore | Sequence[FeatureStore]
"""Root of feature sets; or one of them or several, of one root and one manifest."""


def train_model(
    config: str | TrainConfig = "micu",
    *,
    features: FeatureSource,
    settings: Mapping[str, Any] | None = None,
    modalities: str | None = None,
    out: str | os.PathLike[str] | None = None,
    manifest: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> "Model":
    """Train as `micu-train` does.

    Args:
        config: Name of a preset, or a configuration.
        features: Where the features are: the root of their sets, or the sets.
        settings: What differs from the preset, such as `{"quantizer.codebook_size": 64}`.
        modalities: Such as `"video,audio"`; None takes those of the sets, else the preset's.
        out: Folder of the run; None is `runs/PRESET-MODALITIES-SEED`.
        manifest: Of the clips; None takes that of the sets, else the last extraction's.
        device: `auto`, `cpu`, `cuda:N` or `mps`.
        workers: Processes that read features; 0 reads in this one.
        resume: Go on with the run in `out`, if there is one.
        overwrite: Replace the run in `out`.

    Returns:
        The trained model.

    Raises:
        MicuError: What was asked for cannot be done.
        TrainError: No step moved anything.
        KeyboardInterrupt: It was stopped; the same call with `resume=True` goes on.
    """
    from micu.library.model import load

    root, listed, chosen = _find(features, manifest)
    if isinstance(config, TrainConfig):
        preset = "own"
    else:
        preset = config
        names = modalities or ",".join(name for name, backbone in chosen.items() if backbone)
        config = build_config(preset, names or None, {}, _typed(settings))
    letters = "".join(name[0] for name in config.modalities)
    folder = Path(out or Path("runs") / f"{preset}-{letters}-{config.seed}")
    order = TrainingOrder(
        features=root,
        manifest=listed,
        chosen=chosen,
        preset=preset,
        out=folder,
        device=device,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
    )
    code = run_training(config, order, Place())
    if code == EXIT_FAILURES:
        raise TrainError(f"{folder}: expected a trained model, got one as it was drawn")
    if code:
        raise KeyboardInterrupt(f"{folder}: stopped; the same call with resume=True goes on")
    return load(folder / LAST, device=device)


def evaluate_model(
    model: "Model | str | os.PathLike[str]",
    task: str,
    *,
    features: FeatureSource = "features",
    manifest: str | os.PathLike[str] | None = None,
    source: str | None = None,
    target: str | None = None,
    pairs: str | None = None,
    known: Sequence[str] | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> "pd.DataFrame":
    """Evaluate as `micu-eval TASK` does.

    Args:
        model: The model, or its checkpoint.
        task: `oscmg`, `cmg`, `localise`, `retrieval`, `codebook` or `efficiency`.
        features: Where the features are: the root of their sets, or the sets.
        manifest: Of the clips; None takes that of the sets, else the last extraction's.
        source: Modality that is trained on, or asked with.
        target: Modality that is tested on.
        pairs: Several of them at once: `"v:a,a:v"`.
        known: The known classes, or a CSV file with the column `label`.
        out: CSV file that the rows are added to; None keeps none.
        settings: Of a plug-in's task.
        **options: Other options of the command, such as `protocol="clean"` or `probe_epochs=5`.

    Returns:
        One row per figure, with the columns of the results file.

    Raises:
        MicuError: What was asked for cannot be done.
    """
    import pandas as pd

    if task not in OPTIONS:
        raise ConfigError(f"unknown task {task!r}; {suggest(task, OPTIONS)}")
    own = {"task", "localise", "checkpoints", "options", "chosen", "as_json"}
    names = {field.name for field in fields(EvaluationOrder)} - own
    for name in options:
        if name not in names:
            raise ConfigError(f"micu-eval {task}: no option {name!r}; {suggest(name, names)}")
    root, listed, chosen = _find(features, manifest)
    path = Path(model) if isinstance(model, str | os.PathLike) else model.path
    given = {"known": known, "features": features, "manifest": manifest, **options}
    with tempfile.TemporaryDirectory(prefix="micu-") as folder, hold_folders():
        classes: Path | None = None
        if isinstance(known, str | os.PathLike):
            classes = Path(known)
        elif known is not None:
            classes = Path(folder) / "known.csv"
            pd.DataFrame({"label": list(known)}).to_csv(classes, index=False)
        order = EvaluationOrder(
            task="cmg" if task == "localise" else task,
            localise=task == "localise",
            checkpoints=(path,),
            features=root,
            manifest=listed,
            chosen=chosen,
            pairs=parse_pairs(source, target, pairs),
            known=classes,
            out=Path(out or Path(folder) / "results.csv"),
            settings=_typed(settings),
            options=frozenset(
                f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None
            ),
            **options,
        )
        rows = run_evaluation(order)
    return pd.DataFrame([row.values() for row in rows])


def _find(
    features: FeatureSource, manifest: str | os.PathLike[str] | None
) -> tuple[Path, Path | None, dict[str, str]]:
    """The root of the features, their manifest, and the backbone by modality."""
    listed = None if manifest is None else Path(manifest)
    chosen = dict.fromkeys(MODALITIES, "")
    if isinstance(features, str | os.PathLike):
        return Path(features), listed, chosen
    sets = [features] if isinstance(features, FeatureStore) else list(features)
    places = sorted({(store.folder.parent.parent, store.run.manifest_path) for store in sets})
    if len(places) != 1:
        raise ConfigError(
            "features: expected sets of one root and one manifest, got "
            f"{', '.join(f'{root} of {path}' for root, path in places) or 'none'}"
        )
    ((root, path),) = places
    return root, listed or Path(path), chosen | {s.spec.modality: s.spec.backbone for s in sets}


def _typed(settings: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Settings as `--set` takes them."""
    return tuple(f"{key}={_spell(value)}" for key, value in (settings or {}).items())


def _spell(value: Any) -> str:
    """A setting's value as it is typed."""
    if isinstance(value, list | tuple):
        return ",".join(map(_spell, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
