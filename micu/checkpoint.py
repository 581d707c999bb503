"""Checkpoints: everything that a run needs to go on bit by bit, in one file that holds no code.

Keys of the file (`FORMAT` 1): `format`; `config`, `specs` and `record` (JSON texts); `rng` (one
JSON text per process: states of the generators of torch, CUDA, Python and NumPy); `shapes`;
`model`, `losses`, `optimizer` and `scaler` (state dicts; the last is empty unless the run is in
fp16); `step`, `nonfinite`, `epoch` and `batch`. None of them needs more than
`torch.load(weights_only=True)`.
"""

import hashlib
import io
import json
import logging
import pickle
import platform
import random
import secrets
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from micu import __version__
from micu.config import TrainConfig
from micu.errors import CheckpointError, MicuError
from micu.files import TEMPORARY_SUFFIX, write_atomically
from micu.losses import LOSSES, Loss
from micu.model.micu import MICU
from micu.overrides import from_json, to_json
from micu.step import TrainState
from micu.store import FeatureSpec
from micu.tensors import RELEASED_SECTIONS, check_fits, check_tensors

logger = logging.getLogger(__name__)

FORMAT = 1
LAST = "last.pt"
_UNFIT = (
    MicuError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
)  # fmt: skip
"""What reading the content of a damaged or hostile file may end in."""

Record = Mapping[str, str | int | float]
"""What a run notes beside its state: the manifest's hash, the preset's name, …"""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands in its data: the batch that comes next."""

    epoch: int = 0
    batch: int = 0

    def after_batch(self, batches: int) -> "Position":
        """Where the run stands after one more batch, in epochs of `batches`."""
        if self.batch + 1 < batches:
            return Position(self.epoch, self.batch + 1)
        return Position(self.epoch + 1, 0)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A trained model and what is known about it."""

    model: MICU
    """In evaluation mode."""
    config: TrainConfig
    step: int
    specs: dict[str, dict[str, Any]]
    """`FeatureSpec` of each modality that it was trained on, as a dictionary."""
    sha256: str
    """Of the checkpoint file."""
    record: dict[str, Any]
    warm_start: str = ""
    """The loss in whose warm start the run still is, so that the codebook is as it was drawn."""


def save_checkpoint(
    state: TrainState,
    path: Path,
    *,
    specs: Mapping[str, FeatureSpec],
    position: Position,
    extra: Record,
) -> None:
    """Write everything that a run needs to go on, whole or not at all.

    Every process of the run calls this, and the first one writes.

    Args:
        state: The run's model, losses and optimiser after a step.
        path: Where to.
        specs: What the features of each modality are.
        position: The batch that comes next.
        extra: Noted beside the state; `load_checkpoint` gives it back as `record`.

    Raises:
        OSError: The disk refused; an earlier file of this name is untouched.
    """
    rng = state.world.gather_texts([_rng_state()])
    if not state.world.is_first:
        return
    versions = {
        "micu": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    content = {
        "format": FORMAT,
        "config": to_json(state.config),
        "shapes": {name: list(shape) for name, shape in state.model.shapes.items()},
        "specs": json.dumps({name: asdict(spec) for name, spec in specs.items()}),
        "record": json.dumps({**extra, **{f"version_{key}": v for key, v in versions.items()}}),
        "model": state.model.state_dict(),
        "losses": state.losses.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "rng": rng,
        "step": state.step,
        "nonfinite": state.nonfinite,
        "epoch": position.epoch,
        "batch": position.batch,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def _rng_state() -> str:
    """The states of this process's random generators."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 - code under a run may use it
    return json.dumps(
        {
            "torch": torch.get_rng_state().tolist(),
            "cuda": torch.cuda.get_rng_state().tolist() if _uses_cuda() else [],
            "python": random.getstate(),
            "numpy": [np.asarray(keys).tolist(), *rest],
        }
    )


def _restore_rng_(text: str) -> None:
    """Put this process's random generators back."""
    states = json.loads(text)
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if states["cuda"] and _uses_cuda():
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, np.uint32), *rest))  # noqa: NPY002


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def mark_last(path: Path) -> None:
    """Make `last.pt`, beside it, the same file as the checkpoint `path`."""
    last = path.with_name(LAST)
    temporary = last.with_name(f".{LAST}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        try:
            temporary.hardlink_to(path)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        temporary.replace(last)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path, device: str = "cpu") -> LoadedModel:
    """Read a trained model.

    Args:
        path: A checkpoint of `micu-train`.
        device: Where the model goes.

    Returns:
        The model, in evaluation mode, with its configuration.

    Raises:
        CheckpointError: The file is missing, cut off, hostile or of another format.
    """
    content, sha256 = _read(path)
    try:
        config = from_json(content["config"], f"{path}: config")
        model = _build_model(config, content["shapes"], content["model"])
        specs = _read_specs(content["specs"], config.modalities)
        record, step = _read_object(content["record"], "record"), _read_int(content["step"])
        warm_start = _find_warm_start(config, content["losses"], step)
    except _UNFIT as error:
        raise CheckpointError(
            f"{path}: not a checkpoint that fits this version: {error}"
        ) from error
    return LoadedModel(model.to(device).eval(), config, step, specs, sha256, record, warm_start)


