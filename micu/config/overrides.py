"""Changing a configuration by text, and its JSON form; both read values by the field's type."""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from micu.base.errors import ConfigError, brief
from micu.base.registry import suggest
from micu.config.sections import TrainConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Reader:
    """What reads a setting, or a section of settings.

    Attributes:
        told: What a run must have for it, as it is typed.
        reads: Whether a run does.
    """

    told: str
    reads: Callable[[TrainConfig], bool]


def _losses(*names: str) -> Reader:
    """One of some losses, if it is computed."""
    weights = " or ".join(f"weights.{name}" for name in names)
    return Reader(weights, lambda config: bool(set(names) & set(config.terms())))


_AVERAGE = Reader(
    "quantizer.learning=average", lambda config: config.quantizer.learning == "average"
)
_RESET = Reader(
    "quantizer.reset=revive or reference", lambda config: config.quantizer.reset != "off"
)
_TEXT = Reader(
    "weights.reconstruction and the modality text",
    lambda config: (
        "reconstruction" in config.terms()
        and "text" in config.modalities
        and config.encoder.unify == "steps"
    ),
)

READERS = {
    "contrastive": _losses("fine", "coarse"),
    "contrastive.tau": _losses("fine", "coarse", "one_way"),
    "contrastive.one_way": _losses("one_way"),
    "jigsaw": _losses("jigsaw"),
    # A jigsaw without parts is off, too, and it is this setting that says so.
    "jigsaw.splits": Reader("weights.jigsaw", lambda config: config.weights.jigsaw is not None),
    "mmjp": _losses("mmjp"),
    "quantizer.ema_decay": _AVERAGE,
    "quantizer.ema_epsilon": _AVERAGE,
    "quantizer.ema_own": _AVERAGE,
    "quantizer.ema_init": _AVERAGE,
    "quantizer.dead_after": _RESET,
    "quantizer.active_within": _RESET,
    "quantizer.commitment_own": _losses("commitment"),
    "quantizer.commitment_cross": _losses("commitment"),
    "reconstruction": _losses("reconstruction"),
    "reconstruction.text_target": _TEXT,
    "reconstruction.text_target_grad": _TEXT,
    "baselines.code_matching.warmup_vectors": Reader(
        "baselines.code_matching.warmup above 0",
        lambda config: (
            "code_matching" in config.terms() and config.baselines.code_matching.warmup > 0
        ),
    ),
}
"""What reads a setting, or a whole section, where that is not every run. The sections of
`baselines` refuse by themselves what is not their default where their loss has no weight."""

MAX_TEXT = 2**20
"""Characters of a configuration; one has some 4,000."""
SHOWN_PROBLEMS = 20

Tree = dict[str, Any]
"""New values by key; a section's are a tree of their own."""


def with_overrides(config: T, assignments: Sequence[str]) -> T:
    """Change settings, given as on the command line.

    Args:
        config: Where the other settings come from, a dataclass.
        assignments: `KEY=VALUE`, for example `quantizer.codebook_size=512`; a list of words is
            separated by commas. A later assignment to the same key wins.

    Returns:
        The changed configuration.

    Raises:
        ConfigError: Unknown keys, unreadable or bad values: all of them in one message.
    """
    changes: Tree = {}
    problems: list[str] = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        try:
            if not equals:
                raise ConfigError("expected KEY=VALUE")
            _assign(changes, config, key.strip(), text.strip())
        except ConfigError as error:
            problems.append(f"--set {key.strip()}: {error}")
    changed = _rebuild(config, changes, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return cast(T, changed)


def idle_settings(config: TrainConfig, keys: Iterable[str]) -> list[str]:
    """What to say about each of these settings that nothing in a run reads."""
    told = []
    for key in dict.fromkeys(keys):
        reader = READERS.get(key, READERS.get(key.partition(".")[0]))
        if reader and not reader.reads(config):
            told.append(f"{key}: nothing reads it without {reader.told}")
    return told


def to_json(config: TrainConfig) -> str:
    """Every setting, as JSON; equal configurations give equal text."""
    return json.dumps(asdict(config), indent=1)


def from_json(text: str, where: str = "configuration") -> TrainConfig:
    """The configuration that `to_json` wrote, in this version or an earlier one.

    A setting that an earlier version did not have gets its default, which must be what was done
    before there was the setting; a warning names it.

    Args:
        text: JSON.
        where: What is being read, for the message.

    Raises:
        ConfigError: It is not JSON, or keys are unknown or of bad values: all in one message.
    """
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ConfigError(f"{where}: expected a text of at most {MAX_TEXT} characters")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {brief(error)}") from error
    problems: list[str] = []
    absent: list[str] = []
    changes = _read_section(TrainConfig, value, "", problems, absent)
    if "modalities" in absent:  # no version wrote a file without
        problems.append("modalities: missing; expected a configuration of micu-train")
    config = None if problems else _rebuild(TrainConfig(), changes, problems)
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = problems[:SHOWN_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in shown))
    if absent:
        logger.warning(
            "%s: of an earlier version; these are taken as they are by default: %s",
            where,
            ", ".join(absent),
        )
    return cast(TrainConfig, config)


