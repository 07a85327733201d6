"""The engine and the file it is kept in.

An engine file is one safetensors file, so that any safetensors reader can list and read its tensors::

    8 bytes     length of the header, little-endian
    header      JSON: {"__metadata__": {"digest": ..., "format": ..., "plan": ...}, tensor name: {...}, ...},
                filled up with spaces so that the tensors start at a multiple of 64 bytes
    tensors     one after the other without gaps

The digest stands first, at a fixed place. It is the SHA-256 of every byte of the file, with the 64 characters
of the digest itself taken as ``0``: a flipped bit anywhere is found. Tensors whose size is a multiple of 64
bytes come first, so that all of them (nearly all weights) lie on cache lines; the rest follows by falling
element size, so that everything is aligned to its elements. Equal engines give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tamis.engine.plan import Plan, from_json, to_json
from tamis.errors import ConfigError, CorruptEngine, EngineError
from tamis.files import replaced_file
from tamis.formats.dtype import DType

FILE_FORMAT = "tamis-engine-1"
ALIGNMENT = 64

_ZEROS = b"0" * 64
_PREFIX = b'{"__metadata__":{"digest":"'
_DIGEST_START = 8 + len(_PREFIX)
_CHUNK = 1 << 22
_CODES = {
    DType.FLOAT64: "F64",
    DType.FLOAT32: "F32",
    DType.FLOAT16: "F16",
    DType.BFLOAT16: "BF16",
    DType.FLOAT8_E4M3: "F8_E4M3",
    DType.INT64: "I64",
    DType.INT32: "I32",
    DType.INT16: "I16",
    DType.INT8: "I8",
    DType.UINT8: "U8",
    DType.UINT16: "U16",
    DType.UINT32: "U32",
    DType.UINT64: "U64",
    DType.BOOL: "BOOL",
}
_TYPES = {code: dtype for dtype, code in _CODES.items()}
_BUILD_AGAIN = "build the engine again"
_GIVE_AN_ENGINE = "give a .tamis file, as 'tamis build' writes it"


@dataclass(frozen=True)
class Engine:
    """A compiled network: the plan, and the tensors that its steps name as constants.

    Raises ``CorruptEngine`` when a step names a constant that is not among the tensors.
    """

    plan: Plan
    tensors: Mapping[str, np.ndarray]

    def __repr__(self) -> str:
        plan = self.plan
        return f"<Engine {plan.name!r} for {plan.device.name}, layers: {len(plan.layers)}, steps: {len(plan.steps)}>"

    def __post_init__(self) -> None:
        """Check that no constant is missing."""
        for step in self.plan.steps:
            for name in step.constants:
                if name not in self.tensors:
                    raise CorruptEngine(
                        f"step '{step.name}' needs the tensor '{name}', which the engine does not hold",
                        remedy=_BUILD_AGAIN,
                    )


def save(engine: Engine, path: str | os.PathLike[str]) -> None:
    """Write an engine. The file appears whole or not at all; an older file of that name is replaced.

    Raises ``OutputError`` when it cannot be written.
    """
    arrays = {name: _native(engine.tensors[name]) for name in _file_order(engine.tensors)}
    header = _header(engine.plan, arrays)
    digest = hashlib.sha256()
    with replaced_file(path) as file:
        parts: list[bytes | memoryview] = [len(header).to_bytes(8, "little"), header]
        for part in parts + [_bytes_of(array) for array in arrays.values()]:
            digest.update(part)
            file.write(part)
        file.seek(_DIGEST_START)
        file.write(digest.hexdigest().encode())


def read(path: str | os.PathLike[str], *, verify: bool = True) -> Engine:
    """Read an engine; its tensors are read-only views of the file, which is mapped into memory.

    With ``verify=False`` the digest is not checked, so that only the pages in use are ever read.
    Raises ``CorruptEngine`` when the file is not an intact engine, ``EngineError`` when it cannot be opened.
    """
    path = Path(path)
    mapped = _map(path)
    entries, metadata = _parse(path, mapped)
    if verify and _digest_of(mapped) != mapped[_DIGEST_START : _DIGEST_START + 64]:
        raise CorruptEngine(f"{path} was altered or damaged (its digest differs)", remedy=_BUILD_AGAIN)
    start = 8 + int.from_bytes(mapped[:8], "little")
    tensors = {name: _tensor(mapped, start, entry) for name, entry in entries.items()}
    return Engine(from_json(metadata["plan"]), tensors)


def is_engine(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts like an engine; False for one that cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(_DIGEST_START)[8:] == _PREFIX
    except OSError:
        return False


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Raise before long work what writing ``path`` would raise after it.

    ``OutputError`` when it cannot be written, ``ConfigError`` when it is one of ``inputs``, which it would replace.
    These are not even looked at when there is nothing at ``path`` yet.
    """
    for source in inputs if Path(path).exists() else ():
        if Path(source).exists() and Path(path).samefile(source):
            raise ConfigError(f"the output would replace {source}, which is read", remedy="choose another output path")
    with suppress(_OnlyATry), replaced_file(path):
        raise _OnlyATry


