"""Checkpoints: everything that a run needs to go on bit by bit, in one file that holds no code.

Keys of the file (`FORMAT` 1): `format`; `config`, `specs`, `record` and `python_rng` (JSON texts);
`shapes`; `model`, `losses` and `optimizer` (state dicts); `torch_rng`, `step`, `nonfinite`, `epoch`
and `batch`. None of them needs more than `torch.load(weights_only=True)`.
"""

import hashlib
import io
import json
import pickle
import platform
import random
import secrets
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from micu import __version__
from micu.config import TrainConfig
from micu.errors import CheckpointError, ConfigError
from micu.files import TEMPORARY_SUFFIX, write_atomically
from micu.model.micu import MICU
from micu.overrides import from_json, to_json
from micu.step import TrainState
from micu.store import FeatureSpec

FORMAT = 1
LAST = "last.pt"

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


def save_checkpoint(
    state: TrainState,
    path: Path,
    *,
    specs: Mapping[str, FeatureSpec],
    position: Position,
    extra: Record,
) -> None:
    """Write everything that a run needs to go on, whole or not at all.

    Args:
        state: The run's model, losses and optimiser after a step.
        path: Where to.
        specs: What the features of each modality are.
        position: The batch that comes next.
        extra: Noted beside the state; `load_checkpoint` gives it back as `record`.

    Raises:
        OSError: The disk refused; an earlier file of this name is untouched.
    """
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
        "torch_rng": torch.get_rng_state(),
        "python_rng": json.dumps(random.getstate()),
        "step": state.step,
        "nonfinite": state.nonfinite,
        "epoch": position.epoch,
        "batch": position.batch,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


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
        shapes = {name: tuple(shape) for name, shape in content["shapes"].items()}
        dtype = getattr(torch, config.optimizer.dtype)
        model = MICU(config, shapes).to(device, dtype)
        model.load_state_dict(content["model"])
        specs, record = json.loads(content["specs"]), json.loads(content["record"])
        return LoadedModel(model.eval(), config, content["step"], specs, sha256, record)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not a checkpoint that fits this version: {error}"
        ) from error


def restore_(state: TrainState, path: Path) -> tuple[Position, dict[str, Any]]:
    """Put a run back to where its checkpoint was written.

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
        state.model.load_state_dict(content["model"])
        state.losses.load_state_dict(content["losses"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.step, state.nonfinite = content["step"], content["nonfinite"]
        torch.set_rng_state(content["torch_rng"])
        version, internal, gauss = json.loads(content["python_rng"])
        random.setstate((version, tuple(internal), gauss))
        return Position(content["epoch"], content["batch"]), json.loads(content["record"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not fit this run: {error}") from error


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
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: expected checkpoint format {FORMAT}, got {got!r}")
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
