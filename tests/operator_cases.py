"""One case of every operator and its corners, for tests of kernels and of lowering."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tamis.compiler.ir.ops import (
    ArgReduce,
    Attention,
    BatchNorm,
    Cast,
    Concat,
    Conv,
    ConvTranspose,
    CumSum,
    DepthToSpace,
    Dequantize,
    Einsum,
    Elementwise,
    Expand,
    Gather,
    GatherElements,
    GatherND,
    GroupNorm,
    LayerNorm,
    Linear,
    LocalResponseNorm,
    MatMul,
    Op,
    Pad,
    Pointwise,
    Pool,
    Quantize,
    Reduce,
    Reshape,
    Resize,
    ScatterElements,
    ScatterND,
    Slice,
    Softmax,
    SpaceToDepth,
    Split,
    Tile,
    TopK,
    Transpose,
    Triangle,
    Where,
)
from tamis.formats.dtype import DType

RELU = Pointwise("relu")


@dataclass(frozen=True)
class Case:
    """``inputs``: a shape (of normal random values) or an array each; ``constants``: which are known."""

    name: str
    op: Op
    inputs: tuple[Any, ...]
    constants: frozenset[int] = field(default_factory=frozenset)
    positive: bool = False
    exact: bool = False  # the result only moves elements, or is made of integers

    def arrays(self, seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        made = []
        for spec in self.inputs:
            if isinstance(spec, np.ndarray):
                made.append(spec)
                continue
            array = random.standard_normal(spec).astype(np.float32)
            made.append(np.abs(array) + np.float32(0.1) if self.positive else array)
        return made


def _ints(*values: int, dtype: type = np.int64) -> np.ndarray:
    return np.array(values, dtype=dtype)


def _conv(name: str, x: tuple[int, ...], w: tuple[int, ...], **changes: Any) -> Case:
    rank = len(x) - 2
    fields: dict[str, Any] = {"strides": (1,) * rank, "pads": (0,) * 2 * rank, "dilations": (1,) * rank}
    extra = changes.pop("extra", ())
    op = Conv(**fields | changes)
    inputs = (x, w, *(((w[0],),) if op.bias else ()), *extra)
    return Case(f"conv-{name}", op, inputs, frozenset((1, 2) if op.bias else (1,)))


def _conv_transpose(name: str, x: tuple[int, ...], w: tuple[int, ...], **changes: Any) -> Case:
    rank = len(x) - 2
    fields: dict[str, Any] = {
        "strides": (2,) * rank,
        "pads": (0,) * 2 * rank,
        "dilations": (1,) * rank,
        "output_pads": (0,) * rank,
    }
    op = ConvTranspose(**fields | changes)
    inputs = (x, w, *(((w[1] * op.groups,),) if op.bias else ()))
    return Case(f"conv_transpose-{name}", op, inputs, frozenset((1, 2) if op.bias else (1,)))


def _pool(name: str, x: tuple[int, ...], kernel: tuple[int, ...], kind: str = "max", **changes: Any) -> Case:
    rank = len(kernel)
    fields: dict[str, Any] = {"strides": (2,) * rank, "pads": (0,) * 2 * rank, "dilations": (1,) * rank}
    return Case(f"pool-{kind}-{name}", Pool(kind=kind, kernel=kernel, **fields | changes), (x,))  # type: ignore[arg-type]


def _resize(name: str, x: tuple[int, ...], scales: tuple[float, ...], mode: str, **changes: Any) -> Case:
    shape = tuple(changes.pop("shape", [math.floor(n * s) for n, s in zip(x, scales, strict=True)]))
    fields: dict[str, Any] = {"coordinates": "half_pixel"}
    return Case(f"resize-{mode}-{name}", Resize(shape, scales, mode, **fields | changes), (x,))  # type: ignore[arg-type]


CONVOLUTIONS = (
    _conv("plain", (2, 3, 8, 9), (5, 3, 3, 3), bias=True, pads=(1, 1, 1, 1)),
    _conv("strided-groups", (2, 4, 9, 7), (6, 2, 3, 2), groups=2, strides=(2, 1), dilations=(2, 1)),
    _conv("asymmetric", (1, 3, 6, 6), (4, 3, 3, 3), bias=True, pads=(0, 1, 1, 2), epilogue=(RELU,)),
    _conv(
        "residual",
        (2, 3, 6, 6),
        (4, 3, 3, 3),
        bias=True,
        pads=(1, 1, 1, 1),
        epilogue=(Pointwise("add", operand=3), RELU),
        extra=((2, 4, 6, 6),),
    ),
    _conv("depthwise-silu", (1, 4, 5, 5), (4, 1, 3, 3), groups=4, epilogue=(Pointwise("silu"),)),
    _conv("one-axis", (2, 3, 11), (4, 3, 3), bias=True, pads=(2, 0)),
    _conv("three-axes", (1, 2, 5, 6, 7), (3, 2, 2, 3, 3), pads=(0, 1, 1, 1, 1, 1), bias=True),
    _conv("channels-one", (1, 1, 7, 7), (1, 1, 7, 7)),
    _conv_transpose("plain", (2, 3, 4, 5), (3, 4, 3, 3), bias=True, pads=(1, 1, 1, 1), output_pads=(1, 1)),
    _conv_transpose("asymmetric", (1, 4, 4, 4), (4, 2, 3, 3), bias=True, pads=(0, 1, 2, 1), groups=2),
    _conv_transpose("long-output-pads", (1, 2, 3, 3), (2, 2, 2, 2), bias=True, output_pads=(2, 1), strides=(2, 3)),
    _conv_transpose("one-axis", (2, 3, 5), (3, 2, 4), epilogue=(Pointwise("leaky_relu", (0.1,)),)),
    _conv_transpose("dilated", (1, 2, 4, 4), (2, 3, 3, 3), strides=(1, 1), dilations=(2, 2)),
)

MATRICES = (
    Case("linear", Linear(), ((4, 8), (6, 8)), frozenset({1})),
    Case("linear-bias-3d", Linear(True, (Pointwise("gelu"),)), ((2, 5, 8), (6, 8), (6,)), frozenset({1, 2})),
    Case(
        "linear-residual",
        Linear(True, (Pointwise("add", operand=3), RELU)),
        ((4, 8), (6, 8), (6,), (4, 6)),
        frozenset({1, 2}),
    ),
    Case("linear-widening", Linear(False, (Pointwise("mul", operand=2),)), ((8,), (6, 8), (3, 6)), frozenset({1})),
    Case("mat_mul", MatMul(), ((2, 3, 4, 5), (2, 3, 5, 6))),
    Case("mat_mul-broadcast", MatMul((Pointwise("mul", operand=2),)), ((3, 4, 5), (5, 6), np.array(0.125, np.float32))),
    Case("mat_mul-vector", MatMul(), ((5,), (3, 5, 6))),
    Case("mat_mul-vector-right", MatMul(), ((3, 4, 5), (5,))),
    Case("mat_mul-dot", MatMul(), ((5,), (5,))),
    Case("mat_mul-constant-left", MatMul(), ((4, 5), (5, 6)), frozenset({0})),
    Case("attention", Attention(0.25), ((2, 3, 7, 16), (2, 3, 5, 16), (2, 3, 5, 16))),
    Case("attention-wide", Attention(0.25), ((2, 3, 7, 16), (2, 3, 5, 16), (2, 3, 5, 24))),
    Case("attention-mask-add", Attention(0.25, True), ((2, 3, 7, 16), (2, 3, 5, 16), (2, 3, 5, 16), (2, 1, 1, 5))),
    Case(
        "attention-mask-bool",
        Attention(0.25, True),
        ((2, 3, 4, 8), (2, 3, 4, 8), (2, 3, 4, 8), np.tril(np.ones((4, 4), bool))),
    ),
    Case(
        "attention-mask-nothing-bool",
        Attention(0.25, True),
        ((2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 8), np.arange(20).reshape(4, 5) >= 7),
    ),
    Case(
        "attention-mask-nothing-add",
        Attention(0.25, True),
        (
            (2, 3, 4, 8),
            (2, 3, 5, 8),
            (2, 3, 5, 8),
            np.where(np.arange(40).reshape(2, 1, 4, 5) >= 7, np.float32(0), np.float32(-np.inf)),
        ),
    ),
    Case(
        "attention-mask-nothing-known",
        Attention(0.25, True),
        ((2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 8), np.arange(20).reshape(4, 5) >= 7),
        frozenset({3}),
    ),
    Case("attention-rank3", Attention(0.5, True), ((3, 7, 8), (3, 5, 8), (3, 5, 8), (1, 7, 5))),
    Case("attention-rank2", Attention(0.5), ((7, 8), (5, 8), (5, 8))),
    Case("attention-rank5", Attention(0.5, True), ((2, 1, 3, 4, 8), (2, 2, 3, 4, 8), (2, 2, 3, 4, 8), (3, 4, 4))),
    Case("einsum", Einsum("bij, bkj -> bik"), ((2, 3, 4), (2, 5, 4))),
    Case("einsum-view", Einsum("ij->ji"), ((3, 4),), exact=True),
)

NORMALIZATIONS = (
    Case("softmax", Softmax(-1), ((2, 3, 7),)),
    Case("softmax-first", Softmax(1), ((2, 3, 4, 5),)),
    Case("softmax-log", Softmax(0, True), ((5, 3),)),
    Case("layer_norm", LayerNorm(-1, 1e-5), ((2, 3, 8), (8,), (8,)), frozenset({1, 2})),
    Case("layer_norm-two-axes", LayerNorm(-2, 1e-5), ((2, 3, 8), (8,), (3, 8)), frozenset({1, 2})),
    Case("layer_norm-bare", LayerNorm(-1, 1e-3, scale=False, bias=False), ((2, 8),)),
    Case("layer_norm-scale", LayerNorm(-1, 1e-3, bias=False), ((2, 8), (8,)), frozenset({1})),
    Case("layer_norm-bias", LayerNorm(-1, 1e-3, scale=False), ((2, 8), (8,)), frozenset({1})),
    Case("layer_norm-runtime-scale", LayerNorm(-2, 1e-3), ((2, 3, 8), (8,), (3, 1))),
    Case("layer_norm-residual", LayerNorm(-1, 1e-5, residual=True), ((2, 8), (8,), (8,), (2, 8)), frozenset({1, 2})),
    Case("layer_norm-rms", LayerNorm(-1, 1e-5, bias=False, rms=True), ((2, 8), (8,)), frozenset({1})),
    Case("layer_norm-rms-bias", LayerNorm(-1, 1e-5, rms=True, residual=True), ((2, 8), (8,), (8,), (2, 8))),
    Case(
        "batch_norm",
        BatchNorm(1e-5),
        ((2, 3, 4, 5), (3,), (3,), (3,), np.float32([0.5, 1, 2])),
        frozenset({1, 2, 3, 4}),
    ),
    Case("batch_norm-2d", BatchNorm(1e-3), ((4, 3), (3,), (3,), (3,), np.float32([0.5, 1, 2]))),
    Case("group_norm", GroupNorm(2, 1e-5), ((2, 4, 3, 5), (4,), (4,)), frozenset({1, 2})),
    Case("group_norm-instance", GroupNorm(4, 1e-5), ((2, 4, 9), (4,), (4,)), frozenset({1, 2})),
    Case("local_response_norm", LocalResponseNorm(5, 1e-1, 0.75, 2.0), ((2, 7, 3, 4),)),
    Case("local_response_norm-even", LocalResponseNorm(4, 1.0, 0.5, 1.0), ((2, 6, 3, 4),)),
)

POOLS = (
    _pool("resnet", (2, 3, 9, 9), (3, 3), pads=(1, 1, 1, 1)),
    _pool("asymmetric", (2, 3, 8, 7), (3, 2), pads=(0, 1, 1, 0)),
    _pool("ceil", (1, 2, 8, 8), (3, 3), ceil=True),
    _pool("ceil-pads", (1, 2, 7, 7), (2, 2), ceil=True, pads=(1, 1, 1, 1)),
    _pool("dilated", (1, 2, 9, 9), (3, 3), dilations=(2, 2), strides=(1, 1), pads=(1, 1, 1, 1)),
    _pool("yolo", (1, 4, 6, 6), (5, 5), strides=(1, 1), pads=(2, 2, 2, 2)),
    _pool("big-pads", (1, 2, 5, 5), (3, 3), strides=(1, 1), pads=(2, 2, 2, 2)),
    _pool("one-axis", (2, 3, 9), (4,)),
    _pool("three-axes", (1, 2, 5, 6, 7), (2, 2, 3), pads=(1, 0, 0, 1, 0, 0)),
    _pool("plain", (2, 3, 8, 8), (2, 2), "average"),
    _pool("pads", (2, 3, 8, 8), (3, 3), "average", pads=(1, 1, 1, 1)),
    _pool("count-pads", (2, 3, 8, 8), (3, 3), "average", pads=(1, 1, 1, 1), count_pads=True),
    _pool("asymmetric", (2, 3, 8, 8), (3, 3), "average", pads=(0, 1, 1, 0)),
    _pool("asymmetric-count", (2, 3, 8, 8), (3, 2), "average", pads=(0, 1, 1, 0), count_pads=True),
    _pool("ceil", (1, 2, 8, 8), (3, 3), "average", ceil=True),
    _pool("ceil-count", (1, 2, 8, 8), (3, 3), "average", ceil=True, pads=(1, 1, 1, 1), count_pads=True),
    _pool("dilated", (1, 2, 9, 9), (2, 3), "average", dilations=(3, 2), pads=(1, 0, 1, 0)),
    _pool("one-axis", (2, 3, 9), (4,), "average"),
    _pool("three-axes", (1, 2, 5, 6, 7), (2, 2, 3), "average", pads=(0, 0, 0, 1, 0, 0)),
    Case(
        "pool-max-integers",
        Pool("max", (2, 2), (1, 1), (1, 0, 0, 0), (1, 1)),
        (np.arange(-12, 12, dtype=np.int8).reshape(1, 2, 3, 4),),
        exact=True,
    ),
)

REDUCTIONS = (
    *(
        Case(
            f"reduce-{kind}-{'keep' if keep else 'drop'}",
            Reduce(kind, axes, keep),
            ((2, 3, 4, 5),),  # type: ignore[arg-type]
            positive=kind.startswith("log"),
        )
        for kind in ("mean", "sum", "max", "min", "prod", "l1", "l2", "sum_square", "log_sum", "log_sum_exp")
        for axes, keep in (((2, 3), True), ((1,), False), ((0, 1, 2, 3), False))
    ),
    Case("reduce-no-axes", Reduce("sum_square", (), True), ((2, 3),)),
    Case("reduce-integers", Reduce("mean", (0,), False), (_ints(1, 2, 4),), exact=True),
    Case("reduce-int32-sum", Reduce("sum", (0,), True), (_ints(1, 2, 4, dtype=np.int32),), exact=True),
    Case("reduce-log-infinite", Reduce("log_sum_exp", (0,), False), (np.float32([-np.inf, -np.inf]),)),
    Case("arg_reduce", ArgReduce("max", 1, False), (np.float32([[1, 3, 3], [2, 0, 2]]),), exact=True),
    Case("arg_reduce-last", ArgReduce("max", 1, True, True), (np.float32([[1, 3, 3], [2, 0, 2]]),), exact=True),
    Case("arg_reduce-min", ArgReduce("min", 0, True), ((4, 3),), exact=True),
    Case("arg_reduce-min-last", ArgReduce("min", 0, False, True), (np.float32([[1, 3], [1, 0]]),), exact=True),
    Case("top_k", TopK(3, -1), ((4, 9),), exact=True),
    Case("top_k-ties", TopK(3, 0), (np.float32([1, 2, 2, 1, 2, 0]),), exact=True),
    Case("top_k-smallest", TopK(2, 1, largest=False), (np.float32([[3, 1, 1, 2]]),), exact=True),
    Case("cum_sum", CumSum(1), ((3, 5),)),
    Case("cum_sum-exclusive", CumSum(0, exclusive=True), ((3, 5),)),
    Case("cum_sum-reverse", CumSum(1, reverse=True), ((3, 5),)),
    Case("cum_sum-both", CumSum(1, exclusive=True, reverse=True), ((3, 5),)),
    Case("cum_sum-integers", CumSum(0), (_ints(1, 2, 3, dtype=np.int32),), exact=True),
    Case("triangle", Triangle(True, 1), ((2, 4, 5),), exact=True),
    Case("triangle-lower", Triangle(False, -1), (np.ones((4, 4), bool),), exact=True),
)

MOVEMENTS = tuple(
    Case(name, op, inputs, frozenset(constants), exact=True)
    for name, op, inputs, constants in (
        ("reshape", Reshape((6, 20)), ((2, 3, 4, 5),), ()),
        ("transpose", Transpose((0, 2, 3, 1)), ((2, 3, 4, 5),), ()),
        ("transpose-heads", Transpose((0, 2, 1, 3)), ((2, 3, 4, 5),), ()),
        ("transpose-view", Transpose((1, 0)), ((1, 5),), ()),
        ("concat", Concat(1), ((2, 3, 4, 5), (2, 1, 4, 5), (2, 2, 4, 5)), ()),
        ("concat-constant", Concat(1), ((1, 1, 5), (1, 4, 5)), (0,)),
        ("split", Split(1, (1, 3, 2)), ((2, 6, 4, 5),), ()),
        ("split-one", Split(0, (2,)), ((2, 6),), ()),
        ("slice", Slice((1, 2), (1, -3), (None, -1), (1, 1)), ((2, 3, 4, 5),), ()),
        ("slice-step", Slice((3,), (0,), (2**62,), (2,)), ((2, 3, 4, 5),), ()),
        ("slice-backward", Slice((3, 1), (-1, 2), (None, -4), (-1, -2)), ((2, 3, 4, 5),), ()),
        ("slice-whole", Slice((0,), (0,), (None,), (1,)), ((2, 3),), ()),
        ("slice-empty", Slice((0,), (2,), (1,), (1,)), ((4, 3),), ()),
        ("gather-rows", Gather(0), ((7, 4), _ints(1, -1, 3)), (1,)),
        ("gather-runtime", Gather(0), ((7, 4), np.array([[1, -1], [0, -7]])), ()),
        ("gather-axis", Gather(1), ((2, 7, 4), np.array([[1, -1], [0, 2]])), (1,)),
        ("gather-axis-runtime", Gather(-1), ((2, 7, 4), np.array([1, -1], np.int32)), ()),
        ("gather-scalar", Gather(1), ((2, 7, 4), np.array(-2)), (1,)),
        ("gather-scalar-runtime", Gather(1), ((2, 7, 4), np.array(-2)), ()),
        ("gather-constant-table", Gather(0), ((7, 4), _ints(1, -1, 3)), (0,)),
        ("gather_elements", GatherElements(1), ((2, 5), np.array([[0, -1, 2], [1, 1, -5]])), ()),
        ("gather_elements-constant", GatherElements(0), ((2, 5), np.array([[0, -1, 1]])), (1,)),
        ("gather_nd", GatherND(), ((3, 4, 5), np.array([[0, 1], [-1, -1]])), ()),
        ("gather_nd-batch", GatherND(1), ((3, 4, 5), np.array([[[1]], [[-1]], [[0]]])), ()),
        ("gather_nd-full", GatherND(), ((3, 4), np.array([[[0, 1]], [[-1, -1]]])), (1,)),
        ("scatter_elements", ScatterElements(1), ((2, 5), np.array([[0, -1], [1, 2]]), (2, 2)), ()),
        ("scatter_elements-max", ScatterElements(0, "max"), ((2, 5), np.array([[0, -1, 1]]), (1, 3)), (1,)),
        ("scatter_nd", ScatterND(), ((3, 4, 5), np.array([[0, 1], [-1, -1]]), (2, 5)), ()),
        ("scatter_nd-rows", ScatterND("min"), ((3, 4), np.array([[0], [-1], [0]]), (3, 4)), (1,)),
        ("scatter_nd-max", ScatterND("max"), ((3, 4), np.array([[0, 1], [2, 2]]), (2,)), ()),
        ("expand", Expand((2, 3, 4)), ((3, 1),), ()),
        ("expand-same", Expand((3, 4)), ((3, 4),), ()),
        ("tile", Tile((2, 1, 3)), ((2, 3, 4),), ()),
        ("pad", Pad((0, 1, 2, 0, 0, 3), value=1.5), ((2, 3, 4),), ()),
        ("pad-crop", Pad((0, -1, 2, 0, 1, -1)), ((2, 3, 4),), ()),
        ("pad-infinite", Pad((1, 0), value=-math.inf), ((3,),), ()),
        ("pad-reflect", Pad((1, 2, 3, 0), "reflect"), ((4, 5),), ()),
        ("pad-reflect-far", Pad((0, 7, 0, 6), "reflect"), ((2, 3),), ()),
        ("pad-edge", Pad((1, 0, 0, 2), "edge"), ((4, 5),), ()),
        ("pad-wrap", Pad((1, 4, 2, 7), "wrap"), ((3, 3),), ()),
        ("pad-edge-crop", Pad((-1, 2), "edge"), ((4,),), ()),
        ("pad-integers", Pad((1, 1), value=7.0), (_ints(1, 2),), ()),
        ("depth_to_space", DepthToSpace(2), ((2, 12, 3, 4),), ()),
        ("depth_to_space-crd", DepthToSpace(2, "CRD"), ((2, 12, 3, 4),), ()),
        ("space_to_depth", SpaceToDepth(2), ((2, 3, 4, 6),), ()),
        ("space_to_depth-one", SpaceToDepth(1), ((2, 3, 4, 6),), ()),
        ("where", Where(), (np.array([[True], [False]]), (2, 3), (3,)), (2,)),
        ("elementwise-copy", Elementwise(()), ((2, 3, 4, 5),), ()),
        ("elementwise-identity", Elementwise((Pointwise("identity"),)), ((2, 3),), ()),
        ("cast-truncates", Cast(DType.INT32), (np.float32([-1.7, 1.7, 0.2]),), ()),
        ("cast-bool", Cast(DType.BOOL), (np.float32([0, -0.5, 2]),), ()),
        ("cast-int-float", Cast(DType.FLOAT32), (_ints(1, -2),), ()),
        ("cast-float8", Cast(DType.FLOAT8_E4M3), (np.float32([0.3, 1000, -500, 17]),), ()),
        (
            "quantize",
            Quantize(1, DType.INT8),
            (np.float32([[0.5, 1.5, -300, 300]]), np.array(1.0, np.float32), np.array(0, np.int8)),
            (1, 2),
        ),
        (
            "quantize-channels",
            Quantize(1, DType.UINT8),
            ((2, 3, 4), np.float32([0.1, 0.2, 0.3]), np.uint8([3, 128, 255])),
            (1, 2),
        ),
    )
)

DEQUANTIZATIONS = (
    Case(
        "dequantize",
        Dequantize(1),
        (np.arange(-6, 6, dtype=np.int8).reshape(3, 4), np.float32([0.1, 0.2, 0.3, 1]), np.int8([0, 1, -2, 3])),
        frozenset({1, 2}),
    ),
    Case(
        "dequantize-tensor",
        Dequantize(0),
        (np.arange(8, dtype=np.uint8), np.array(0.5, np.float32), np.array(128, np.uint8)),
        frozenset({1, 2}),
    ),
    Case(
        "dequantize-int32",
        Dequantize(0),
        (np.array([2**30, -7], np.int32), np.float32([0.5, 2]), np.int32([0, 0])),
        frozenset({1, 2}),
    ),
    Case("scatter_elements-add", ScatterElements(1, "add"), ((2, 5), np.array([[0, 0], [1, 1]]), (2, 2))),
    Case("scatter_elements-mul", ScatterElements(1, "mul"), ((2, 5), np.array([[0, 0], [1, 1]]), (2, 2))),
    Case("scatter_nd-add", ScatterND("add"), ((3, 4), np.array([[0], [0], [2]]), (3, 4))),
    Case("scatter_nd-mul", ScatterND("mul"), ((3, 4), np.array([[0, 1], [0, 1]]), (2,))),
)

RESIZES = (
    _resize("double", (1, 2, 3, 4), (1, 1, 2, 2), "nearest", coordinates="asymmetric", nearest="floor"),
    _resize("half-pixel", (1, 2, 3, 4), (1, 1, 2, 3), "nearest"),
    _resize("odd", (1, 2, 5, 7), (1, 1, 1.6, 0.7), "nearest", nearest="round_prefer_ceil"),
    _resize("ceil", (1, 2, 5, 7), (1, 1, 1.6, 0.7), "nearest", coordinates="asymmetric", nearest="ceil"),
    _resize("symmetric", (1, 2, 5, 7), (1, 1, 1.7, 0.7), "nearest", coordinates="half_pixel_symmetric"),
    _resize("double", (1, 2, 3, 4), (1, 1, 2, 2), "linear"),
    _resize("odd", (2, 2, 5, 7), (1, 1, 1.7, 0.6), "linear"),
    _resize("corners", (1, 2, 5, 6), (1, 1, 2, 1.5), "linear", coordinates="align_corners"),
    _resize("corners-odd", (1, 2, 5, 7), (1, 1, 1.7, 0.6), "linear", coordinates="align_corners"),
    _resize("asymmetric", (1, 2, 5, 7), (1, 1, 1.7, 0.6), "linear", coordinates="asymmetric"),
    _resize("pytorch", (1, 2, 5, 7), (1, 1, 0.2, 2), "linear", coordinates="pytorch_half_pixel"),
    _resize("one-axis", (2, 3, 5), (1, 1, 2), "linear"),
    _resize("all-axes", (2, 3, 4, 4), (1.5, 2, 1, 2), "linear"),
    _resize("double", (1, 2, 4, 5), (1, 1, 2, 2), "cubic"),
    _resize("half", (1, 2, 4, 5), (1, 1, 2, 0.8), "cubic", cubic_coefficient=-0.5),
    _resize("outside", (1, 2, 4, 5), (1, 1, 2, 0.8), "cubic", exclude_outside=True),
    _resize("nothing", (1, 2, 4, 5), (1, 1, 1, 1), "cubic"),
)

_UNARY_PARAMS: dict[str, tuple[float, ...]] = {
    "celu": (0.5,),
    "clip": (-0.5, 0.75),
    "elu": (0.7,),
    "hardsigmoid": (0.3, 0.4),
    "leaky_relu": (0.2,),
    "selu": (1.5, 1.1),
    "thresholded_relu": (0.3,),
}
UNARY_NAMES = (
    "abs",
    "asinh",
    "atan",
    "ceil",
    "celu",
    "clip",
    "cos",
    "cosh",
    "elu",
    "erf",
    "exp",
    "floor",
    "gelu",
    "gelu_tanh",
    "hardsigmoid",
    "hardswish",
    "identity",
    "isinf",
    "isnan",
    "leaky_relu",
    "mish",
    "neg",
    "relu",
    "round",
    "selu",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "sinh",
    "softplus",
    "softsign",
    "tan",
    "tanh",
    "thresholded_relu",
)
POSITIVE_NAMES = ("acos", "acosh", "asin", "atanh", "log", "reciprocal", "sqrt")


def _elementwise(name: str, program: tuple[Pointwise, ...], *inputs: Any, constants: tuple[int, ...] = ()) -> Case:
    return Case(f"elementwise-{name}", Elementwise(program), inputs, frozenset(constants))


SPECIAL = np.array([-0.0, 0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1e-3, 20.0, -20.0, 60.0, -60.0], np.float32)
INSIDE = np.array([0.1, 0.5, 0.9], np.float32)
ABOVE = np.array([1.1, 2.5, 30.0], np.float32)

POINTWISE = (
    *(_elementwise(kind, (Pointwise(kind, _UNARY_PARAMS.get(kind, ())),), SPECIAL) for kind in UNARY_NAMES),
    *(
        _elementwise(kind, (Pointwise(kind),), ABOVE if kind in ("acosh", "log", "sqrt", "reciprocal") else INSIDE)
        for kind in POSITIVE_NAMES
    ),
    *(
        _elementwise(kind, (Pointwise(kind, operand=1),), (3, 4), (4,))
        for kind in (
            "add",
            "div",
            "equal",
            "fmod",
            "greater",
            "greater_equal",
            "less",
            "less_equal",
            "max",
            "min",
            "mod",
            "mul",
            "prelu",
            "sub",
        )
    ),
    *(
        _elementwise(
            f"{kind}-bool",
            (Pointwise(kind, operand=1),),
            np.array([True, True, False, False]),
            np.array([True, False, True, False]),
        )
        for kind in ("and", "or", "xor")
    ),
    _elementwise("not", (Pointwise("not"),), np.array([True, False])),
    _elementwise("pow", (Pointwise("pow", operand=1),), ABOVE, np.float32([2, 0.5, -1])),
    _elementwise("pow-scalar", (Pointwise("pow", operand=1),), (2, 3), np.array(2.0, np.float32), constants=(1,)),
    _elementwise("pow-int-exponent", (Pointwise("pow", operand=1),), (2, 3), _ints(3), constants=(1,)),
    _elementwise("pow-integers", (Pointwise("pow", operand=1),), _ints(2, -3, 5), _ints(3, 2, 0)),
    _elementwise("div-integers", (Pointwise("div", operand=1),), _ints(7, -7, 7, -7), _ints(2, 2, -2, -2)),
    _elementwise("mod-integers", (Pointwise("mod", operand=1),), _ints(7, -7, 7, -7), _ints(3, 3, -3, -3)),
    _elementwise("fmod-integers", (Pointwise("fmod", operand=1),), _ints(7, -7, 7, -7), _ints(3, 3, -3, -3)),
    _elementwise("clip-integers", (Pointwise("clip", (-1.5, math.inf)),), _ints(-7, -2, 0, 7)),
    _elementwise("clip-open", (Pointwise("clip", (-math.inf, 6.0)),), SPECIAL),
    _elementwise("clip-all", (Pointwise("clip", (-math.inf, math.inf)),), SPECIAL),
    _elementwise("swap", (Pointwise("sub", operand=1, swap=True),), (3, 4), (1, 4), constants=(1,)),
    _elementwise(
        "scalar",
        (Pointwise("mul", operand=1), Pointwise("add", operand=2)),
        (2, 3),
        np.float32([0.3]),
        np.array(1.7, np.float32),
        constants=(1, 2),
    ),
    _elementwise("widening", (Pointwise("exp"), Pointwise("add", operand=1), RELU), (4,), (3, 4)),
    _elementwise("widening-constant", (Pointwise("add", operand=1),), (4,), (1, 1, 1), constants=(1,)),
    _elementwise("self-gated", (Pointwise("sigmoid"), Pointwise("mul", operand=0)), (3, 4)),
    _elementwise("to-bool", (Pointwise("greater", operand=1), Pointwise("not")), (3, 4), (3, 4)),
    _elementwise(
        "long",
        (
            Pointwise("mul", operand=1),
            Pointwise("tanh"),
            Pointwise("div", operand=2, swap=True),
            Pointwise("clip", (-2.0, 2.0)),
            Pointwise("softsign"),
            Pointwise("isnan"),
        ),
        (3, 4),
        (4,),
        (3, 4),
    ),
    _elementwise(
        "swish-by-hand",
        (RELU, Pointwise("hardsigmoid", (0.2, 0.5)), Pointwise("prelu", operand=1)),
        (2, 3, 4, 4),
        (3, 1, 1),
    ),
)

CASES = (
    *CONVOLUTIONS,
    *MATRICES,
    *NORMALIZATIONS,
    *POOLS,
    *REDUCTIONS,
    *MOVEMENTS,
    *DEQUANTIZATIONS,
    *RESIZES,
    *POINTWISE,
)