class _OnlyATry(Exception):
    """Ends the writing of a file that nobody wants."""


def _native(array: np.ndarray) -> np.ndarray:
    """The array as its bytes will stand in the file: C order, little-endian."""
    return np.asarray(array, dtype=DType.of(array).numpy.newbyteorder("<"), order="C")


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _file_order(tensors: Mapping[str, np.ndarray]) -> list[str]:
    def key(name: str) -> tuple[bool, int, str]:
        array = tensors[name]
        return array.nbytes % ALIGNMENT != 0, -array.itemsize, name

    return sorted(tensors, key=key)


def _header(plan: Plan, arrays: Mapping[str, np.ndarray]) -> bytes:
    if "__metadata__" in arrays:
        raise EngineError("a tensor has the reserved name '__metadata__'", remedy="rename it in the model")
    metadata = {"digest": _ZEROS.decode(), "format": FILE_FORMAT, "plan": to_json(plan)}
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, array in arrays.items():
        end = offset + array.nbytes
        code = _CODES[DType.of(array)]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-(8 + len(text)) % ALIGNMENT)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        cause = f"cannot read {path}: {error.strerror or error}"
        raise EngineError(cause, remedy=_GIVE_AN_ENGINE) from error
    except ValueError as error:  # an empty file cannot be mapped
        raise CorruptEngine(f"{path} is empty", remedy=_BUILD_AGAIN) from error


def _parse(path: Path, mapped: mmap.mmap) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensor entries and the metadata of a file that safetensors' own parser accepts."""
    try:
        # It checks that the header is sound and that the tensors fill the rest of the file exactly.
        with safe_open(path, framework="numpy"):
            pass
        entries = json.loads(mapped[8 : 8 + int.from_bytes(mapped[:8], "little")])
        metadata = entries.pop("__metadata__", {})
    except (SafetensorError, ValueError, OSError) as error:
        if mapped[8:_DIGEST_START] != _PREFIX:
            raise CorruptEngine(f"{path} is not an engine file", remedy=_GIVE_AN_ENGINE) from error
        raise CorruptEngine(f"{path} is truncated or damaged ({error})", remedy=_BUILD_AGAIN) from error
    if not {"digest", "format", "plan"} <= metadata.keys():
        raise CorruptEngine(f"{path} is a safetensors file, but not an engine", remedy=_GIVE_AN_ENGINE)
    if metadata["format"] != FILE_FORMAT or mapped[8:_DIGEST_START] != _PREFIX:
        raise CorruptEngine(
            f"{path} has the file format '{metadata['format']}', this Tamis reads '{FILE_FORMAT}'",
            remedy="build the engine again with this version of Tamis",
        )
    unknown = sorted({entry["dtype"] for entry in entries.values()} - _TYPES.keys())
    if unknown:
        raise CorruptEngine(f"{path} holds tensors of unknown type {unknown[0]}", remedy=_BUILD_AGAIN)
    return entries, metadata


def _digest_of(mapped: mmap.mmap) -> bytes:
    digest = hashlib.sha256()
    with memoryview(mapped) as view:
        digest.update(view[:_DIGEST_START])
        digest.update(_ZEROS)
        for start in range(_DIGEST_START + 64, len(view), _CHUNK):
            digest.update(view[start : start + _CHUNK])
    return digest.hexdigest().encode()


def _tensor(mapped: mmap.mmap, start: int, entry: Mapping[str, Any]) -> np.ndarray:
    shape, dtype = tuple(entry["shape"]), _TYPES[entry["dtype"]].numpy
    begin, end = entry["data_offsets"]
    if prod(shape) * dtype.itemsize != end - begin:  # safetensors checked it; NumPy must never read beyond
        raise CorruptEngine("a tensor's size does not fit its shape", remedy=_BUILD_AGAIN)
    if begin == end:
        return np.zeros(shape, dtype)
    return np.ndarray(shape, dtype, buffer=mapped, offset=start + begin)
