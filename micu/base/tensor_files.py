"""Files that torch wrote and nobody vouches for: refused before torch reads what would do harm.

`torch.load(weights_only=True)` runs no code of a file, but believes what it says: it unpacks what
is packed, reserves what a storage claims, reads past the end of one that is shorter, and hashes
tuples that hold themselves over and over. Here a file's structure is walked first, in memory and
steps that its size bounds: the zip archive, whose entries must lie in it plainly and one after the
other, and the pickle, whose opcodes are followed without making any of its objects. Files of before
torch 1.6, pickles followed by storages, are walked likewise.
"""

import hashlib
import io
import pickle
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from micu.base.errors import CheckpointError, brief
from micu.base.tensor_pickle import PickleWalk

if TYPE_CHECKING:
    from torch import Tensor

ZIP_START = b"PK\x03\x04"
MAX_PICKLE_BYTES = 64 * 2**20
"""Of the pickles of one file; those of the largest networks have a few."""
MAX_ENTRIES = 100_000
"""Of an archive: one per storage."""
_LEGACY_START = b"\x80\x02"
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_END = struct.Struct("<4s4H2LH")
"""The end of a zip archive: signature, two disks, entries here and in all, size and place of the
directory, length of a comment."""
_LONG_END, _LOCATOR_BYTES = struct.Struct("<4sQ2H2L4Q"), 20
"""The same with numbers of 64 bits, and the size of what says where it is."""
_LOCAL = struct.Struct("<4s5H3L2H")
"""The start of an entry: signature, version, flags, packing, two of time, CRC, sizes, lengths."""


class DamagedError(CheckpointError):
    """A file is cut off or damaged, or no file of tensors at all; another copy may be whole."""


def load_tensor_file(path: Path, *, repeats: bool = False) -> tuple[Any, str]:
    """What a file of `torch.save` holds, on the CPU, and the SHA-256 of its bytes.

    Args:
        path: The file.
        repeats: As of `check_tensor_file`.

    Raises:
        DamagedError: It is cut off or damaged, or none of torch's.
        CheckpointError: It is missing, or claims more than it has.
        pickle.UnpicklingError: It asks for objects that could run code.
        OSError: The disk refused.
    """
    import torch

    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if not path.is_file():  # opening a pipe would wait for its writer
        raise DamagedError(f"{path}: not a file")
    with path.open("rb") as file:
        check_tensor_file(file, str(path), repeats=repeats)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True), digest
        except pickle.UnpicklingError:
            raise
        except Exception as error:  # a pickle that is not what it says can raise anything
            raise DamagedError(f"{path}: cannot be read ({type(error).__name__})") from error


def load_safetensors(path: Path) -> "tuple[dict[str, Tensor], str]":
    """Tensors by name of a file of safetensors, on the CPU, and the SHA-256 of its bytes.

    Raises:
        DamagedError: It is cut off or damaged, or no such file.
        OSError: The disk refused.
    """
    from safetensors.torch import load

    if not path.is_file():
        raise DamagedError(f"{path}: no such file")
    data = path.read_bytes()
    try:
        return load(data), hashlib.sha256(data).hexdigest()
    except Exception as error:  # a header that is not what it says can raise anything
        raise DamagedError(
            f"{path}: cut off, or no file of safetensors ({brief(error)})"
        ) from error


def check_tensor_file(
    file: BinaryIO, where: str, *, arrays: bool = False, repeats: bool = False
) -> None:
    """Refuse a file that torch must not read.

    Args:
        file: Open for reading; left anywhere.
        where: What it is, for messages.
        arrays: Let arrays of NumPy through, which torch reads if it is told to.
        repeats: Let tensors repeat the numbers of a smaller storage, as long as all tensors claim
            no more than some times the size of the file.

    Raises:
        DamagedError: It is cut off or damaged, or none of torch's.
        CheckpointError: It claims more than it has, or holds tensors that are no plain arrays.
        pickle.UnpicklingError: It asks for objects that could run code.
    """
    size = file.seek(0, io.SEEK_END)
    walk = PickleWalk(where, size, arrays=arrays, repeats=repeats)
    file.seek(0)
    start = file.read(4)
    try:
        if start == ZIP_START:
            _check_archive(file, size, where, walk)
        elif start.startswith(_LEGACY_START):
            _check_legacy(file, size, where, walk)
        else:
            raise DamagedError(f"{where}: cut off, or not a checkpoint (it is no zip archive)")
    # pickletools and zipfile raise these about damaged files, struct.error among them
    except (
        *(ValueError, ArithmeticError, LookupError, AttributeError, TypeError, EOFError),
        *(
            struct.error,
            zipfile.BadZipFile,
            zipfile.LargeZipFile,
            NotImplementedError,
            RuntimeError,
        ),
    ) as error:
        raise DamagedError(f"{where}: cut off, or not a checkpoint ({brief(error)})") from error


# --- the archive -----------------------------------------------------------------------------


