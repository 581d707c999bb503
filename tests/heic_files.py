"""HEIC photographs, written box by box around one HEVC picture of 48 x 32 pixels."""

import base64
import struct
from pathlib import Path

HEIGHT, WIDTH = 32, 48
HEVC_SETUP = base64.b64decode(
    "AQFgAAAAkAAAAAAAHvAA/P34+AAADwMgAAEAGEABDAH//wFgAAADAJAAAAMAAAMAHpWYCSEAAQAnQgEBAWAAAAMA"
    "kAAAAwAAAwAeoGIIWWVmuTK5oCAAAAMAIAAAAwAhIgABAAZEAcFz0Ik="
)
HEVC_PICTURE = base64.b64decode(
    "AAABECgBrwY44+fBvC/mgun3qPRE2Bf3tsvnbLohqAvb7+n/gEjgnwwzfuHl//2qB//3+5yxtE9qALWIpz+2D0EP"
    "SuY2EYXrvwAtwWJU5kLhptVRsqlqgzmM+JGkwb5N+17evHgZGYV/Q+rIwTrMP5B5yrfB5Y2dn5nxREe+Dlhjy/KQ"
    "P6ez43v4vrfKxBArOxJa7BTEf2ZzQa0339I47RQ6eiPnEGQeWbtjWp5WWyP6IQG3D4YJ9e7tZ2O27zFgcwcDS6MU"
    "AOqrLVj+77jeHTcvrbs7vFh2ldc6lc+xYG+DvHiWYSAiklOqTk61+e7QDRJsPaQqGTLE41P6QijqV8r6tt2Gqse+"
    "U+6v/Cfwj/B0Duy4"
)
"""`CORNERS` of `tests.unit.test_stills`, as x265 writes it: too wilful to be run by a test."""


def save_heic(path: Path) -> None:
    """An HEIC still with one picture, box by box around it."""
    setup, data = HEVC_SETUP, HEVC_PICTURE

    def box(name: bytes, *parts: bytes, full: bool = False) -> bytes:
        body = (b"\0\0\0\0" if full else b"") + b"".join(parts)
        return struct.pack(">I4s", 8 + len(body), name) + body

    def write(place: int) -> bytes:
        item = struct.pack(">HH4s", 1, 0, b"hvc1") + b"\0"
        infe = struct.pack(">I4sI", 12 + len(item), b"infe", 2 << 24) + item
        size = struct.pack(">II", WIDTH, HEIGHT)
        ipma = struct.pack(">IHBBB", 1, 1, 2, 0x81, 2)
        return (
            box(b"ftyp", b"heic\0\0\0\0mif1heic")
            + box(
                b"meta",
                box(b"hdlr", bytes(4), b"pict", bytes(13), full=True),
                box(b"pitm", struct.pack(">H", 1), full=True),
                box(
                    b"iloc",
                    struct.pack(">BBHHHHII", 0x44, 0, 1, 1, 0, 1, place, len(data)),
                    full=True,
                ),
                box(b"iinf", struct.pack(">H", 1), infe, full=True),
                box(
                    b"iprp",
                    box(b"ipco", box(b"hvcC", setup), box(b"ispe", size, full=True)),
                    box(b"ipma", ipma, full=True),
                ),
                full=True,
            )
            + box(b"mdat", data)
        )

    path.write_bytes(write(len(write(0)) - len(data)))


def save_tiled_heic(path: Path) -> None:
    """An HEIC photograph as telephones write them; two tiles side by side, CORNERS twice."""

    def box(name: bytes, *parts: bytes, version: int = -1) -> bytes:
        body = (struct.pack(">I", version << 24) if version >= 0 else b"") + b"".join(parts)
        return struct.pack(">I4s", 8 + len(body), name) + body

    def item(number: int, kind: bytes) -> bytes:
        return box(b"infe", struct.pack(">HH4s", number, 0, kind) + b"\0", version=2)

    grid = struct.pack(">BBBBHH", 0, 0, 0, 1, 2 * WIDTH, HEIGHT)

    def write(place: int) -> bytes:
        lies = struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(grid))  # in the box `idat`
        for number in (2, 3):
            lies += struct.pack(">HHHHII", number, 0, 0, 1, place, len(HEVC_PICTURE))
        properties = box(
            b"ipco",
            box(b"hvcC", HEVC_SETUP),
            box(b"ispe", struct.pack(">II", WIDTH, HEIGHT), version=0),
            box(b"ispe", struct.pack(">II", 2 * WIDTH, HEIGHT), version=0),
        )
        owned = struct.pack(">IHBB", 3, 1, 1, 3)
        for number in (2, 3):
            owned += struct.pack(">HBBB", number, 2, 0x81, 2)
        return (
            box(b"ftyp", b"heic\0\0\0\0mif1heic")
            + box(
                b"meta",
                box(b"hdlr", bytes(4), b"pict", bytes(13), version=0),
                box(b"pitm", struct.pack(">H", 1), version=0),
                box(b"iloc", struct.pack(">BBH", 0x44, 0, 3), lies, version=1),
                box(
                    b"iinf",
                    struct.pack(">H", 3),
                    item(1, b"grid"),
                    item(2, b"hvc1"),
                    item(3, b"hvc1"),
                    version=0,
                ),
                box(b"iref", box(b"dimg", struct.pack(">HHHH", 1, 2, 2, 3)), version=0),
                box(b"iprp", properties, box(b"ipma", owned, version=0)),
                box(b"idat", grid),
                version=0,
            )
            + box(b"mdat", HEVC_PICTURE)
        )

    path.write_bytes(write(len(write(0)) - len(HEVC_PICTURE)))
