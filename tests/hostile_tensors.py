"""Files that claim to be torch's: bombs, lies about sizes, and pickles that never end."""

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def tensor_pickle(
    numel: int = 4,
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    *,
    legacy: bool = False,
) -> bytes:
    """A pickle of `{"w": tensor}` over storage 0, as torch writes it."""
    numbers = [pickle.dumps(x, 2)[2:-1] for x in (numel, offset, size, stride)]
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + numbers[0] + b"N" * legacy + b"tQ" + b"".join(numbers[1:]) + b"\x89}tRs."
    )  # fmt: skip


def nested(deep: int, wide: int = 2) -> bytes:
    """Opcodes of a tuple that holds one tuple twice, that holds one twice, and so on."""
    body = b"K\x01"
    for number in range(deep):
        again = b"j" + struct.pack("<I", number)
        body += b"r" + struct.pack("<I", number) + again * (wide - 1)
        body += b"\x85" if wide == 1 else b"\x86"
    return body


def write_zip(
    path: Path,
    data: bytes,
    storages: dict[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
    more: dict[str, bytes] | None = None,
) -> Path:
    """An archive in torch's layout."""
    storages = {"0": bytes(16)} if storages is None else storages
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", b"3\n")
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    return path


def write_legacy(path: Path, data: bytes, storages: bytes = b"") -> Path:
    """A file in the layout of before torch 1.6."""
    parts = [pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL, {"little_endian": True})]
    path.write_bytes(b"".join(parts) + data + pickle.dumps(["0"], 2) + storages)
    return path


def wrapped(body: bytes) -> bytes:
    """`{"format": 1, "Encoder_parameters": body, "Text_ar_lstm_parameters": {}, "w": body}`."""
    text = b"".join(
        b"X" + struct.pack("<I", len(name)) + name + value
        for name, value in (
            (b"format", b"K\x01"),
            (b"Encoder_parameters", b"}"),
            (b"Text_ar_lstm_parameters", b"}"),
            (b"w", body),
        )
    )
    return b"\x80\x02}(" + text + b"u."


def packed(path: Path) -> Path:
    return write_zip(path, tensor_pickle(10**7, (10**7,)), {"0": bytes(4 * 10**7)}, compression=8)


