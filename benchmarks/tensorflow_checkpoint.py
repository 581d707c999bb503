"""Reads the tensors of a TensorFlow checkpoint without TensorFlow.

A checkpoint is an index, which is a sorted string table of protocol buffers, and a file of raw
tensors. Source: tensorflow/core/util/tensor_bundle and leveldb's table_format.md.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAGIC = 0xDB4775248B80FB57
FLOAT = 1
"""TensorFlow's number of float32, the one type that is read."""


def read_tensors(prefix: Path) -> dict[str, NDArray[np.float32]]:
    """Every float32 tensor of a checkpoint, by its key.

    Args:
        prefix: Path without the endings `.index` and `.data-00000-of-00001`.

    Raises:
        ValueError: The index is not one, is compressed, or names bytes that are not there.
    """
    index = prefix.with_name(f"{prefix.name}.index").read_bytes()
    data = prefix.with_name(f"{prefix.name}.data-00000-of-00001").read_bytes()
    tensors = {}
    for key, value in _table_entries(index):
        fields = dict(_proto_fields(value)) if key else {}
        if fields.get(1) != FLOAT:
            continue
        shape = tuple(dict(_proto_fields(size)).get(1, 0) for size in _dims(fields.get(2, b"")))
        start, size = fields.get(4, 0), fields[5]
        if size != 4 * int(np.prod(shape)) or start + size > len(data):
            raise ValueError(f"{prefix}: {key!r} names bytes that are not there")
        flat = np.frombuffer(data, "<f4", size // 4, start)
        tensors[key.decode()] = flat.reshape(shape)
    return tensors


def _dims(shape: bytes) -> list[bytes]:
    return [value for number, value in _proto_fields(shape) if number == 2]


def _table_entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    if struct.unpack("<Q", table[-8:])[0] != MAGIC:
        raise ValueError("expected a sorted string table, got another file")
    _, place = _varint(table, len(table) - 48)  # the handle of the meta index
    _, place = _varint(table, place)
    start, place = _varint(table, place)
    size, _ = _varint(table, place)
    for _, handle in _block_entries(table, start, size):
        first, place = _varint(handle, 0)
        yield from _block_entries(table, first, _varint(handle, place)[0])


def _block_entries(table: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if table[start + size] != 0:
        raise ValueError("expected a table without compression")
    block = table[start : start + size]
    end = size - 4 * (1 + struct.unpack("<I", block[-4:])[0])  # the restart points
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length


def _proto_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
        elif kind == 2:
            length, place = _varint(message, place)
            yield number, message[place : place + length]
            place += length
        else:
            place += {1: 8, 5: 4}[kind]


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
