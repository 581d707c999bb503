"""What was typed for an evaluation, or given from Python; a task is told all of it."""

from dataclasses import dataclass, replace
from pathlib import Path

from micu.base.errors import ConfigError
from micu.evaluate.report import FROZEN
from micu.evaluate.splits import CLEAN, PAPER
from micu.evaluate.thresholds import THRESHOLDS


@dataclass(frozen=True, kw_only=True)
class EvaluationOrder:
    """What was typed; options that a task does not have are at their defaults."""

    task: str
    checkpoints: tuple[Path, ...]
    select_on: str | None = None
    features: Path = Path("features")
    manifest: Path | None = None
    target_manifest: Path | None = None
    class_map: Path | None = None
    pretraining_manifest: Path | None = None
    chosen: dict[str, str]
    """Backbone by modality."""
    pairs: tuple[tuple[str, str], ...] = ()
    """(source, target) modalities."""
    known: Path | None = None
    train_splits: str | None = None
    test_splits: str | None = None
    encoders: tuple[str, ...] = ("checkpoint",)
    ceiling: bool = False
    chance: bool = False
    protocol: str = "both"
    thresholds: tuple[str, ...] = THRESHOLDS[:1]
    score: str = "msp"
    localise: bool = False
    items: int | None = None
    toc: str | None = None
    probe_epochs: int | None = None
    probe_batch_size: int = 80
    probe_learning_rate: float = 4e-4
    probe_epoch_offset: int = 0
    probe_encoder_dropout: bool = False
    seed: int | None = None
    seeds: int | None = None
    batch_size: int = 80
    steps: int = 3
    out: Path = Path("results.csv")
    codebook_out: Path | None = None
    details: Path | None = None
    setting: str = ""
    settings: tuple[str, ...] = ()
    """`KEY=VALUE` of a plug-in's task."""
    html: Path | None = None
    device: str = "auto"
    as_json: bool = False
    options: frozenset[str]
    """Options that were typed, whatever their value."""

    @property
    def protocols(self) -> tuple[str, ...]:
        """In the order of evaluation: one probe may serve both, and `clean` needs more of it."""
        return (CLEAN, PAPER) if self.protocol == "both" else (self.protocol,)

    def with_frozen(self) -> "EvaluationOrder":
        """The same, with `frozen:BACKBONE` in the place of CHECKPOINT spelled out.

        Raises:
            ConfigError: The task reads codes, or an option says otherwise what is read.
        """
        name = str(self.checkpoints[0])
        if len(self.checkpoints) > 1 or not is_frozen(name):
            return self
        backbone = name.removeprefix(FROZEN)
        idle = [f"--{kind}-features" for kind, chosen in self.chosen.items() if chosen]
        idle += ["--encoder"] if "--encoder" in self.options else []
        if self.task not in ("oscmg", "cmg", "retrieval") or idle or not backbone:
            why = f"leave out {', '.join(idle)}" if idle else "type another checkpoint"
            raise ConfigError(
                f"{name}: expected frozen:BACKBONE, whose features a probe or retrieval reads as "
                f"they are, got it with micu-eval {self.task}; {why}"
            )
        asked = dict.fromkeys((name for pair in self.pairs for name in pair), backbone)
        return replace(self, encoders=(name,), chosen={**self.chosen, **asked})


def is_frozen(name: object) -> bool:
    """Whether the name of a checkpoint or method is `frozen:BACKBONE`."""
    return str(name).startswith(FROZEN)
