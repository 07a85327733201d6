"""Layers around the matrix products and how to bind them, for tests of the CUDA kernels in emulation and on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.graph import Node, TensorType
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import Concat, Elementwise, LayerNorm, Op, Pointwise, Pool, Reduce, Softmax, Split
from tamis.compiler.tactics.base import Choice, Layer, Lowered
from tamis.compiler.tactics.cuda_steps import kernel_step
from tamis.devices.base import BoundShape, Runner
from tamis.devices.cuda import kernels
from tamis.engine.plan import Format, Step
from tamis.formats.dtype import DType
from tamis.kernels.cuda.movement import space_to_depth

TORCH = {DType.FLOAT32: torch.float32, DType.FLOAT16: torch.float16, DType.BFLOAT16: torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """An operator, the shapes of its inputs, and which of them are constants."""

    name: str
    op: Op
    shapes: tuple[tuple[int, ...], ...]
    constants: tuple[int, ...] = ()
    outputs: int = 1

    def layer(self) -> tuple[Layer, list[np.ndarray]]:
        """The layer, and random float32 values of all its inputs."""
        generator = np.random.default_rng(11)
        arrays = [generator.standard_normal(shape).astype(np.float32) for shape in self.shapes]
        names = tuple(f"v{index}" for index in range(len(arrays)))
        outputs = tuple(f"y{index}" for index in range(self.outputs))
        types = {name: TensorType(array.shape) for name, array in zip(names, arrays, strict=True)}
        results = infer(self.op, [types[name] for name in names])
        types |= dict(zip(outputs, results[: self.outputs], strict=True))
        constants = {names[index]: arrays[index] for index in self.constants}
        return Layer(Node("layer", self.op, names, outputs), types, constants), arrays

    def expected(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """All results in float64."""
        return list(evaluate(self.op, [array.astype(np.float64) for array in arrays]))[: self.outputs]


def program(*steps: Pointwise) -> Elementwise:
    return Elementwise(steps)


def step(kind: str, operand: int | None = None, swap: bool = False, *params: float) -> Pointwise:
    return Pointwise(kind, tuple(params), operand, swap)


CASES = (
    Case("relu", program(step("relu")), ((3, 70),)),
    Case("residual relu", program(step("add", 1), step("relu")), ((2, 24, 5, 7), (2, 24, 5, 7))),
    Case("scale and shift", program(step("mul", 1), step("add", 2), step("silu")), ((2, 16, 6, 5), (16, 1, 1), (16, 1, 1)), (1, 2)),
    Case("gate", program(step("sigmoid"), step("mul", 1)), ((2, 32, 1, 1), (2, 32, 7, 3))),
    Case("numbers", program(step("sub", 1, True), step("mul", 2), step("clip", None, False, -1.0, 0.5)), ((4, 33), (1, 1), ()), (1, 2)),
    Case("twice the same", program(step("mul", 0), step("gelu"), step("add", 0)), ((5, 129),)),
    Case("bias of rows", program(step("add", 1), step("gelu_tanh")), ((2, 17, 48), (48,)), (1,)),
    Case("large constant", program(step("mul", 1)), ((1, 160, 160), (160, 160)), (1,)),
    Case("mask", program(step("add", 1)), ((2, 3, 9, 9), (2, 1, 1, 9))),
    Case("softmax", Softmax(-1), ((2, 3, 7, 49),)),
    Case("log softmax", Softmax(1, log=True), ((2, 1000),)),
    Case("layer norm", LayerNorm(-1, 1e-5), ((2, 9, 96), (96,), (96,)), (1, 2)),
    Case("layer norm of two axes", LayerNorm(-2, 1e-6, True, False), ((3, 5, 24), (24,)), (1,)),
    Case("rms norm", LayerNorm(-1, 1e-6, True, False, rms=True), ((4, 64), (64,)), (1,)),
    Case("residual norm", LayerNorm(-1, 1e-5, residual=True), ((2, 5, 80), (80,), (80,), (2, 5, 80)), (1, 2), 2),
    Case("plain norm", LayerNorm(-1, 1e-5, False, False), ((6, 35),)),
    Case("max pool", Pool("max", (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), ((2, 24, 11, 9),)),
    Case("average pool", Pool("average", (2, 3), (2, 1), (0, 1, 0, 1), (1, 1), True, True), ((1, 5, 7, 6),)),
    Case("global average", Reduce("mean", (2, 3), True), ((2, 40, 7, 7),)),
    Case("concat", Concat(1), ((2, 16, 5, 3), (2, 24, 5, 3), (2, 8, 5, 3))),
    Case("concat of rows", Concat(2), ((2, 3, 5), (2, 3, 4))),
    Case("class token", Concat(1), ((2, 1, 24), (2, 6, 24)), (0,)),
    Case("constant channels", Concat(1), ((2, 16, 5, 3), (2, 3, 5, 3), (2, 8, 5, 3)), (1,)),
    Case("split", Split(1, (4, 12)), ((2, 16, 3, 5),), (), 2),
    Case("global maximum", Reduce("max", (2, 3), False), ((3, 8, 4, 5),)),
)  # fmt: skip


def empty(shape: Sequence[int], format: Format, device: str = "cpu") -> torch.Tensor:
    """A tensor full of NaN, aligned to 16 bytes."""
    tensor = torch.full(tuple(shape), float("nan"), dtype=TORCH[format.dtype], device=device)
    last = format.layout == "channels_last" and len(shape) == 4
    tensor = tensor.contiguous(memory_format=torch.channels_last) if last else tensor
    assert tensor.data_ptr() % 16 == 0
    return tensor


def upload(array: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """A constant as a tensor."""
    bits = array.view(np.int16) if array.dtype.name == "bfloat16" else array
    tensor = torch.from_numpy(bits.copy())
    return (tensor.view(torch.bfloat16) if bits is not array else tensor).to(device)


def bound(
    step: Step,
    constants: Mapping[str, torch.Tensor],
    inputs: Sequence[tuple[torch.Tensor, Format]],
    outputs: Sequence[tuple[tuple[int, ...], Format]],
    device: str = "cpu",
) -> tuple[Runner, list[torch.Tensor]]:
    """The runner of a step, and its slots: the inputs, then the outputs, full of NaN."""
    slots = [tensor for tensor, _ in inputs] + [empty(shape, format, device) for shape, format in outputs]
    given = [BoundShape(i, tuple(tensor.shape), format) for i, (tensor, format) in enumerate(inputs)]
    made = [BoundShape(len(inputs) + i, shape, format, True) for i, (shape, format) in enumerate(outputs)]
    return kernels.bind(step, constants, given, made), slots


def bound_layer(
    layer: Layer, choice: Choice, lowered: Lowered, arrays: Sequence[np.ndarray], device: str = "cpu"
) -> tuple[Runner, list[torch.Tensor], list[torch.Tensor]]:
    """The runner of a layer of one step, its slots, and those of them that are its outputs."""
    (step,) = lowered.steps
    values = dict(zip(layer.node.inputs, arrays, strict=True))
    formats = dict(zip(layer.values, choice.inputs, strict=True))
    inputs = [
        (empty(values[name].shape, formats[name], device).copy_(torch.from_numpy(values[name])), formats[name])
        for name in step.inputs
    ]
    outputs = [(layer.types[n].shape, f) for n, f in zip(layer.node.outputs, choice.outputs, strict=True)]
    constants = {name: upload(array, device) for name, array in lowered.constants.items()}
    run, slots = bound(step, constants, inputs, outputs, device)
    return run, slots, slots[len(inputs) :]


def bound_steps(
    layer: Layer, choice: Choice, lowered: Lowered, arrays: Mapping[str, np.ndarray], device: str = "cpu"
) -> tuple[list[Runner], list[torch.Tensor], list[torch.Tensor]]:
    """The runners of a layer of several steps, the slots of all values, and those of them that are its outputs."""
    slots: list[torch.Tensor] = []
    places: dict[str, BoundShape] = {}

    def place(name: str, shape: tuple[int, ...], format: Format, *, made: bool) -> None:
        places[name] = BoundShape(len(slots), shape, format, made)
        slots.append(empty(shape, format, device))

    for name, format in zip(layer.values, choice.inputs, strict=True):
        place(name, arrays[name].shape, format, made=False)
        slots[-1].copy_(torch.from_numpy(arrays[name]))
    for name, (shape, format) in lowered.temporaries.items():
        place(name, shape, format, made=True)
    for name, format in zip(layer.node.outputs, choice.outputs, strict=True):
        place(name, layer.types[name].shape, format, made=True)
    constants = {name: upload(array, device) for name, array in lowered.constants.items()}
    runners = [
        kernels.bind(
            step, {name: constants[name] for name in step.constants},
            [places[name] for name in step.inputs], [places[name] for name in step.outputs],
        )
        for step in lowered.steps
    ]  # fmt: skip
    return runners, slots, [slots[places[name].slot] for name in layer.node.outputs]


def padding_step(
    shape: tuple[int, ...], given: Format, channels: int, made: Format, architecture: str, block: int = 1
) -> tuple[Step, dict[str, np.ndarray]]:
    """A step ``pad`` that pads an image of ``shape``, in blocks of pixels, to more channels, with its constants."""
    choice = Choice("tamis.cuda", made.dtype, (given,), (made,), parameters={"architecture": architecture})
    size = (-(-shape[2] // block), -(-shape[3] // block))
    kernel = space_to_depth(shape, (given.dtype, given.layout == "channels_last"), block, size, channels, made.dtype)
    return kernel_step(
        kernel, choice, name="pad", layers=(), inputs=("x",), outputs=("y",), constants={}, moved_bytes=0
    )
