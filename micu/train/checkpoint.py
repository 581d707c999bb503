"""Checkpoints: everything that a run needs to go on bit by bit, in one file that holds no code.

Keys of the file (`FORMAT` 1): `format`; `config`, `specs` and `record` (JSON texts); `rng` (one
JSON text per process: states of the generators of torch, CUDA, Python and NumPy); `shapes`;
`model`, `losses`, `optimizer` and `scaler` (state dicts; the last is empty unless the run is in
fp16); `step`, `nonfinite`, `epoch` and `batch`. None of them needs more than
`torch.load(weights_only=True)`.
"""

import contextlib
import io
import json
import logging
import math
import pickle
import platform
import random
import re
import secrets
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from micu import __version__
from micu.base.errors import CheckpointError, MicuError, brief
from micu.base.files import TEMPORARY_SUFFIX, check_held, read_bounded, write_atomically
from micu.base.tensor_files import (
    ZIP_START,
    DamagedError,
    check_tensor_file,
    load_safetensors,
    load_tensor_file,
)
from micu.base.tensors import RELEASED_SECTIONS, check_finite, check_fits, load_adam_
from micu.config.overrides import from_json, to_json
from micu.config.sections import TrainConfig
from micu.losses import LOSSES, Loss
from micu.model.micu import MICU
from micu.store.shard import FeatureSpec
from micu.train.state import TrainState

logger = logging.getLogger(__name__)

FORMAT = 1
LAST = "last.pt"
PRETRAINED_CONFIG, PRETRAINED_WEIGHTS = "config.json", "model.safetensors"
"""A model as on a Hub."""
MAX_TEXT = 4 * 2**20
"""Characters of a JSON text; the states of the random generators have some 20,000."""
LONG_MESSAGE = 2000
"""Characters of what is passed on."""
MADE_BY_NEWER = f"a newer micu may have made it, this is {__version__}: pip install -U micu"
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
    # No view of the buffer: on Python 3.12, one that an error keeps crashes when it is collected.
    write_atomically(path, buffer.getvalue())


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
    states = _read_object(text, "rng")
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if states["cuda"] and _uses_cuda():
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, place, *rest = states["numpy"]
    if not 0 <= _read_int(place) <= len(keys):  # NumPy does not look, and reads beyond
        raise CheckpointError(f"rng: expected a place among {len(keys)} words, got {place}")
    np.random.set_state(("MT19937", np.array(keys, np.uint32), place, *rest))  # noqa: NPY002


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def mark_last(path: Path) -> None:
    """Make `last.pt`, beside it, the same file as the checkpoint `path`."""
    check_held(path)
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
        record, step = _read_record(content["record"]), _read_int(content["step"])
        warm_start = _find_warm_start(config, content["losses"], step)
    except _UNFIT as error:
        raise CheckpointError(
            f"{path}: not a checkpoint that fits this version: {brief(error, LONG_MESSAGE)}"
            + (f"; {MADE_BY_NEWER}" if _is_newer(content, str(error)) else "")
        ) from error
    return LoadedModel(model.to(device).eval(), config, step, specs, sha256, record, warm_start)


def load_pretrained(folder: Path, device: str = "cpu") -> LoadedModel:
    """Read a model from the files of a Hub's repository: `config.json` and `model.safetensors`.

    Args:
        folder: Where they are, as `Model.save_pretrained` writes them.
        device: Where the model goes.

    Raises:
        CheckpointError: A file is missing, cut off, hostile or of another format.
    """
    path, content = folder / PRETRAINED_CONFIG, {}
    try:
        content = _read_object(read_bounded(path, MAX_TEXT).decode(), PRETRAINED_CONFIG)
        if content.get("format") != FORMAT:
            got = brief(repr(content.get("format")))
            raise CheckpointError(f"expected format {FORMAT}, got {got}")
        config = from_json(json.dumps(content["config"]), "config")
        specs = content["specs"] and _read_specs(json.dumps(content["specs"]), config.modalities)
        record, step = _read_record(json.dumps(content["record"])), _read_int(content["step"])
        state, sha256 = load_safetensors(folder / PRETRAINED_WEIGHTS)
        check_finite(state)
        model = _build_model(config, content["shapes"], state)
    except _UNFIT as error:
        raise CheckpointError(
            f"{path}: not a model that fits this version: {brief(error, LONG_MESSAGE)}; expected "
            f"{PRETRAINED_CONFIG} and {PRETRAINED_WEIGHTS}, as save_pretrained writes them"
            + (f"; {MADE_BY_NEWER}" if _is_newer(content, str(error)) else "")
        ) from error
    return LoadedModel(model.to(device).eval(), config, step, specs, sha256, record)


