"""A large ONNX file without its weights in memory: they stay in the file, as if it were a file of external data.

Parsing takes the bytes of a file and as much again for the message made of them. Here the file is mapped, and large raw
data of initializers becomes a reference to where it stands in the file, before anything is parsed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from onnx import StringStringEntryProto, TensorProto

LARGE_FILE = 64 << 20  # bytes; smaller ones are read
_LARGE_TENSOR = 1 << 16
_TO_INITIALIZERS = (7, 5)  # ModelProto.graph, GraphProto.initializer
_RAW_DATA = 9  # of TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # kinds of fields in protobuf's wire format


def without_weights(path: Path) -> bytes | None:
    """The bytes of an ONNX file with its large initializers kept in it as external data.

    None for a file that is small, is no well-formed message, or is a link to another folder, outside of which external
    data may not lie. Raises ``OSError``.
    """
    if path.stat().st_size < LARGE_FILE or path.resolve().parent != path.parent.resolve():
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _rewritten(data, 0, len(data), _TO_INITIALIZERS, path.name)
        except (ValueError, IndexError):
            return None  # whoever parses it says what is wrong


def _rewritten(data: mmap.mmap, start: int, end: int, nested: tuple[int, ...], name: str) -> bytes:
    """A message with its large raw data taken out, in the messages within it that `nested` leads to."""
    parts: list[bytes] = []
    reference = b""
    for number, kind, begin, value, stop in _fields(data, start, end):
        if nested and number == nested[0] and kind == _BYTES:
            inner = _rewritten(data, value, stop, nested[1:], name)
            parts += [_varint(number << 3 | _BYTES), _varint(len(inner)), inner]
        elif not nested and number == _RAW_DATA and kind == _BYTES and stop - value >= _LARGE_TENSOR:
            place = {"location": name, "offset": str(value), "length": str(stop - value)}
            entries = [StringStringEntryProto(key=key, value=text) for key, text in place.items()]
            reference = TensorProto(data_location=TensorProto.EXTERNAL, external_data=entries).SerializeToString()
        else:
            parts.append(data[begin:stop])
    # last, since the last value of a field counts, and files may say that the data is inside
    return b"".join((*parts, reference))


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, kind, begin, begin of the value and end of each field of a message."""
    place = start
    while place < end:
        begin = place
        tag, place = _read_varint(data, place)
        number, kind = tag >> 3, tag & 7
        value = place
        if kind == _VARINT:
            _, stop = _read_varint(data, place)
        elif kind == _BYTES:
            size, value = _read_varint(data, place)
            stop = value + size
        elif kind in (_FIXED64, _FIXED32):
            stop = place + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError(f"a field of the kind {kind}")
        if stop > end:
            raise ValueError("a field that goes beyond its message")
        yield number, kind, begin, value, stop
        place = stop


def _read_varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    number = shift = 0
    while True:
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
        shift += 7
        if shift > 63:
            raise ValueError("a number without an end")


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
