"""Layers that are matrix products, and how to run their lowered steps on tensors of the CPU with a stand-in library."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from tamis.compiler.ir.graph import Graph, Node, SparsityNote, TensorType
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import Conv, Linear, MatMul, Op, Pointwise, operand_start
from tamis.compiler.tactics.base import Choice, Layer, Lowered, layer_of
from tamis.devices import tensors
from tamis.devices.aten import kernels as aten
from tamis.devices.base import BoundShape, Runner
from tamis.devices.cuda import kernels
from tamis.devices.cuda.workspace import Workspace
from tamis.engine.plan import DeviceInfo, Format, Step
from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.dtype import DType

H200 = DeviceInfo(
    "cuda", "NVIDIA H200", "sm_90", 132, ("bf16", "fp8", "sparse_tensor_cores", "tf32"),
    {"torch": "2.11.0", "cublaslt": "13.1.0", "cusparselt": "0.8.1"},
)  # fmt: skip

RELU, GELU, GELU_TANH = Pointwise("relu"), Pointwise("gelu"), Pointwise("gelu_tanh")
RELU6, CLIP, SILU = Pointwise("clip", (0.0, 6.0)), Pointwise("clip", (-0.5, 0.75)), Pointwise("silu")


def add(index: int) -> Pointwise:
    return Pointwise("add", operand=index)


def linear(*epilogue: Pointwise, bias: bool = True) -> Linear:
    return Linear(bias, tuple(epilogue))


def conv(*epilogue: Pointwise, bias: bool = True, stride: int = 1, pad: int = 0, groups: int = 1) -> Conv:
    return Conv((stride, stride), (pad,) * 4, (1, 1), groups, bias, tuple(epilogue))


def layer_and_arrays(
    op: Op, x: tuple[int, ...], w: tuple[int, ...], *, sparse: bool = False, seed: int = 5
) -> tuple[Layer, list[np.ndarray]]:
    """A layer of one operator with random constants, and the float32 arrays of all its inputs.

    A residual for ``add`` has the output's shape. ``sparse`` prunes the weight to 2:4.
    """
    generator = np.random.default_rng(seed)
    shapes = {"x": x, "w": w}
    if getattr(op, "bias", False):
        shapes["b"] = (w[0],)
    plain = replace(op, epilogue=())  # type: ignore[call-arg]
    y = infer(plain, [TensorType(s) for s in shapes.values()])[0]
    for step in op.epilogue:  # type: ignore[union-attr]
        if step.operand is not None and step.operand >= operand_start(op):
            shapes[f"r{step.operand}"] = y.shape
    arrays = {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    note = None
    if sparse:
        rows = arrays["w"].reshape(w[0], -1)
        arrays["w"] = (rows * magnitude_mask(rows, TWO_FOUR)).reshape(w)
        note = SparsityNote("2:4", 1, 0.5, 1.0)
    types = {name: TensorType(shape) for name, shape in shapes.items()} | {"y": y}
    fixed = () if isinstance(op, MatMul) else ("w", "b")
    constants = {name: arrays[name] for name in fixed if name in arrays}
    node = Node("layer", op, tuple(shapes), ("y",))
    inputs = tuple(name for name in shapes if name not in constants)
    graph = Graph("g", inputs, ("y",), (node,), types, constants, {"w": note} if note else {})
    return layer_of(graph, node), list(arrays.values())


def rounded(array: np.ndarray, dtype: DType) -> np.ndarray:
    """An array as ``dtype`` holds it, in float64."""
    return array.astype(dtype.numpy).astype(np.float64)


# Who binds what surrounds a matrix product, by the first word of the kernel's name.
BINDERS: Mapping[str, Callable[..., Runner]] = {"aten": aten.bind, "cuda": kernels.bind}


class Bound:
    """Lowered steps bound to tensors: matrix steps with ``bind``, what surrounds them by PyTorch or our CUDA kernels.

    Matrix steps share ``workspace``. What the steps write holds NaN at first. ``values`` gives the run-time inputs in float32; they are rounded to the formats of the choice.
    """

    def __init__(
        self,
        lowered: Lowered,
        choice: Choice,
        layer: Layer,
        values: Mapping[str, np.ndarray],
        bind: Callable[..., Runner],
        device: str = "cpu",
    ) -> None:
        self._device, self._output = device, layer.node.output
        self.workspace = Workspace(torch.device(device))
        self._bind_matrix = functools.partial(bind, workspace=self.workspace)
        self.slots: list[torch.Tensor] = []
        self._where: dict[str, BoundShape] = {}
        for name, format in zip(layer.values, choice.inputs, strict=True):
            self._place(name, layer.types[name].shape, format, given=False)
            self.give(name, values[name])
        shapes = {
            name: (layer.types[name].shape, f) for name, f in zip(layer.node.outputs, choice.outputs, strict=True)
        }
        for name, (shape, format) in {**lowered.temporaries, **shapes}.items():
            self._place(name, shape, format, given=True)
        self._constants = {name: tensors.upload(array).to(device) for name, array in lowered.constants.items()}
        self._runners = [self._bound(step) for step in lowered.steps]

    def bind_again(self, steps: Sequence[Step]) -> None:
        """Take steps of the same values and constants in place of those before; what they write holds NaN again."""
        self._runners = []  # their memory is free before that of the new ones is taken
        self.poison()
        self._runners = [self._bound(step) for step in steps]

    def _bound(self, step: Step) -> Runner:
        binder = BINDERS.get(step.kernel.split(".")[0], self._bind_matrix)
        places = [self._where[n] for n in step.inputs], [self._where[n] for n in step.outputs]
        return binder(step, {n: self._constants[n] for n in step.constants}, *places)

    def _place(self, name: str, shape: tuple[int, ...], format: Format, given: bool) -> None:
        self._where[name] = BoundShape(len(self.slots), shape, format, given)
        self.slots.append(tensors.empty(shape, format).fill_(float("nan")).to(self._device))

    def give(self, name: str, value: np.ndarray) -> None:
        """Overwrite an input."""
        slot = self.slots[self._where[name].slot]
        slot.copy_(torch.from_numpy(np.ascontiguousarray(value)).to(slot.dtype))

    def poison(self) -> None:
        """Overwrite all that the steps write with NaN."""
        for place in self._where.values():
            if place.preallocated:
                self.slots[place.slot].fill_(float("nan"))

    def run(self) -> None:
        """Run the steps once."""
        for runner in self._runners:
            runner(self.slots)

    def result(self) -> np.ndarray:
        """The output in float64."""
        return tensors.download(self.slots[self._where[self._output].slot].cpu()).astype(np.float64)


def tolerance(dtype: DType) -> float:
    """Largest error of an output of this type, over the largest value, when the inputs are exact in the type."""
    return {DType.FLOAT32: 3e-5, DType.TF32: 2e-3, DType.FLOAT16: 1e-3, DType.BFLOAT16: 8e-3}[dtype]