def _is_newer(content: Mapping[str, Any], problem: str) -> bool:
    """Whether a checkpoint that does not fit may be one of a later version."""
    found: Any = ""
    with contextlib.suppress(*_UNFIT):
        found = json.loads(content["record"])["version_micu"]
    numbers = [[int(part) for part in re.findall(r"\d{1,9}", str(v))] for v in (found, __version__)]
    return numbers[0] > numbers[1] or ": unknown key" in problem


def _find_warm_start(config: TrainConfig, state: Mapping[str, Any], step: int) -> str:
    """The loss that lets the step quantise nothing yet, by the state of the losses; "" for none."""
    for name in config.terms():
        if name not in LOSSES:
            logger.warning(
                "loss %r of the checkpoint is not known here: it is opened to be embedded and "
                "evaluated; to train on, install its plug-in, or name it with --plugin",
                name,
            )
            continue
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
        if parsed.modality != name:
            raise CheckpointError(f"specs: {name}: not a description of {name} features")
    return specs


def _read_record(text: Any) -> dict[str, Any]:
    """What was noted beside the state: numbers and texts."""
    record = _read_object(text, "record")
    for key, value in record.items():
        if not (isinstance(value, str) or _is_number(value)):
            raise CheckpointError(
                f"record: {brief(key)}: expected a text or a number, got {brief(repr(value))}"
            )
    return record


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _read_object(text: Any, what: str) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise CheckpointError(f"{what}: expected a text of at most {MAX_TEXT} characters")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what}: not JSON: {brief(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what}: expected an object, got {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"expected finite numbers, got {name}")


def _read_int(value: object) -> int:
    """A count: no step, epoch or batch is negative."""
    if type(value) is not int or value < 0:
        raise CheckpointError(f"expected a count, got {brief(repr(value))}")
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
        record = _read_record(content["record"])
        position = Position(_read_int(content["epoch"]), _read_int(content["batch"]))
        check_fits(state.model, content["model"])
        check_fits(state.losses, content["losses"])
        state.model.load_state_dict(content["model"])
        state.losses.load_state_dict(content["losses"])
        load_adam_(state.optimizer, content["optimizer"])
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
        raise CheckpointError(
            f"{path}: does not fit this run: {brief(error, LONG_MESSAGE)}"
        ) from error
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
    try:
        content, sha256 = load_tensor_file(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds objects that are not tensors or numbers; refused, because loading them "
            "would run code from the file. Use a file that micu-train wrote"
        ) from error
    except DamagedError as error:
        raise CheckpointError(f"{error}{_others(path)}") from error
    is_dictionary = isinstance(content, dict)
    if not is_dictionary or content.get("format") != FORMAT:
        if is_dictionary and RELEASED_SECTIONS[0] in content:
            raise CheckpointError(
                f"{path}: the authors' released checkpoint, not that of a run here; micu-eval "
                "evaluates it, and micu.train.released.load_released reads it"
            )
        got = content.get("format") if is_dictionary else type(content).__name__
        newer = type(got) is int and got > FORMAT
        raise CheckpointError(
            f"{path}: expected checkpoint format {FORMAT}, got {brief(repr(got))}"
            + (f"; {MADE_BY_NEWER}" if newer else "")
        )
    try:
        check_finite(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return content, sha256


def _others(path: Path) -> str:
    """The tail of an error about a broken file: which whole one to use instead.

    Nothing is overwritten but a damaged file of ours: what else bears the name may be whole, and of
    another program.
    """
    with path.open("rb") as file:
        start = file.read(len(ZIP_START))
    if start.strip(b"\0") and start != ZIP_START:
        return ""
    found = [other for other in path.parent.glob("step-*.pt") if not _same(other, path)]
    found.sort(key=lambda other: (len(other.name), other.name))
    whole = next((other for other in reversed(found) if _is_whole(other)), None)
    if whole is None:
        return "; there is no other checkpoint beside it: start again with another --out"
    if path.name != LAST:
        return f"; the newest other one is {whole}"
    typed = shlex.join(["cp", str(whole), str(path)])
    return (
        f"; the newest other one is {whole}: to go on from it, type {typed} and the command again "
        "with --resume"
    )


def _is_whole(path: Path) -> bool:
    if not path.is_file():  # opening a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            check_tensor_file(file, str(path))
    except (MicuError, OSError, pickle.UnpicklingError):
        return False
    return True


def _same(one: Path, other: Path) -> bool:
    return one == other or one.samefile(other)
