"""ONNX tensors to NumPy arrays: in the file, in external files (memory-mapped), sparse ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tamis.errors import InvalidModel, UnsupportedModel
from tamis.formats.dtype import DType

# ONNX element types that a value of the graph may have.
ELEMENT_TYPES: Mapping[int, DType] = MappingProxyType(
    {
        TensorProto.FLOAT: DType.FLOAT32,
        TensorProto.DOUBLE: DType.FLOAT64,
        TensorProto.FLOAT16: DType.FLOAT16,
        TensorProto.BFLOAT16: DType.BFLOAT16,
        TensorProto.FLOAT8E4M3FN: DType.FLOAT8_E4M3,
        TensorProto.INT64: DType.INT64,
        TensorProto.INT32: DType.INT32,
        TensorProto.INT16: DType.INT16,
        TensorProto.INT8: DType.INT8,
        TensorProto.UINT64: DType.UINT64,
        TensorProto.UINT32: DType.UINT32,
        TensorProto.UINT16: DType.UINT16,
        TensorProto.UINT8: DType.UINT8,
        TensorProto.BOOL: DType.BOOL,
    }
)
RESAVE = "save it again with onnx.save(model, path) where the model was made"


def type_name(element: int) -> str:
    """The name ONNX gives an element type, for messages."""
    known = TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(element)) if element in known else f"type {element}"


def element_type(element: int, what: str) -> DType:
    """The element type behind an ONNX number; ``UnsupportedModel`` for strings, complex numbers and such."""
    dtype = ELEMENT_TYPES.get(element)
    if dtype is None:
        raise UnsupportedModel(f"{what} has elements of {type_name(element)}, which Tamis cannot compute with")
    return dtype


def to_array(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """The elements of an ONNX tensor, without a copy where that is possible.

    ``folder`` is where external files are looked for; None for a model that came without one.

    Raises:
        InvalidModel: the tensor's bytes are missing or do not fill its shape.
        UnsupportedModel: the elements are strings, complex numbers or the like.
    """
    what = f"tensor '{tensor.name}'"
    if tensor.data_type in (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        element_type(tensor.data_type, what)
    if tensor.data_location == TensorProto.EXTERNAL:
        raw = _external_bytes(tensor, folder)
        return _from_bytes(raw, tensor, what)
    if tensor.HasField("raw_data"):
        return _from_bytes(np.frombuffer(tensor.raw_data, np.uint8), tensor, what)
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:
        raise InvalidModel(f"{what} cannot be read: {error}", remedy=RESAVE) from None


def raw_bytes(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """The bytes of a tensor as a file holds them, uint8; errors as those of ``to_array``."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external_bytes(tensor, folder)
    raw = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.from_array(to_array(tensor, folder)).raw_data
    return np.frombuffer(raw, np.uint8)


def _from_bytes(raw: np.ndarray, tensor: TensorProto, what: str) -> np.ndarray:
    shape = tuple(tensor.dims)
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise InvalidModel(f"{what} has no valid element type ({tensor.data_type})", remedy=RESAVE)
    if any(size < 0 for size in shape):
        raise InvalidModel(f"{what} has the shape {list(shape)}", remedy=RESAVE)
    dtype = ELEMENT_TYPES.get(tensor.data_type)
    if dtype is None:
        plain = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=shape, raw_data=raw.tobytes())
        try:
            return numpy_helper.to_array(plain)
        except Exception as error:
            raise InvalidModel(f"{what} cannot be read: {error}", remedy=RESAVE) from None
    expected = prod(shape) * dtype.size_bytes
    if raw.nbytes != expected:
        raise InvalidModel(
            f"{what} holds {raw.nbytes} bytes, but its shape {list(shape)} of {dtype} needs {expected}",
            remedy="the file is damaged; " + RESAVE,
        )
    little = dtype.numpy.newbyteorder("<") if dtype.numpy.kind in "iuf" else dtype.numpy
    array = raw.view(little).reshape(shape)
    return array if array.flags.aligned else array.copy()