def _check_archive(file: BinaryIO, size: int, where: str, walk: PickleWalk) -> None:
    count = _check_directory(file, size, where)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) != count:
            raise DamagedError(f"{where}: damaged: {count} entries are {len(entries)}")
        places = _check_entries(file, entries, archive.start_dir, where)
        root = entries[0].filename.partition("/")[0]
        records = {entry.filename.removeprefix(f"{root}/"): entry for entry in entries}
        if "constants.pkl" in records:
            raise CheckpointError(
                f"{where}: expected tensors by name, got a TorchScript program; save its "
                "state_dict with torch.save"
            )
        if "data.pkl" not in records:
            raise CheckpointError(f"{where}: not a checkpoint: the archive has no data.pkl")
        if records["data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise _too_large(where)
        # A writer may be told to leave the sums out, all of them.
        damaged = archive.testzip() if any(entry.CRC for entry in entries) else None
        if damaged is not None:
            raise DamagedError(f"{where}: {brief(damaged)} is damaged")
    file.seek(places[records["data.pkl"].filename])
    pickled = io.BytesIO(file.read(records["data.pkl"].file_size))
    walk.record_sizes = {
        name.removeprefix("data/"): entry.file_size
        for name, entry in records.items()
        if name.startswith("data/")
    }
    walk.check_tree(walk.follow(pickled))


def _check_directory(file: BinaryIO, size: int, where: str) -> int:
    """Refuse an archive without its directory at its end, where all readers find the same one.

    Returns:
        How many entries it is said to have.
    """
    file.seek(max(0, size - _END.size))
    end = file.read(_END.size)
    lost = DamagedError(f"{where}: cut off, or not a checkpoint (no directory at its end)")
    if len(end) < _END.size or not end.startswith(b"PK\x05\x06"):
        raise lost
    *_, entries, length, begin, comment = _END.unpack(end)
    behind = size - _END.size
    file.seek(max(0, behind - _LOCATOR_BYTES))
    if file.read(4) == b"PK\x06\x07":  # what does not fit stands before it, as 64 bits
        behind -= _LOCATOR_BYTES + _LONG_END.size
        file.seek(max(0, behind))
        signature, *_, entries, length, begin = _LONG_END.unpack(file.read(_LONG_END.size))
        if signature != b"PK\x06\x06":
            raise lost
    if entries > MAX_ENTRIES or length > MAX_ENTRIES * 256:
        raise CheckpointError(
            f"{where}: expected at most {MAX_ENTRIES} entries in the archive, got {entries} in "
            f"{length} bytes; refused"
        )
    if comment or begin + length != behind:
        raise lost
    return int(entries)


def _check_entries(
    file: BinaryIO, entries: Sequence[zipfile.ZipInfo], end: int, where: str
) -> dict[str, int]:
    """Refuse entries that are packed, overlap, or are read by one reader and not by another.

    Args:
        file: The archive.
        entries: As the directory has them.
        end: Where the directory begins.
        where: For messages.

    Returns:
        Where the bytes of each begin, by name.
    """
    if not entries:
        raise CheckpointError(f"{where}: not a checkpoint: the archive is empty")
    names = set()
    root = entries[0].filename.partition("/")[0]
    for entry in entries:
        name = brief(entry.orig_filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError(
                f"{where}: {name} is packed and declares more bytes than it has, "
                f"{entry.file_size} in {entry.compress_size}; expected plain entries, as torch "
                "writes them; refused"
            )
        # torch looks names up without regard to case
        if entry.filename != entry.orig_filename or entry.filename.lower() in names:
            raise CheckpointError(f"{where}: {name} has no name of its own; refused")
        if not entry.filename.startswith(f"{root}/") or entry.flag_bits & 0x2041:
            raise CheckpointError(f"{where}: {name} is none of torch's entries; refused")
        names.add(entry.filename.lower())
    places = {}
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    for entry, limit in zip(
        ordered, [*(later.header_offset for later in ordered[1:]), end], strict=True
    ):
        file.seek(entry.header_offset)
        signature, *_, packing, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(
            file.read(_LOCAL.size)
        )
        if signature != ZIP_START or packing != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{where}: {brief(entry.filename)} is otherwise in the directory; refused"
            )
        data = entry.header_offset + _LOCAL.size + name_bytes + extra_bytes
        if data + entry.file_size > limit:
            raise CheckpointError(
                f"{where}: {brief(entry.filename)} runs into what comes after it; refused"
            )
        places[entry.filename] = data
    return places


# --- before torch 1.6 ------------------------------------------------------------------------


def _check_legacy(file: BinaryIO, size: int, where: str, walk: PickleWalk) -> None:
    file.seek(0)
    pickles = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    magic, protocol = walk.follow(pickles), walk.follow(pickles)
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise DamagedError(f"{where}: not a checkpoint: a pickle that torch did not write")
    for _ in ("system", "content", "keys"):
        try:
            walk.check_tree(walk.follow(pickles))
        except ValueError as error:
            if size > MAX_PICKLE_BYTES and pickles.tell() >= MAX_PICKLE_BYTES:
                raise _too_large(where) from error
            raise
    if pickles.tell() + sum(walk.claimed.values()) > size:
        raise DamagedError(f"{where}: cut off: declares more bytes than it has")


def _too_large(where: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: expected at most {MAX_PICKLE_BYTES} bytes beside the tensors' numbers, got "
        "more; refused"
    )
