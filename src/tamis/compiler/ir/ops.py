"""The operators of the graph, each a frozen dataclass of attributes.

The meaning of every operator is fixed by ``evaluate.py`` (NumPy) and its types by ``infer.py``. Names and conventions
follow ONNX where ONNX has the operator, with all attributes made explicit and concrete.

An **epilogue** is data: a tuple of ``Pointwise`` steps that act on the running value one after the other, each perhaps
with one more operand. ``Elementwise`` is such a program on its own, so to fuse is to move steps between tuples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tamis.formats.dtype import DType


@dataclass(frozen=True)
class Pointwise:
    """One step of a pointwise program: ``value = kind(value[, operand])``.

    ``operand`` is an index into the node's inputs, or None for a unary step. ``swap`` exchanges the arguments of a
    binary step (``operand - value``, not ``value - operand``). Operands and the running value broadcast as in NumPy.
    """

    kind: str
    params: tuple[float, ...] = ()
    operand: int | None = None
    swap: bool = False


Program: TypeAlias = tuple[Pointwise, ...]

# Unary kinds, with their parameters. gelu is the exact (erf) form, gelu_tanh its tanh approximation;
# hardsigmoid(alpha, beta) = clip(alpha x + beta, 0, 1); hardswish = x * clip(x/6 + 1/2, 0, 1).
UNARY_KINDS = (
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "celu", "clip", "cos", "cosh", "elu",
    "erf", "exp", "floor", "gelu", "gelu_tanh", "hardsigmoid", "hardswish", "identity", "isinf", "isnan",
    "leaky_relu", "log", "mish", "neg", "not", "reciprocal", "relu", "round", "selu", "sigmoid", "sign",
    "silu", "sin", "sinh", "softplus", "softsign", "sqrt", "tan", "tanh", "thresholded_relu",
)  # fmt: skip
# Binary kinds; prelu(value, slope); div and mod on integers as in ONNX (truncating, mod by fmod flag: "fmod").
BINARY_KINDS = (
    "add", "and", "div", "equal", "fmod", "greater", "greater_equal", "less", "less_equal", "max", "min",
    "mod", "mul", "or", "pow", "prelu", "sub", "xor",
)  # fmt: skip
# Kinds whose result is boolean whatever they are given.
BOOLEAN_KINDS = (
    "and", "equal", "greater", "greater_equal", "isinf", "isnan", "less", "less_equal", "not", "or", "xor",
)  # fmt: skip


@dataclass(frozen=True)
class Conv:
    """Convolution of 1, 2 or 3 spatial axes. Inputs: x [N,C,...], w [K,C/groups,...], bias [K] if ``bias``,
    then the operands of the epilogue. ``pads`` is (begin of each axis..., end of each axis...)."""

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    bias: bool = False
    epilogue: Program = ()


@dataclass(frozen=True)
class ConvTranspose:
    """Transposed convolution. Inputs: x [N,C,...], w [C,K/groups,...], bias [K] if ``bias``, operands."""

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    output_pads: tuple[int, ...]
    groups: int = 1
    bias: bool = False
    epilogue: Program = ()


@dataclass(frozen=True)
class Linear:
    """``x @ w.T + bias``. Inputs: x [...,K], w [N,K] constant, bias [N] if ``bias``, operands."""

    bias: bool = False
    epilogue: Program = ()


@dataclass(frozen=True)
class MatMul:
    """``a @ b`` with NumPy's batching and rank-1 rules. Inputs: a, b, operands of the epilogue."""

    epilogue: Program = ()


@dataclass(frozen=True)
class Attention:
    """``softmax(scale q k^T + mask) v``. Inputs: q [...,S,D], k [...,T,D], v [...,T,E], mask if ``mask``.

    The mask is boolean (True = keep) or is added to the scores; it broadcasts to [...,S,T]. A row in which
    everything is masked gives zeros.
    """

    scale: float
    mask: bool = False


@dataclass(frozen=True)
class Elementwise:
    """A pointwise program on inputs[0]; further inputs are its operands. The empty program is a copy."""

    program: Program


@dataclass(frozen=True)
class Where:
    """``condition ? a : b`` with broadcasting. Inputs: condition, a, b."""


@dataclass(frozen=True)
class Cast:
    """Conversion of the element type; floating point to integer truncates."""

    to: DType


@dataclass(frozen=True)
class Softmax:
    """Softmax (or its logarithm) along one axis."""

    axis: int
    log: bool = False


@dataclass(frozen=True)
class LayerNorm:
    """Normalisation over the axes from ``axis`` to the last (``axis`` is negative).

    Inputs: x, scale if ``scale``, bias if ``bias``, residual if ``residual``. With a residual the operator
    normalises x + residual, and its second output, when it has one, is that sum. ``rms`` leaves the mean
    in (root mean square normalisation).
    """

    axis: int
    epsilon: float
    scale: bool = True
    bias: bool = True
    residual: bool = False
    rms: bool = False


@dataclass(frozen=True)
class BatchNorm:
    """Inference-time batch normalisation. Inputs: x [N,C,...], scale, bias, mean, variance, each [C]."""

    epsilon: float


@dataclass(frozen=True)
class GroupNorm:
    """Group normalisation; ``groups`` = C is instance normalisation. Inputs: x [N,C,...], scale [C], bias [C]."""

    groups: int
    epsilon: float


@dataclass(frozen=True)
class LocalResponseNorm:
    """LRN across channels (ONNX LRN)."""

    size: int
    alpha: float
    beta: float
    bias: float