def widened(array: np.ndarray) -> tuple[np.ndarray, str]:
    """An array in a type that ``DType`` names, and the name of its own type where it was another one.

    Types narrower than a byte and rare 8-bit floats widen without loss: int4 to int8, float8e5m2 to float32.
    """
    name = array.dtype.name
    if name in ("int4", "int2"):
        return array.astype(np.int8), name
    if name in ("uint4", "uint2"):
        return array.astype(np.uint8), name
    if name.startswith(("float4_", "float6_", "float8_")) and name != "float8_e4m3fn":
        return array.astype(np.float32), name
    return array, ""


def _external_bytes(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """The bytes of a tensor kept outside the model's file, memory-mapped."""
    what = f"tensor '{tensor.name}'"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise InvalidModel(
            f"{what} is kept in the external file {location!r}, but the model was given without its folder",
            remedy="give the path of the model's file, or call onnx.load(path) with its external data",
        )
    path = _external_path(folder, location, what)
    try:
        offset, size = int(entries.get("offset", 0)), path.stat().st_size
        length = int(entries.get("length", size - offset))
    except (ValueError, TypeError, OSError) as error:
        raise InvalidModel(f"{what}: its external data cannot be read: {error}", remedy=RESAVE) from None
    if offset < 0 or length < 0 or offset + length > size:
        raise InvalidModel(
            f"{what} needs bytes {offset} to {offset + length} of '{location}', which has only {size}",
            remedy="the file is truncated; copy it again",
        )
    if length == 0:
        return np.zeros(0, np.uint8)
    try:
        return np.memmap(path, np.uint8, "r", offset, (length,))
    except OSError as error:
        raise InvalidModel(
            f"{what}: its external file '{location}' cannot be read: {error.strerror or error}",
            remedy="allow it to be read, or copy the model again",
        ) from None


def _external_path(folder: Path, location: object, what: str) -> Path:
    """The external file that a tensor names: text, or the bytes that protobuf gives where it is none."""
    if not isinstance(location, str) or "\0" in location:
        problem = "holds a null character" if isinstance(location, str) else "is not UTF-8"
        raise InvalidModel(f"{what} names the external file {location!r}, which {problem}", remedy=RESAVE)
    root = folder.resolve()
    try:
        path = (root / location).resolve()
        present = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, links in a circle, no name at all
        why = getattr(error, "strerror", None) or error
        raise InvalidModel(
            f"{what} is kept in an external file that cannot be looked for: {why}", remedy=RESAVE
        ) from None
    if not location or Path(location).is_absolute() or not path.is_relative_to(root):
        linked = (root / location).is_symlink() and ".." not in Path(location).parts
        raise InvalidModel(
            f"{what} names the external file '{location}', which is "
            + ("a link to a file " if linked else "")
            + "outside the model's folder",
            remedy="put a copy of the file in its place" if linked else "keep external data beside the model",
        )
    if not present:
        raise InvalidModel(
            f"{what} is kept in the external file '{location}', which is not in '{folder}'",
            remedy="copy that file beside the model, or save the model again in one file with "
            "onnx.save(model, path, save_as_external_data=False)",
        )
    return path


def stored_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """All dense tensors that a model stores, in initializers, attributes, bodies and local functions."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for body in bodies_of(attribute):
                yield from _tensors_of_graph(body)


def bodies_of(attribute: onnx.AttributeProto) -> tuple[onnx.GraphProto, ...]:
    """The graphs that an attribute holds: branches of an If, the body of a Loop."""
    return (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ()))


def external_files(model: onnx.ModelProto) -> set[str]:
    """The names of the files that hold tensors of a model, relative to its folder; those that are no names left out."""
    locations = {
        entry.value for tensor in stored_tensors(model) for entry in tensor.external_data if entry.key == "location"
    }
    return {name for name in locations if isinstance(name, str) and name and "\0" not in name}


def sparse_to_array(tensor: onnx.SparseTensorProto, folder: Path | None) -> np.ndarray:
    """A sparse initializer (values and coordinates) as a dense array."""
    values, indices = to_array(tensor.values, folder), to_array(tensor.indices, folder)
    dense = np.zeros(tuple(tensor.dims), values.dtype)
    try:
        if indices.ndim == 2:
            dense[tuple(indices.T)] = values
        else:
            dense.reshape(-1)[indices] = values
    except (IndexError, ValueError) as error:
        raise InvalidModel(f"sparse tensor '{tensor.values.name}' cannot be read: {error}") from None
    return dense
