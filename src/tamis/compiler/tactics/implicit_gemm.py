"""Our own convolutions and linear layers on tensor cores, dense and 2:4, with everything fused.

Bias, one residual of the output's shape and any activations are part of the kernel; what is left follows as a pointwise
step. The race tries tiles: how many filters and pixels a block computes at a time. Which kernel runs is told by
``generations``. Groups of a convolution share tiles, in bundles (``tamis.formats.bundles``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import BOOLEAN_KINDS, Conv, Linear, Pointwise, Program, epilogue_of
from tamis.compiler.tactics.ahead import Unit, unit_of
from tamis.compiler.tactics.aligned_rows import aligned_columns, aligned_weight, aligning_step, can_align
from tamis.compiler.tactics.base import Choice, Layer, Lowered, flops_of, moved_bytes_of, uniform_format
from tamis.compiler.tactics.cuda_steps import can_run, compiles_for, kernel_step
from tamis.compiler.tactics.generations import HOPPER, Generation
from tamis.compiler.tactics.precision import SameArray, runs_in, to_precision
from tamis.compiler.tactics.product import refuses_two_of_four, refuses_weights, rows_of
from tamis.compiler.tactics.rest import result_of, with_rest
from tamis.engine.plan import DeviceInfo
from tamis.formats.bundles import Bundles, bundle_weight
from tamis.formats.dtype import DType
from tamis.kernels.cuda.compile import NO_COMPILER
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import Epilogue, Tile
from tamis.kernels.cuda.implicit_gemm_ampere import AmpereTile
from tamis.kernels.cuda.pointwise import PointwiseStep
from tamis.kernels.cuda.specification import Kernel, ceil_divide

PRECISIONS = (DType.FLOAT16, DType.BFLOAT16)
MOST_LEVEL = 5  # at which all tiles race


@dataclass(frozen=True)
class _Split:
    """What the kernel computes behind the sums, and what is left; ``residual`` is the value that is added."""

    steps: tuple[PointwiseStep, ...]
    residual: str | None
    tail: Program


class ImplicitGemm:
    """One family, dense or 2:4: the two differ by one constant of the kernel."""

    def __init__(self, generation: Generation = HOPPER, *, sparse: bool) -> None:
        self.generation, self.sparse = generation, sparse
        self.name = f"{generation.name}.sparse" if sparse else generation.name

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Other layers than linear ones and 2-D convolutions, other devices, and for 2:4 other weights."""
        if device.kind != "cuda":
            return "runs on CUDA devices only"
        reason = _refuses_layer(layer) or (refuses_two_of_four(layer, config) if self.sparse else None)
        reason = reason or self.generation.refuses(shape_of(layer), device, config)
        return refuses_kernel(layer, device, config) if reason is None else reason

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """Each allowed 16-bit precision, each tile that is not mostly padding."""
        channels_last = isinstance(layer.op, Conv)
        sparsity: Any = "2:4" if self.sparse else "dense"
        tiles = self._tiles(layer, device, config.optimization_level)
        for precision in config.precisions:
            if precision not in PRECISIONS or not runs_in(precision, device):
                continue
            inputs = tuple(uniform_format(layer.types[v], precision, channels_last) for v in layer.values)
            outputs = tuple(uniform_format(layer.types[v], precision, channels_last) for v in layer.node.outputs)
            for tile in tiles:
                parameters = {**self.generation.parameters(device), **dataclasses.asdict(tile)}
                yield Choice(self.name, precision, inputs, outputs, sparsity, parameters)

    def left_out(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """How many tiles do not race at this level because others should be faster, and which form has none."""
        missing = missing_tiles(lambda level: self._tiles(layer, device, level), config)
        without = self.generation.left_out(shape_of(layer), sparse=self.sparse)
        return "; ".join(words for words in (missing, without) if words) or None

    def _tiles(self, layer: Layer, device: DeviceInfo, level: int) -> Sequence[Tile | AmpereTile]:
        residual = adds_residual(layer)
        return self.generation.tiles(shape_of(layer), device, sparse=self.sparse, residual=residual, level=level)

    def units(self, layer: Layer, choice: Choice) -> tuple[Unit, ...]:
        """The product; what it does not fuse compiles quickly."""
        return (unit_of(self._kernel(layer, choice), choice),)

    def _kernel(self, layer: Layer, choice: Choice) -> Kernel:
        return kernel_of(self.generation, layer, choice, shape_of(layer))

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """One launch, a step in front that aligns rows, and a pointwise step for what is not fused."""
        weight, tile = SameArray(layer.constants[layer.node.inputs[1]]), self.generation.tile(choice.parameters)
        bundles, stationary = shape_of(layer).bundles(tile.filters), bool(choice.parameters.get("stationary"))
        packed = packed_weight(
            weight, choice.precision, self.generation, bundles, tile.filters, stationary, self.sparse
        )
        kernel = self._kernel(layer, choice)
        if not can_align(layer, choice.precision):
            return lower_kernel(layer, choice, kernel, layer.node.inputs[0], packed)
        aligned, front = aligning_step(layer, choice)
        return front.before(lower_kernel(layer, choice, kernel, aligned, packed))


def missing_tiles(tiles_at: Callable[[int], Sequence[object]], config: BuildConfig) -> str | None:
    """How many tiles do not race at the level of a build, None for none."""
    missing = len(tiles_at(MOST_LEVEL)) - len(tiles_at(config.optimization_level))
    words = f"{missing} more tiles are left out, the slowest by a model; level {MOST_LEVEL} races them too"
    return words if missing else None


def refuses_kernel(layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
    """Why no kernel can run here, whatever the layer's geometry: compiler, precisions, what follows."""
    if not compiles_for(device):
        return NO_COMPILER
    if not set(config.precisions) & set(PRECISIONS):
        return "needs 16-bit values; allow float16 or bfloat16"
    tail = _split(layer).tail
    return "what follows is not floating point" if tail and not can_run(layer, tail) else None


def adds_residual(layer: Layer) -> bool:
    """Whether the kernel adds another value of the output's shape."""
    return _split(layer).residual is not None


def kernel_of(generation: Generation, layer: Layer, choice: Choice, shape: Convolution) -> Kernel:
    """The launch of a choice, with bias and epilogue fused."""
    split = _split(layer)
    epilogue = Epilogue(split.steps, layer.op.bias, split.residual is not None)
    sparse = choice.sparsity == "2:4"
    return generation.kernel(shape, choice.parameters, choice.precision, epilogue, sparse=sparse)


def lower_kernel(layer: Layer, choice: Choice, kernel: Kernel, image: str, weight: np.ndarray) -> Lowered:
    """The launch over the value ``image`` with a packed weight, and a step for what is not fused."""
    split = _split(layer)
    constants = {f"{layer.name}.weight": weight, **bias_constant(layer)}
    step, packed = kernel_step(
        kernel, choice, name=layer.name, layers=(layer.name,),
        inputs=(image, *((split.residual,) if split.residual else ())),
        outputs=(result_of(layer, split.tail),), constants=constants, moved_bytes=moved_bytes_of(layer, choice),
        flops=flops_of(layer),
    )  # fmt: skip
    return with_rest(Lowered((step,), packed), layer, split.tail, choice)


def bias_constant(layer: Layer) -> dict[str, np.ndarray]:
    """The bias as the kernels read it; empty where there is none."""
    if not layer.op.bias:
        return {}
    bias = layer.constants[layer.node.inputs[2]].reshape(-1)
    return {f"{layer.name}.bias": np.ascontiguousarray(bias, np.float32)}


def epilogue_alone(layer: Layer) -> Epilogue | None:
    """Bias and epilogue where a kernel fuses all of it and reads no other value; else None."""
    split = _split(layer)
    return None if split.tail or split.residual is not None else Epilogue(split.steps, layer.op.bias)


def _refuses_layer(layer: Layer) -> str | None:
    op = layer.op
    if not isinstance(op, Conv | Linear):
        return f"{type(op).__name__} is neither a convolution nor a linear layer"
    reason = refuses_weights(layer)
    if reason is not None:
        return reason
    if layer.type(0).dtype != DType.FLOAT32 or layer.constant(0) is not None:
        return "the input is a constant or not floating point"
    if isinstance(op, Conv) and len(op.strides) != 2:
        return f"{len(op.strides)}-D convolution; only 2-D is offered"
    channels = layer.type(0).shape[1] if isinstance(op, Conv) else layer.type(1).shape[1]
    if isinstance(op, Conv) and 1 < op.groups == channels:
        return "a depthwise convolution: a filter sums over one channel, tensor cores over many"
    if channels % 8 and not can_align(layer, DType.FLOAT16):
        return f"{channels} channels are not a multiple of 8"
    return None


def shape_of(layer: Layer) -> Convolution:
    """The geometry of a layer; the rows of a linear layer, once they are aligned, are the pixels of one line."""
    op, filters, channels, kernel = layer.op, *layer.type(1).shape[:2], layer.type(1).shape[2:]
    if isinstance(op, Linear):
        return Convolution(1, 1, rows_of(layer), aligned_columns(layer, DType.FLOAT16), filters)
    batch, channels, height, width = layer.type(0).shape
    sizes = (batch, height, width, channels, filters)
    return Convolution(*sizes, kernel, op.strides, op.pads, op.dilations, groups=op.groups)  # type: ignore[arg-type]


def _split(layer: Layer) -> _Split:
    """The longest prefix of the epilogue of steps without an operand, with a number, or with the one residual."""
    program, node = epilogue_of(layer.op), layer.node
    steps: list[PointwiseStep] = []
    residual: str | None = None
    for place, step in enumerate(program):
        value = None if step.operand is None else node.inputs[step.operand]
        known = None if value is None else layer.constants.get(value)
        if step.kind in BOOLEAN_KINDS:
            return _Split(tuple(steps), residual, program[place:])
        if value is None:
            steps.append(PointwiseStep(step.kind, step.params))
        elif known is not None and known.size == 1:
            steps.append(PointwiseStep(step.kind, (float(known.reshape(())),), None, step.swap))
        elif known is None and residual in (None, value) and _is_residual(layer, step):
            residual = value
            steps.append(PointwiseStep(step.kind, step.params, 0, step.swap))
        else:
            return _Split(tuple(steps), residual, program[place:])
    return _Split(tuple(steps), residual, ())


def _is_residual(layer: Layer, step: Pointwise) -> bool:
    value = layer.node.inputs[step.operand or 0]
    return layer.types[value] == layer.types[layer.node.output]


@functools.lru_cache(maxsize=8)
def packed_weight(
    weight: SameArray,
    precision: DType,
    generation: Generation,
    bundles: Bundles,
    filters: int,
    stationary: bool,
    sparse: bool,
) -> np.ndarray:
    """The packed weight. A race lowers many tiles of one weight, hence the memory."""
    array = weight.array
    if array.ndim == 2:
        array = aligned_weight(array, ceil_divide(array.shape[1], 8) * 8)
    matrix = array.reshape(*array.shape[:2], -1).transpose(0, 2, 1)  # [filters, taps, channels]
    matrix = to_precision(np.ascontiguousarray(matrix), precision)
    if bundles.groups > 1:
        matrix = bundle_weight(matrix, bundles, filters)
    return generation.packed(matrix, filters, sparse=sparse, stationary=stationary)
