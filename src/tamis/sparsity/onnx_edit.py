"""Change an ONNX model in place, and write it: other bytes in a tensor, masks taken out, data beside the file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tamis.onnx_files import raw_bytes, stored_tensors
from tamis.sparsity.onnx_graph import MASKING, Key, OnnxGraph, Step

if TYPE_CHECKING:
    import onnx

ONE_FILE_BYTES = 256 << 20  # to write a message takes its own size again in memory; a protobuf file ends at 2 GiB
_SMALL_BYTES = 1024  # smaller tensors stay in the model file, as onnx.save keeps them
_PAGE = 4096  # ONNX asks for it, so that data can be mapped into memory
_TYPED = ("double_data", "float_data", "int32_data", "int64_data", "uint64_data")

Use = tuple[OnnxGraph, "onnx.NodeProto", int]


class Uses:
    """Who reads which name, over a graph and all bodies in it."""

    def __init__(self, root: OnnxGraph) -> None:
        self._readers: dict[Key, list[Use]] = defaultdict(list)
        self._outputs: set[Key] = set()
        for graph in root.graphs():
            for node in graph.nodes:
                for position, name in enumerate(node.input):
                    if (home := graph.home_of(name)) is not None:
                        self._readers[id(home), name].append((graph, node, position))
            for output in graph.proto.output:
                if (home := graph.home_of(output.name)) is not None:
                    self._outputs.add((id(home), output.name))

    def other_than(self, layers: Iterable[tuple[onnx.NodeProto, int]], source: Key) -> str | None:
        """What a stored tensor is used for besides being the weight of `layers` (nodes with the input's place)."""
        expected = {(id(node), port) for node, port in layers}
        seen: set[Key] = set()
        waiting = [source]
        while waiting:
            key = waiting.pop()
            if key in seen:
                continue
            seen.add(key)
            if key in self._outputs:
                return "also an output of the model"
            for graph, node, position in self._readers[key]:
                if (id(node), position) in expected or node.op_type in ("Shape", "Size"):
                    continue
                if not all(graph.is_constant(name) for name in node.output if name):
                    return f"also used by {node.op_type} node '{node.name or node.output[0]}'"
                waiting += [(id(graph), name) for name in node.output if name]
        return None


def store(tensor: onnx.TensorProto, value: NDArray[Any]) -> None:
    """Give a stored tensor other values of its own type and shape; they are then in the model, wherever it was."""
    from onnx import numpy_helper  # noqa: PLC0415

    _keep_inside(tensor, numpy_helper.from_array(np.ascontiguousarray(value)).raw_data)


def take_out_masks(root: OnnxGraph, steps: Iterable[Step]) -> None:
    """Remove each `Mul` and `Where` that no longer changes its weight, and what only they used.

    The nodes of `root` are not to be used after that.
    """
    for step in {id(step.node): step for step in steps}.values():
        output = step.output
        if step.node.op_type not in MASKING or output in {entry.name for entry in step.graph.proto.output}:
            continue
        before, after = step.graph.constant(step.input), step.graph.constant(output)
        assert before is not None and after is not None
        if before.value.dtype != after.value.dtype or not np.array_equal(before.value, after.value):
            continue
        for graph in step.graph.graphs():
            for node in graph.proto.node:
                for position, name in enumerate(node.input):
                    if name == output:
                        node.input[position] = step.input
        unused = [name for name in step.node.input if name != step.input]
        _remove_node(step.graph, step.node)
        _remove_unused(root, step.graph, unused)


def _remove_node(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    graph.proto.node.remove(node)
    stale = [entry for entry in graph.proto.value_info if entry.name in node.output]
    for entry in stale:
        graph.proto.value_info.remove(entry)


def _remove_unused(root: OnnxGraph, graph: OnnxGraph, names: list[str]) -> None:
    """Remove constants that nothing reads any more, and what they were computed from."""
    while names:
        name = names.pop()
        home = graph.home_of(name)
        read = {name for each in root.graphs() for node in each.proto.node for name in node.input}
        given = {entry.name for each in root.graphs() for entry in (*each.proto.output, *each.proto.input)}
        if home is None or name in read | given:
            continue
        for tensor in [tensor for tensor in home.proto.initializer if tensor.name == name]:
            home.proto.initializer.remove(tensor)
        for node in [node for node in home.proto.node if name in node.output]:
            if not (read | given).intersection(node.output):
                names += node.input
                _remove_node(home, node)


def write(model: onnx.ModelProto, folder: Path | None, path: Path, *, beside: bool) -> None:
    """Write a model, its large tensors to `<path>.data` if it is large or is to have its data there.

    Args:
        model: its external tensors are changed to those of the new file.
        folder: where its external data is now.
        path: of a file that does not exist.
        beside: whether large tensors are to lie beside it, however many they are.
    """
    import onnx  # noqa: PLC0415

    tensors = list(stored_tensors(model))
    if beside or sum(map(_size, tensors)) > ONE_FILE_BYTES:
        data = path.with_name(f"{path.name}.data")
        with data.open("wb") as file:
            for tensor in tensors:
                if tensor.data_type == onnx.TensorProto.STRING:
                    continue
                raw = raw_bytes(tensor, folder)
                if raw.nbytes < _SMALL_BYTES:
                    if tensor.data_location == onnx.TensorProto.EXTERNAL:
                        _keep_inside(tensor, raw.tobytes())
                    continue
                offset = -(-file.tell() // _PAGE) * _PAGE
                file.write(bytes(offset - file.tell()))
                file.write(raw.data)
                _keep_beside(tensor, {"location": data.name, "offset": offset, "length": raw.nbytes})
        if not data.stat().st_size:
            data.unlink()
    else:
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:  # in the file that is read
                _keep_inside(tensor, raw_bytes(tensor, folder).tobytes())
    path.write_bytes(model.SerializeToString())


def _size(tensor: onnx.TensorProto) -> int:
    """About how many bytes a tensor has."""
    import onnx  # noqa: PLC0415

    if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return 0
    item = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return item * int(np.prod(tensor.dims, dtype=np.int64))


def _keep_inside(tensor: onnx.TensorProto, raw: bytes) -> None:
    _forget(tensor)
    tensor.ClearField("data_location")
    tensor.raw_data = raw


def _keep_beside(tensor: onnx.TensorProto, place: dict[str, Any]) -> None:
    import onnx  # noqa: PLC0415

    _forget(tensor)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))


def _forget(tensor: onnx.TensorProto) -> None:
    for field in ("raw_data", "external_data", *_TYPED):
        tensor.ClearField(field)