@dataclass(frozen=True)
class Pool:
    """Max or average pooling. ``pads`` as in Conv; average counts the padding if ``count_pads``."""

    kind: Literal["max", "average"]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    ceil: bool = False
    count_pads: bool = False


@dataclass(frozen=True)
class Reduce:
    """Reduction over ``axes`` (non-negative, sorted). Global pooling is a reduction that keeps its axes."""

    kind: Literal["mean", "sum", "max", "min", "prod", "l1", "l2", "sum_square", "log_sum", "log_sum_exp"]
    axes: tuple[int, ...]
    keep: bool


@dataclass(frozen=True)
class ArgReduce:
    """Index (int64) of the largest or smallest element along ``axis``; the first one, or the last if ``last``."""

    kind: Literal["max", "min"]
    axis: int
    keep: bool
    last: bool = False


@dataclass(frozen=True)
class TopK:
    """The ``k`` largest (or smallest) along ``axis``, sorted: values and int64 indices."""

    k: int
    axis: int
    largest: bool = True


@dataclass(frozen=True)
class Reshape:
    """The same elements in row-major order under another concrete shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Transpose:
    """``out[i] = in[perm[i]]`` of the axes."""

    perm: tuple[int, ...]


@dataclass(frozen=True)
class Concat:
    """All inputs joined along ``axis`` (non-negative)."""

    axis: int


@dataclass(frozen=True)
class Split:
    """One input cut along ``axis`` into parts of the given sizes."""

    axis: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Slice:
    """``x[start:stop:step]`` on the named axes, Python's rules; a ``stop`` of None means to the end, also backward."""

    axes: tuple[int, ...]
    starts: tuple[int, ...]
    stops: tuple[int | None, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Gather:
    """``take(data, indices, axis)``; negative indices count from the end. Inputs: data, indices."""

    axis: int


@dataclass(frozen=True)
class GatherElements:
    """``take_along_axis``. Inputs: data, indices of the same rank."""

    axis: int


@dataclass(frozen=True)
class GatherND:
    """ONNX GatherND. Inputs: data, indices."""

    batch_dims: int = 0


@dataclass(frozen=True)
class ScatterElements:
    """ONNX ScatterElements. Inputs: data, indices, updates."""

    axis: int
    reduction: Literal["none", "add", "mul", "max", "min"] = "none"


@dataclass(frozen=True)
class ScatterND:
    """ONNX ScatterND. Inputs: data, indices, updates."""

    reduction: Literal["none", "add", "mul", "max", "min"] = "none"


@dataclass(frozen=True)
class Expand:
    """Broadcast to a concrete shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tile:
    """The tensor repeated along each axis."""

    repeats: tuple[int, ...]


@dataclass(frozen=True)
class Pad:
    """``pads`` is (begin of every axis..., end of every axis...); negative values crop."""

    pads: tuple[int, ...]
    mode: Literal["constant", "reflect", "edge", "wrap"] = "constant"
    value: float = 0.0


@dataclass(frozen=True)
class Resize:
    """Resampling of every axis to ``shape`` (ONNX Resize). ``scales`` are those that map coordinates."""

    shape: tuple[int, ...]
    scales: tuple[float, ...]
    mode: Literal["nearest", "linear", "cubic"]
    coordinates: Literal["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
    nearest: Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"] = "round_prefer_floor"
    cubic_coefficient: float = -0.75
    exclude_outside: bool = False


@dataclass(frozen=True)
class DepthToSpace:
    """ONNX DepthToSpace."""

    block: int
    mode: Literal["DCR", "CRD"] = "DCR"


@dataclass(frozen=True)
class SpaceToDepth:
    """ONNX SpaceToDepth."""

    block: int


@dataclass(frozen=True)
class CumSum:
    """Running sum along ``axis``."""

    axis: int
    exclusive: bool = False
    reverse: bool = False


@dataclass(frozen=True)
class Triangle:
    """Upper or lower triangle of the last two axes (ONNX Trilu)."""

    upper: bool
    diagonal: int = 0


@dataclass(frozen=True)
class Einsum:
    """Einstein summation."""

    equation: str


@dataclass(frozen=True)
class Quantize:
    """ONNX QuantizeLinear to int8/uint8. Inputs: x, scale, zero point. ``axis`` for per-channel scales."""

    axis: int
    to: DType


@dataclass(frozen=True)
class Dequantize:
    """ONNX DequantizeLinear. Inputs: x, scale, zero point."""

    axis: int


Op: TypeAlias = (
    Conv | ConvTranspose | Linear | MatMul | Attention | Elementwise | Where | Cast | Softmax | LayerNorm | BatchNorm
    | GroupNorm | LocalResponseNorm | Pool | Reduce | ArgReduce | TopK | Reshape | Transpose | Concat | Split | Slice
    | Gather | GatherElements | GatherND | ScatterElements | ScatterND | Expand | Tile | Pad | Resize | DepthToSpace
    | SpaceToDepth | CumSum | Triangle | Einsum | Quantize | Dequantize
)  # fmt: skip


def epilogue_of(op: Op) -> Program:
    """The pointwise program fused behind a layer, empty when there is none."""
    return getattr(op, "epilogue", ())


def operand_start(op: Op) -> int:
    """Index of the first epilogue operand among a node's inputs (after data, weight and bias)."""
    if isinstance(op, Conv | ConvTranspose | Linear):
        return 3 if op.bias else 2
    if isinstance(op, MatMul):
        return 2
    return 1
