"""From a path, bytes or a ``ModelProto`` to a parsed model and the folder of its external data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from tamis.errors import InvalidModel
from tamis.onnx_files.mapped import without_weights
from tamis.onnx_files.tensors import bodies_of, external_files

Source = str | os.PathLike[str] | bytes | onnx.ModelProto

EXPORT = "export the network with torch.onnx.export(model, inputs, path)"
KNOWN_BEGINNINGS = (
    (b"PK\x03\x04", "a zip archive, perhaps a saved torch model"),
    (b"\x80\x02", "a pickle, perhaps a saved torch model"),
    (b"\x89HDF", "an HDF5 file, perhaps a Keras model"),
    (b"TFL3", "a TensorFlow Lite model"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"{", "JSON"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run 'git lfs pull')"),
    (b"<", "a web page or XML"),
)


def load_model(source: Source, *, mapped: bool = False) -> tuple[onnx.ModelProto, Path | None, str]:
    """The parsed model, the folder for its external data (None when there is none) and a name for messages.

    ``mapped``: the weights of a large file stay in it, as external data of that name.

    Raises:
        InvalidModel: the file is missing, unreadable, not ONNX, truncated or empty, or a name in it is not text.
    """
    if isinstance(source, onnx.ModelProto):
        _check_is_model(source, "the model")
        return source, None, source.graph.name or "model"
    if isinstance(source, bytes | bytearray | memoryview):
        return _parse(bytes(source), "the given bytes"), None, "model"
    if not isinstance(source, str | os.PathLike):
        raise InvalidModel(
            f"the model is a {type(source).__name__}",
            remedy="give the path of an .onnx file; a torch module is exported by tamis.sparsity.export_onnx",
        )
    path = Path(source)
    data = _read(path, mapped)
    return _parse(data, f"'{path}'"), path.parent, path.stem


def files_of(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The files that a model consists of: that at ``path``, then, read only when asked for, its external data.

    Raises ``InvalidModel`` as ``load_model`` does.
    """
    yield Path(path)
    model, folder, _ = load_model(path, mapped=True)
    yield from ((folder or Path()) / name for name in sorted(external_files(model)))


def _read(path: Path, mapped: bool) -> bytes:
    what = f"'{path}'"
    try:
        if path.is_dir():
            raise InvalidModel(f"{what} is a directory", remedy="give the path of an .onnx file")
        return (without_weights(path) if mapped else None) or path.read_bytes()
    except FileNotFoundError:
        raise InvalidModel(f"{what} does not exist", remedy="give the path of an .onnx file") from None
    except PermissionError:
        raise InvalidModel(f"{what} cannot be read: permission denied") from None
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{what} cannot be read: {error}") from None


def _parse(data: bytes, what: str) -> onnx.ModelProto:
    if not data:
        raise InvalidModel(f"{what} is empty", remedy=EXPORT)
    for beginning, description in KNOWN_BEGINNINGS:
        if data.startswith(beginning):
            raise InvalidModel(f"{what} is not an ONNX model: it is {description}", remedy=EXPORT)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # protobuf's DecodeError, whichever implementation of protobuf there is
        raise InvalidModel(f"{what} is not an ONNX model, or is truncated ({len(data)} bytes)", remedy=EXPORT) from None
    _check_is_model(model, what)
    return model


def _check_is_model(model: onnx.ModelProto, what: str) -> None:
    if not model.HasField("graph") or not model.ir_version:
        raise InvalidModel(f"{what} is not an ONNX model, or is truncated: it has no graph", remedy=EXPORT)
    if not model.graph.output:
        raise InvalidModel(f"{what} is an ONNX model without outputs, or is truncated", remedy=EXPORT)
    for where, text in _names(model):
        if not isinstance(text, str):  # what protobuf makes of bytes that are no text
            raise InvalidModel(
                f"{what} holds a name that is not UTF-8: {text!r}, of {where}",
                remedy="rename it where the model was made, and export again",
            )


def _names(model: onnx.ModelProto) -> Iterator[tuple[str, object]]:
    """All names that a model goes by, and whose they are."""
    for entry in model.opset_import:
        yield "an opset", entry.domain
    for function in model.functions:
        for text in (function.domain, function.name, *function.input, *function.output, *function.attribute):
            yield "a function", text
        yield from _names_of_nodes(function.node)
    yield from _names_of_graph(model.graph)


def _names_of_graph(graph: onnx.GraphProto) -> Iterator[tuple[str, object]]:
    yield "a graph", graph.name
    for tensor in graph.initializer:
        yield "a tensor", tensor.name
    for sparse in graph.sparse_initializer:
        yield "a tensor", sparse.values.name
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield "a value", value.name
    yield from _names_of_nodes(graph.node)


def _names_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, object]]:
    for node in nodes:
        where = f"{node.op_type!s} node {node.name!r}"
        for text in (node.op_type, node.domain, node.name, *node.input, *node.output):
            yield where, text
        for attribute in node.attribute:
            yield where, attribute.name
            for body in bodies_of(attribute):
                yield from _names_of_graph(body)
