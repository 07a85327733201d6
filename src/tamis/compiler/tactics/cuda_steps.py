"""Steps that launch our CUDA kernels, with the cubin among their constants."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from tamis.compiler.ir.ops import BOOLEAN_KINDS, Pointwise, Program
from tamis.compiler.tactics.base import Choice, Layer
from tamis.compiler.tactics.precision import to_precision
from tamis.engine.plan import DeviceInfo, Format, Step
from tamis.formats.dtype import DType
from tamis.kernels.cuda.compile import compile_source, compiler_name
from tamis.kernels.cuda.pointwise import MOST_OPERANDS, Operand, PointwiseStep, pointwise
from tamis.kernels.cuda.specification import MOST_ELEMENTS, Argument, Kernel

# The first architecture that the kernels are compiled for.
OLDEST_GENERATION = 75

# Constants of up to this many elements stay float32: they cost nothing to read, and rounding them costs accuracy.
_SMALL = 16384


def kernel_step(
    kernel: Kernel,
    choice: Choice,
    *,
    name: str,
    layers: tuple[str, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    constants: Mapping[str, np.ndarray],
    moved_bytes: int,
    flops: int = 0,
) -> tuple[Step, dict[str, np.ndarray]]:
    """A step ``cuda.<family>`` and all its constants, the cubin first, compiled for ``choice``'s architecture."""
    cubin = compile_source(f"{kernel.family}.cu", kernel.defines, str(choice.parameters["architecture"]))
    binary = f"kernel.{kernel.family}.{hashlib.sha256(cubin).hexdigest()[:16]}"
    packed = {binary: np.frombuffer(cubin, np.uint8), **constants}
    step = Step(
        name, f"cuda.{kernel.family}", inputs, outputs, tuple(packed),
        kernel.attributes() | {"compiler": compiler_name()}, layers, choice.precision, choice.sparsity, flops,
        moved_bytes,
    )  # fmt: skip
    return step, packed


def program_step(
    layer: Layer, program: Program, source: str, choice: Choice, name: str
) -> tuple[Step, dict[str, np.ndarray]]:
    """A step that runs a program of a layer on ``source`` and writes the layer's output.

    Operands of the program index the layer's inputs. ``source`` is one of them too, or a value of the shape and
    format of the output. ``ValueError`` for more operands than the kernel takes.
    """
    node = layer.node
    formats = dict(zip(layer.values, choice.inputs, strict=True))
    output, target = layer.types[node.output], choice.outputs[0]
    operands: list[Operand] = []
    values: list[str] = []
    constants: dict[str, np.ndarray] = {}
    places: dict[str, int] = {}

    def place_of(value: str) -> int:
        if value not in places:
            places[value] = len(operands)
            if value in layer.constants:
                array = _constant(layer.constants[value], choice.precision)
                argument = Argument("const", len(constants))
                constants[value] = array
                operands.append(Operand(array.shape, DType.of(array), False, argument))
            else:
                shape = layer.types[value].shape if value in layer.types else output.shape
                operands.append(_operand(shape, formats.get(value, target), Argument("in", len(values))))
                values.append(value)
        return places[value]

    def told(step: Pointwise) -> PointwiseStep:
        if step.operand is None:
            return PointwiseStep(step.kind, step.params)
        value = node.inputs[step.operand]
        known = layer.constants.get(value)
        if known is not None and known.size == 1:
            return PointwiseStep(step.kind, (float(known.reshape(())),), None, step.swap)
        return PointwiseStep(step.kind, step.params, place_of(value), step.swap)

    place_of(source)
    steps = [told(step) for step in program]
    kernel = pointwise(steps, operands, output.shape, target.dtype, target.layout == "channels_last")
    moved = output.elements * target.dtype.size_bytes
    for value in values:
        known_type = layer.types.get(value, output)
        moved += known_type.elements * formats.get(value, target).dtype.size_bytes
    return kernel_step(
        kernel, choice, name=name, layers=(layer.name,), inputs=tuple(values), outputs=(node.output,),
        constants=constants, moved_bytes=moved + sum(array.nbytes for array in constants.values()),
    )  # fmt: skip


def generation_of(device: DeviceInfo) -> int:
    """The number in the name of the device's architecture: 90 for ``sm_90``."""
    digits = "".join(c for c in device.architecture if c.isdigit())
    return int(digits or 0)


def compiles_for(device: DeviceInfo) -> bool:
    """Whether a compiler is at hand and the kernels run on the device's architecture."""
    return generation_of(device) >= OLDEST_GENERATION and compiler_name() is not None


def can_run(layer: Layer, program: Program) -> bool:
    """Whether one kernel can run a program behind a layer's result: floating point, no boolean steps, few operands."""
    operands = {layer.node.inputs[step.operand] for step in program if step.operand is not None}
    floats = all(layer.types[value].dtype == DType.FLOAT32 for value in (*operands, layer.node.output))
    small = layer.types[layer.node.output].elements <= MOST_ELEMENTS
    plain = not any(step.kind in BOOLEAN_KINDS for step in program)
    return floats and small and plain and len(operands) < MOST_OPERANDS


def _operand(shape: tuple[int, ...], format: Format, source: Argument) -> Operand:
    return Operand(shape, format.dtype, format.layout == "channels_last", source)


def _constant(array: np.ndarray, precision: DType) -> np.ndarray:
    """A constant as the kernel reads it: row-major, of a type that it has."""
    return np.ascontiguousarray(to_precision(array, DType.FLOAT32 if array.size <= _SMALL else precision))