def overlapping(path: Path) -> Path:
    """Two names for the same bytes of the archive."""
    write_zip(path, tensor_pickle(), {"0": bytes(16), "1": bytes(16)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        places = {item.filename: item.header_offset for item in archive.infolist()}
    begin = struct.unpack("<L", data[-6:-2])[0]
    where = data.index(b"archive/data/1", begin) - 4
    data[where : where + 4] = struct.pack("<L", places["archive/data/0"])
    path.write_bytes(data)
    return path


def other_local_header(path: Path) -> Path:
    """The directory says that an entry is plain, the entry that it is packed."""
    write_zip(path, tensor_pickle())
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("archive/data/0").header_offset
    data[place + 8 : place + 10] = struct.pack("<H", 8)
    path.write_bytes(data)
    return path


def fewer_counted(path: Path) -> Path:
    """The end says that the directory has one entry."""
    write_zip(path, tensor_pickle())
    data = bytearray(path.read_bytes())
    data[-14:-10] = struct.pack("<2H", 1, 1)
    path.write_bytes(data)
    return path


def with_comment(path: Path) -> Path:
    write_zip(path, tensor_pickle())
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\x05\x06" + bytes(18)
    return path


def before_it(path: Path) -> Path:
    """Something before the archive, which some readers pass over."""
    write_zip(path, tensor_pickle())
    path.write_bytes(b"PK\x03\x04" + bytes(60) + path.read_bytes())
    return path


def of_zip(data: bytes, storages: dict[str, bytes] | None = None) -> Callable[[Path], Path]:
    return lambda path: write_zip(path, data, storages)


def of_legacy(data: bytes) -> Callable[[Path], Path]:
    return lambda path: write_legacy(path, data, struct.pack("<q", 4) + bytes(16))


def saved(value: Any) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        torch.save(value() if callable(value) else value, path)
        return path

    return write


def call(name: str, *arguments: Any) -> bytes:
    """Opcodes that call something with plain arguments."""
    module, _, function = name.rpartition(".")
    given = pickle.dumps(arguments, 2)[2:-1]
    return f"c{module}\n{function}\n".encode() + given + b"R"


def cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return {"w": value}


def deep_lists() -> Any:
    value: list[Any] = []
    for _ in range(150):
        value = [value]
    return {"w": value}


def same_hash() -> Any:
    return {"w": {number * (2**61 - 1): 0 for number in range(100)}}


HUGE = 10**12
BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "packed": (packed, r"archive/data\.pkl is packed and declares more bytes than it has"),
    "overlapping": (overlapping, "archive/data/0 runs into what comes after it"),
    "local header": (other_local_header, "archive/data/0 is otherwise in the directory"),
    "count": (fewer_counted, "1 entries are 4"),
    "comment": (with_comment, "no directory at its end"),
    "before": (before_it, "no directory at its end"),
    "twice": (
        lambda p: write_zip(p, tensor_pickle(), more={"archive/DATA.pkl": tensor_pickle()}),
        r"archive/DATA\.pkl has no name of its own",
    ),
    "other root": (
        lambda p: write_zip(p, tensor_pickle(), more={"other/data.pkl": b"."}),
        r"other/data\.pkl is none of torch's entries",
    ),
    "no pickle": (
        lambda p: write_zip(p, b"", more={}) and rename_pickle(p),
        r"the archive has no data\.pkl",
    ),
    "program": (
        lambda p: write_zip(p, tensor_pickle(), more={"archive/constants.pkl": b"."}),
        "got a TorchScript program",
    ),
    "nested": (of_zip(wrapped(nested(40))), "holds the same containers again and again"),
    "nested key": (of_zip(wrapped(b"}" + nested(40) + b"K\x01s")), "expected names as keys"),
    "nested set": (
        of_zip(wrapped(b"c__builtin__\nset\n]" + nested(40) + b"a\x85R")),
        "expected names as keys",
    ),
    "nested pairs": (
        of_zip(wrapped(b"ccollections\nOrderedDict\n]]" + nested(40) + b"aK\x01aa\x85R")),
        "expected names as keys",
    ),
    "nested legacy": (of_legacy(wrapped(nested(40))), "again and again"),
    "nested system": (
        lambda p: legacy_system(p, nested(40)),
        "holds the same containers again and again",
    ),
    "deep": (of_zip(wrapped(nested(150, 1))), "is nested more than 100 deep"),
    "deep lists": (saved(deep_lists), "is nested more than 100 deep"),
    "itself": (saved(cyclic), "holds itself"),
    "same hash": (saved(same_hash), "huge numbers"),
    "steps": (of_zip(wrapped(b"]" + b"Na" * 600_000)), "at most 500000 steps"),
    "storage": (of_zip(tensor_pickle(HUGE, (4,))), "a storage claims 4000000000000 bytes"),
    "short storage": (of_zip(tensor_pickle(5, (5,))), "a storage claims 20 bytes"),
    "no storage": (of_zip(tensor_pickle(4, (4,)), {}), "a storage claims 16 bytes"),
    "legacy storage": (
        of_legacy(tensor_pickle(HUGE, (4,), legacy=True)),
        "a storage claims 4000000000000",
    ),
    "legacy short": (
        of_legacy(tensor_pickle(50, (4,), legacy=True)),
        "declares more bytes than it has",
    ),
    "expanded": (of_zip(tensor_pickle(4, (10**9, 10**3), (0, 0))), r"one of shape \(1000000000, "),
    "beyond": (of_zip(tensor_pickle(4, (2, 2), (3, 1))), r"more than is there, one of shape \(2, "),
    "offset": (of_zip(tensor_pickle(4, (4,), offset=1)), r"claim more than is there.*\(4,\)"),
    "five of four": (of_zip(tensor_pickle(4, (5,))), r"claim more than is there.*\(5,\)"),
    "rows": (of_zip(tensor_pickle(4, (2**26 + 1, 4), (0, 1))), r"claim more than is there.*\(6710"),
    "dimensions": (of_zip(tensor_pickle(4, (1,) * 65, (1,) * 65)), "claim more than is there"),
    "legacy expanded": (
        of_legacy(tensor_pickle(4, (HUGE,), (0,), legacy=True)),
        "claim more than is there",
    ),
    "sparse": (saved({"a": {"w": torch.eye(3).to_sparse()}}), r"a\.w: .*a tensor that is sparse"),
    "meta": (saved({"w": torch.empty(3, device="meta")}), r"w: .*without data \(meta\)"),
    "quantized": (
        saved(lambda: {"w": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}),
        "w: .*a tensor that is quantized",
    ),
}


def rename_pickle(path: Path) -> Path:
    path.write_bytes(path.read_bytes().replace(b"data.pkl", b"data.pkx"))
    return path


def legacy_system(path: Path, body: bytes) -> Path:
    parts = [pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL)]
    path.write_bytes(b"".join(parts) + wrapped(body) + wrapped(b"}") + pickle.dumps([], 2))
    return path


RUNS = {
    "bytearray": call("builtins.bytearray", HUGE),
    "tensor": call("torch.FloatTensor", HUGE),
    "untyped": call("torch.storage.UntypedStorage", HUGE),
    "eval": call("builtins.eval", "1"),
    "system": call("os.system", "true"),
    "array": call("numpy.zeros", HUGE),
}
"""What would run code, or take memory, by a name that torch knows or does not know."""