def config_differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings in which two configurations differ: key → (old, new).

    What nothing reads in either of them is left out.
    """
    before, after = _flatten(asdict(old)), _flatten(asdict(new))
    unlike = [key for key in before if before[key] != after[key]]
    return {
        key: (before[key], after[key])
        for key in unlike
        if not (idle_settings(old, [key]) and idle_settings(new, [key]))
    }


def _assign(changes: Tree, section: object, key: str, text: str) -> None:
    """Put one value into the tree of changes.

    Raises:
        ConfigError: The key is unknown or a section, or the value is not of its type.
    """
    *parents, name = key.split(".")
    for parent in parents:
        _check_key(section, parent)
        section = getattr(section, parent)
        if not is_dataclass(section):
            raise ConfigError(f"{parent!r} is not a section; it has no keys")
        changes = changes.setdefault(parent, {})
    _check_key(section, name)
    if is_dataclass(getattr(section, name)):
        raise ConfigError(f"{name!r} is a section; set one of its keys")
    changes[name] = _parse(text, get_type_hints(type(section))[name])


def _check_key(section: object, key: str) -> None:
    known = [field.name for field in fields(cast(Any, section))]
    if key not in known:
        sections = [name for name in known if is_dataclass(getattr(section, name))]
        inside = [n for n in sections if key in {f.name for f in fields(getattr(section, n))}]
        meant = " or ".join(f"{name}.{key}" for name in inside)
        told = f"did you mean {meant}?" if meant else suggest(key, known)
        raise ConfigError(f"no key {key!r}; {told}")


def _rebuild(section: Any, changes: Tree, problems: list[str]) -> Any:
    """A copy of `section` with the changes; what its checks refuse is added to `problems`."""
    values = {
        key: _rebuild(getattr(section, key), value, problems) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    try:
        return replace(section, **values)
    except ConfigError as error:
        problems.append(str(error))
        return section


def _parse(text: str, kind: Any) -> Any:
    """A value of the field type `kind` from the command line.

    Raises:
        ConfigError: The text is not one.
    """
    value: object = text
    if NoneType in get_args(kind):
        return None if text.lower() == "none" else _parse(text, get_args(kind)[0])
    if kind is bool:
        value = _BOOLEANS.get(text.lower(), text)
    elif kind in (int, float):
        with contextlib.suppress(ValueError):
            value = kind(text)
    elif get_origin(kind) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
    return _checked(value, kind)


def _checked(value: object, kind: Any) -> Any:
    """The value as the field type `kind`, or an error that says what was expected.

    Raises:
        ConfigError: It is of another type.
    """
    origin = get_origin(kind)
    if NoneType in get_args(kind):
        return None if value is None else _checked(value, get_args(kind)[0])
    if origin is Literal:
        choices = get_args(kind)
        if value in choices:
            return value
        raise ConfigError(f"expected {' or '.join(map(str, choices))}, got {brief(repr(value))}")
    if origin is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ConfigError(f"expected a list of words, got {brief(repr(value))}")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        with contextlib.suppress(OverflowError):  # of an integer that no float is as large as
            if math.isfinite(number := float(cast(float, value))):
                return number
    if kind is int and isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"expected a number of 64 bits, got {brief(repr(value))}")
    if kind is not float and type(value) is kind:
        return value
    expected = {bool: "true or false", float: "a finite number"}.get(kind, kind.__name__)
    raise ConfigError(f"expected {expected}, got {brief(repr(value))}")


def _read_section(
    kind: Any, value: object, prefix: str, problems: list[str], absent: list[str]
) -> Tree:
    """The tree of changes in parsed JSON; problems and absent keys are noted by their full key."""
    if not isinstance(value, Mapping):
        problems.append(
            f"{prefix.rstrip('.') or 'top'}: expected a section, got {brief(repr(value))}"
        )
        return {}
    hints = get_type_hints(kind)
    problems += [f"{prefix}{brief(key)}: unknown key" for key in value if key not in hints]
    absent += [prefix + key for key in hints if key not in value]
    tree: Tree = {}
    for key in [key for key in hints if key in value]:
        if is_dataclass(hints[key]):
            tree[key] = _read_section(hints[key], value[key], f"{prefix}{key}.", problems, absent)
            continue
        try:
            tree[key] = _checked(value[key], hints[key])
        except ConfigError as error:
            problems.append(f"{prefix}{key}: {error}")
    return tree


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    flat: Tree = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