def _find_warm_start(config: TrainConfig, state: Mapping[str, Any], step: int) -> str:
    """The loss that lets the step quantise nothing yet, by the state of the losses; "" for none."""
    for name in config.terms():
        if LOSSES[name].is_continuous is Loss.is_continuous:
            continue
        with torch.device("meta"):
            loss = LOSSES[name](config)
        loss.set_extra_state(state[f"{name}._extra_state"])
        if loss.is_continuous(step):
            return name
    return ""


def _build_model(config: TrainConfig, shapes: Mapping[str, Any], state: Mapping[str, Any]) -> MICU:
    """The model that a configuration and a state make, in no more memory than the state has."""
    if config.encoder.layers > len(state):
        raise CheckpointError(f"has not the {config.encoder.layers} layers of its configuration")
    with torch.device("meta"):
        model = MICU(config, {name: tuple(shape) for name, shape in shapes.items()})
    model.to(getattr(torch, config.optimizer.dtype))
    check_fits(model, state)
    model.load_state_dict(state, assign=True)
    return model


def _read_specs(text: str, modalities: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each modality's features were, each the dictionary of a `FeatureSpec`."""
    specs = _read_object(text, "specs")
    if set(specs) != set(modalities):
        raise CheckpointError(
            f"specs: expected {', '.join(modalities)}, got {', '.join(specs) or 'none'}"
        )
    for name, spec in specs.items():
        parsed = FeatureSpec.from_json(spec)
        if not isinstance(parsed.preprocessing, Mapping) or parsed.modality != name:
            raise CheckpointError(f"specs: {name}: not a description of {name} features")
    return specs


def _read_object(text: str, what: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise CheckpointError(f"{what}: expected an object, got {type(value).__name__}")
    return value


def _read_int(value: object) -> int:
    """A count: no step, epoch or batch is negative."""
    if type(value) is not int or value < 0:
        raise CheckpointError(f"expected a count, got {value!r}")
    return value


def restore_(state: TrainState, path: Path) -> tuple[Position, dict[str, Any]]:
    """Put a run back to where its checkpoint was written.

    With as many processes as wrote it the run goes on bit by bit. With another number it is the
    same run too, since no draw of a step depends on earlier ones; dropout masks and last digits are
    those of the new number.

    Args:
        state: A freshly built run of the same configuration.
        path: A checkpoint of `micu-train`.

    Returns:
        The batch that comes next, and what was noted beside the state.

    Raises:
        CheckpointError: The file is missing, cut off, hostile, of another format or another run.
    """
    content, _ = _read(path)
    try:
        record = _read_object(content["record"], "record")
        position = Position(_read_int(content["epoch"]), _read_int(content["batch"]))
        state.model.load_state_dict(content["model"])
        state.losses.load_state_dict(content["losses"])
        state.optimizer.load_state_dict(content["optimizer"])
        if state.scaler.is_enabled():
            found = content["scaler"]
            moved = {"scale": float(found["scale"])}
            moved["_growth_tracker"] = _read_int(found["_growth_tracker"])
            state.scaler.load_state_dict({**state.scaler.state_dict(), **moved})
        state.step, state.nonfinite = _read_int(content["step"]), _read_int(content["nonfinite"])
        processes, world = len(content["rng"]), state.world
        if world.rank < processes:
            _restore_rng_(content["rng"][world.rank])
    except _UNFIT as error:
        raise CheckpointError(f"{path}: does not fit this run: {error}") from error
    if processes != world.size and world.is_first:
        logger.warning(
            "%s: written by %d processes, going on with %d: other dropout masks and last digits "
            "than theirs",
            path,
            processes,
            world.size,
        )
    return position, record


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The content of a checkpoint, on the CPU, and the hash of its bytes."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    data = path.read_bytes()
    _check_archive(path, data)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds objects that are not tensors or numbers; refused, because loading them "
            "would run code from the file. Use a file that micu-train wrote"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}{_others(path)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        if isinstance(content, dict) and all(key in content for key in RELEASED_SECTIONS):
            raise CheckpointError(
                f"{path}: the authors' released checkpoint, not that of a run here; micu-eval "
                "evaluates it, and micu.released.load_released reads it"
            )
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: expected checkpoint format {FORMAT}, got {got!r}")
    try:
        check_tensors(content, len(data))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return content, hashlib.sha256(data).hexdigest()


def _check_archive(path: Path, data: bytes) -> None:
    """Refuse bytes that are cut off, damaged, or that unpack to more than they are."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(item.file_size for item in archive.infolist()) > len(data):
                raise CheckpointError(f"{path}: declares more bytes than it has; refused")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cut off, or not a checkpoint ({error}){_others(path)}"
        ) from error
    if damaged is not None:
        raise CheckpointError(f"{path}: {damaged} is damaged{_others(path)}")


def _others(path: Path) -> str:
    """The tail of an error about a broken file: which whole one to use instead."""
    whole = [other for other in sorted(path.parent.glob("step-*.pt")) if not _same(other, path)]
    whole = [other for other in whole if zipfile.is_zipfile(other)]
    if not whole:
        return "; there is no other checkpoint beside it: start again with --overwrite"
    return (
        f"; the newest other one is {whole[-1]}: to go on from it, type "
        f"cp {whole[-1]} {path.with_name(LAST)} and the command again with --resume"
    )


def _same(one: Path, other: Path) -> bool:
    return one == other or one.samefile(other)
