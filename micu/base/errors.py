"""Every error a user can act on, in one tree.

    MicuError
    ├── ManifestError     a manifest or a class list cannot be used
    ├── ClipError         one clip fails, and the run goes on; carries a ledger code
    │   ├── DecodeError       its media cannot be turned into an array
    │   └── FeatureError      its features must not be stored
    ├── DeviceError       a device has no memory left; elsewhere, the same may work
    ├── WeightsError      a backbone's weights cannot be had or do not fit
    ├── StoreError        a feature set or a shard is missing, hostile or of another run
    ├── ShapeError        an array does not have the shape that a function states
    ├── ConfigError       an option or a configuration value is out of range
    ├── RegistryError     a name that nothing is registered under
    ├── TrainError        a training step's loss or gradient is not finite
    ├── ProcessError      another process of the run is gone, or differs
    ├── CheckpointError   a checkpoint is missing, cut off or from another model
    └── ExtraError        an optional dependency is not installed

A message says which thing, what was expected, what was got and what to type. The command line
tools catch `MicuError` only: anything else is a bug and keeps its traceback.
"""

import errno
import re
from collections.abc import Sequence

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Characters that steer a terminal, turn the order of a line round, or are no text; not tab and
line feed."""
MAX_MESSAGE = 1000
"""Longest message about a clip, characters: a hostile file may have a name of megabytes to tell."""


def show_unseen(text: str) -> str:
    r"""A text with `\u001b` for each character that would steer the terminal instead of being seen.

    The escape is JSON's, so that JSON stays what it is.
    """
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shorten(text: str, most: int = MAX_MESSAGE) -> str:
    """A text of at most `most` characters: of a longer one its begin and its end."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 3]} … {text[len(text) - end :]}"


class MicuError(Exception):
    """Base of every error that this project raises on purpose."""


class ManifestError(MicuError):
    """A manifest or a class list cannot be used."""


class ClipError(MicuError):
    """One clip fails, and the run goes on.

    The message is shortened here: it goes into ledgers, and may quote what is in a file of others.

    Attributes:
        code: Short stable name for the failure ledger, for example `no_audio` or `truncated`.
    """

    def __init__(self, code: str, message: str) -> None:  # noqa: D107
        super().__init__(shorten(message))
        self.code = code


class DecodeError(ClipError):
    """One clip's media cannot be turned into an array."""


class FeatureError(ClipError):
    """One clip's features must not be stored."""


class DeviceError(MicuError):
    """A device has no memory left; on another, or once others leave it, the same may work."""


class WeightsError(MicuError):
    """A backbone's weights cannot be had or do not fit."""


class StoreError(MicuError):
    """A feature set or a shard is missing, hostile or of another run."""


class ShapeError(MicuError):
    """An array does not have the shape that a function states."""


class ConfigError(MicuError):
    """An option or a configuration value is out of range."""


class RegistryError(MicuError):
    """A name that nothing is registered under."""


class TrainError(MicuError):
    """A training step's loss or gradient is not finite."""


class ProcessError(MicuError):
    """Another process of the run is gone, or differs."""


class CheckpointError(MicuError):
    """A checkpoint is missing, cut off or from another model."""


class ExtraError(MicuError):
    """An optional dependency is not installed.

    Built from the missing package and the extra that brings it, so that the message always ends in
    the command to type.
    """

    def __init__(self, package: str, extra: str) -> None:  # noqa: D107
        super().__init__(f"{package} is not installed; type: pip install 'micu[{extra}]'")


def brief(what: object, most: int = 120) -> str:
    """A text of others, cut to what a message has room for.

    Args:
        what: Text, or an error or anything else that has one.
        most: Characters that are kept.
    """
    return shorten(str(what), most)


def check_shape(
    shape: Sequence[int], dims: str, what: str, hint: str = "", **sizes: int
) -> dict[str, int]:
    """Check a shape against named dimensions, and return what each name stands for.

    Args:
        shape: The shape to check.
        dims: Names separated by blanks, for example `"B T D"`; a number stands for itself.
        what: What is being checked, for the message.
        hint: What the user may have done, put at the end of the message.
        **sizes: The dimensions that must have a given size.

    Returns:
        The size of every named dimension.

    Raises:
        ShapeError: A wrong number of dimensions, or a size that differs.
    """
    names = dims.split()
    wanted = {name: int(name) if name.isdigit() else sizes.get(name) for name in names}
    fits = len(shape) == len(names) and all(
        wanted[name] is None or wanted[name] == size
        for name, size in zip(names, shape, strict=True)
    )
    if not fits:
        spelled = ", ".join(
            name if wanted[name] is None or name.isdigit() else f"{name}={wanted[name]}"
            for name in names
        )
        tail = f"; {hint}" if hint else ""
        raise ShapeError(f"{what}: expected ({spelled}), got {tuple(shape)}{tail}")
    return dict(zip(names, shape, strict=True))


_NO_MEMORY = (
    *("out of memory", "not enough memory", "cannot allocate memory", "can't allocate memory"),
    *("defaultcpuallocator", "alloc_failed", "bad_alloc", "storage size calculation overflowed"),
)
"""In messages of errors that libraries raise where memory has run out, lower case."""


def no_memory(error: BaseException | None) -> BaseException | None:
    """What says that memory has run out: an error, or one that led to it; None if nothing does."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return error
        if isinstance(error, RuntimeError) and any(
            words in str(error).lower() for words in _NO_MEMORY
        ):
            return error
        error = error.__cause__
    return None
