"""The network under construction: values, constants and nodes that the operator functions add to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.graph import Graph, Node, TensorType, drop_unused
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import Cast, Elementwise, Op, Pointwise
from tamis.errors import BuildError, InvalidModel, UnsupportedModel
from tamis.formats.dtype import DType
from tamis.onnx_files.tensors import widened

# A constant result larger than this, and larger than what it is made of, stays a node of the graph.
FOLD_LIMIT_ELEMENTS = 1 << 26


def as_float32(array: np.ndarray) -> np.ndarray:
    """Any floating point as float32; a finite number stays finite. Other types are left alone."""
    dtype = DType.of(array)
    if not dtype.is_float or dtype in (DType.FLOAT32, DType.FLOAT8_E4M3):
        return array
    if dtype == DType.FLOAT64:
        limit = np.finfo(np.float32).max
        array = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    return array.astype(np.float32)


def inside(type_: TensorType) -> TensorType:
    """The type that a value has inside the graph, where all floating point is float32."""
    wide = type_.dtype in (DType.FLOAT64, DType.FLOAT16, DType.BFLOAT16)
    return TensorType(type_.shape, DType.FLOAT32) if wide else type_


def _renamed(values: tuple[str, ...], renames: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(renames.get(value, value) for value in values)


class Network:
    """Collects nodes and constants during one import.

    Operator functions call ``add`` with an operator and the names of its inputs and get the names of its
    results; what is computed from constants alone is computed at once. Constants keep the type they have in
    the file until ``finish``, so that folding loses nothing.
    """

    def __init__(self, name: str, public_outputs: Sequence[str]) -> None:
        self.name = name
        self.types: dict[str, TensorType] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.narrow: dict[str, str] = {}  # constants that were of a type narrower than Tamis has, and which
        self.inputs: list[str] = []
        self._nodes: list[Node] = []
        self._pending: list[Node] = []
        self._made: set[str] = set()
        self._node_names: set[str] = set()
        self._reserved = set(public_outputs)
        self._transposed: dict[str, str] = {}

    # --- what is known of a value -------------------------------------------------------------------------

    def known(self, value: str) -> np.ndarray | None:
        """The elements of a constant, None for a value computed at run time."""
        return self.constants.get(value)

    def shape(self, value: str) -> tuple[int, ...]:
        """The concrete shape of a value."""
        return self.types[value].shape

    def rank(self, value: str) -> int:
        """How many axes a value has."""
        return len(self.types[value].shape)

    def dtype(self, value: str) -> DType:
        """The element type of a value inside the graph."""
        return inside(self.types[value]).dtype

    def axis(self, value: str, axis: int) -> int:
        """``axis`` of a value counted from the front."""
        rank = self.rank(value)
        if not -rank <= axis < max(rank, 1):
            raise InvalidModel(f"axis {axis} is not within the {rank} axes of '{value}'")
        return axis % max(rank, 1)

    def constant_of(self, value: str, what: str) -> np.ndarray:
        """The elements of a value that must be known at build time; ``what`` names it in the message."""
        array = self.known(value)
        if array is None:
            raise UnsupportedModel(f"{what} ('{value}') is computed at run time, but must be a constant")
        return array

    def integers_of(self, value: str, what: str) -> tuple[int, ...]:
        """A constant as a tuple of integers."""
        return tuple(int(entry) for entry in self.constant_of(value, what).reshape(-1))

    def scalar_of(self, value: str, what: str) -> np.ndarray:
        """A constant of one element, in rank 0."""
        array = self.constant_of(value, what)
        if array.size != 1:
            raise InvalidModel(f"{what} ('{value}') must be one number, but is {self.types[value]}")
        return array.reshape(())

    # --- adding -------------------------------------------------------------------------------------------

    def fresh(self, hint: str, *, public: bool = False) -> str:
        """A value name that nobody uses yet."""
        name, count = hint, 0
        while name in self.types or (name in self._reserved and not public):
            count += 1
            name = f"{hint}.{count}"
        return name

    def constant(self, array: np.ndarray, hint: str = "constant") -> str:
        """Add a constant; returns its name."""
        array, narrow = widened(np.asarray(array))
        try:
            type_ = TensorType(tuple(array.shape), DType.of(array))
        except ValueError:
            raise UnsupportedModel(f"a constant has elements of {array.dtype}") from None
        name = self.fresh(hint)
        self.constants[name], self.types[name] = array, type_
        if narrow:
            self.narrow[name] = narrow
        self._made.add(name)
        return name

    def initializer(self, array: np.ndarray, name: str) -> str:
        """Add a constant of the model itself, whose name stays: it is no result of the current call."""
        name = self.constant(array, name)
        self._made.discard(name)
        return name

    def scalar(self, number: float, like: str) -> str:
        """A constant of rank 0 in the element type of the value ``like``."""
        return self.constant(np.asarray(number, self.dtype(like).numpy))

    def add(self, op: Op, *inputs: str) -> str:
        """Add a node; returns its first result."""
        return self.add_all(op, *inputs)[0]

    def add_all(self, op: Op, *inputs: str) -> tuple[str, ...]:
        """Add a node; returns all its results. Computed at once when all inputs are constants."""
        arrays = [self.constants[value] for value in inputs if value in self.constants]
        if inputs and len(arrays) == len(inputs):
            folded = self._fold(op, arrays)
            if folded is not None:
                return folded
        types = infer(op, [inside(self.types[value]) for value in inputs])
        results = []
        for type_ in types:
            name = self.fresh(f"value.{len(self.types)}")
            self.types[name] = type_
            self._made.add(name)
            results.append(name)
        self._pending.append(Node(type(op).__name__.lower(), op, inputs, tuple(results)))
        return tuple(results)

    def _fold(self, op: Op, arrays: list[np.ndarray]) -> tuple[str, ...] | None:
        floats = {array.dtype for array in arrays if DType.of(array).is_float}
        if not isinstance(op, Cast) and floats - {np.dtype(np.float32)}:
            # Narrow types compute in float32, a mix in the widest; all of it becomes float32 in the end.
            wide = np.float64 if np.dtype(np.float64) in floats else np.float32
            arrays = [a.astype(wide) if a.dtype in floats and a.dtype.itemsize > 1 else a for a in arrays]
        types = infer(op, [TensorType(tuple(array.shape), DType.of(array)) for array in arrays])
        elements = sum(type_.elements for type_ in types)
        if elements > FOLD_LIMIT_ELEMENTS and elements > 2 * sum(array.size for array in arrays):
            return None
        try:
            results = evaluate(op, arrays)
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise BuildError(f"{type(op).__name__}: {error}") from None
        return tuple(self.constant(array) for array in results)

    def pointwise(self, kind: str, x: str, *operands: str, params: tuple[float, ...] = ()) -> str:
        """Add one pointwise step, unary or binary; a constant first argument becomes the operand."""
        if not operands:
            return self.add(Elementwise((Pointwise(kind, params),)), x)
        (other,) = operands
        if self.known(x) is not None and self.known(other) is None and kind != "prelu":
            return self.add(Elementwise((Pointwise(kind, params, 1, True),)), other, x)
        return self.add(Elementwise((Pointwise(kind, params, 1),)), x, other)

    def transposed_constant(self, value: str) -> str:
        """The transpose of a constant matrix, made once however often it is used."""
        if value not in self._transposed:
            array = np.ascontiguousarray(self.constants[value].T)
            self._transposed[value] = self.constant(array, f"{value}.transposed")
        return self._transposed[value]

    # --- naming -------------------------------------------------------------------------------------------

    def node_name(self, hint: str) -> str:
        """A node name that nobody uses yet."""
        name, count = hint, 1
        while name in self._node_names:
            count += 1
            name = f"{hint}_{count}"
        self._node_names.add(name)
        return name

    def close_call(self, origin: str, results: Sequence[str], names: Sequence[str], public: bool) -> list[str]:
        """Name what the last operator function added.

        The last node takes the ONNX node's name, helpers before it a name made from it; results that are new
        take the ONNX outputs' names. Returns the values behind the ONNX outputs.
        """
        renames: dict[str, str] = {}
        for value, name in zip(results, names, strict=False):
            if name and value in self._made and value not in renames and value != name:
                renames[value] = self.fresh(name, public=public)
                self.types[renames[value]] = self.types.pop(value)
                if value in self.constants:
                    self.constants[renames[value]] = self.constants.pop(value)
        for index, node in enumerate(self._pending):
            last = index == len(self._pending) - 1
            self._nodes.append(
                Node(
                    self.node_name(origin if last else f"{origin}.{node.name}"),
                    node.op,
                    _renamed(node.inputs, renames),
                    _renamed(node.outputs, renames),
                    (origin,),
                )
            )
        self.narrow = {renames.get(value, value): name for value, name in self.narrow.items()}
        self._transposed = {key: renames.get(value, value) for key, value in self._transposed.items()}
        self._pending.clear()
        self._made.clear()
        return [renames.get(value, value) for value in results]

    def abandon_call(self) -> None:
        """Forget what an operator function added before it failed."""
        self._pending.clear()
        self._made.clear()

    # --- borders ------------------------------------------------------------------------------------------

    def add_input(self, name: str, type_: TensorType) -> str:
        """Declare a graph input; returns the value to use inside, which is float32 for other floats."""
        self.inputs.append(name)
        self.types[name] = type_
        if inside(type_) == type_:
            return name
        value = self.fresh(f"{name}.float32")
        self.types[value] = inside(type_)
        node = self.node_name(f"input.{name}")
        self._nodes.append(Node(node, Cast(DType.FLOAT32), (name,), (value,)))
        return value

    def finish(self, outputs: Sequence[tuple[str, str, DType | None]]) -> Graph:
        """The graph; ``outputs`` are (public name, value, declared type or None)."""
        produced = {value for node in self._nodes for value in node.outputs}
        public = {name for name, *_ in outputs}
        renames: dict[str, str] = {}
        borders: list[Node] = []
        for name, value, declared in outputs:
            computed = inside(self.types[value]).dtype
            wanted = declared or computed
            if wanted == computed and value == name and value not in self.constants:
                continue
            if wanted == computed and value in produced and value not in public and value not in renames:
                renames[value] = name
                continue
            if value == name:
                renames[value] = self.fresh(f"{name}.inside")
            op: Op = Elementwise(()) if wanted == computed else Cast(wanted)
            borders.append(Node(self.node_name(f"output.{name}"), op, (value,), (name,)))
        types = {renames.get(value, value): inside(type_) for value, type_ in self.types.items()}
        types |= {name: self.types[name] for name in self.inputs}
        for name, value, declared in outputs:
            type_ = inside(self.types[value])
            types[name] = TensorType(type_.shape, declared or type_.dtype)
        nodes = [replace(node, outputs=_renamed(node.outputs, renames)) for node in self._nodes] + borders
        nodes = [replace(node, inputs=_renamed(node.inputs, renames)) for node in nodes]
        nodes = drop_unused(nodes, public)
        used = {value for node in nodes for value in (*node.inputs, *node.outputs)} | {*self.inputs, *public}
        constants = {renames.get(value, value): array for value, array in self.constants.items()}
        return Graph(
            name=self.name,
            inputs=tuple(self.inputs),
            outputs=tuple(name for name, *_ in outputs),
            nodes=tuple(nodes),
            types={value: type_ for value, type_ in types.items() if value in used},
            constants={value: as_float32(array) for value, array in constants.items() if value in used},
        )
