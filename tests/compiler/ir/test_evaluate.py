"""The NumPy meaning of every operator, compared with torch in float64 or with a loop written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as nn

from tamis.compiler.ir import ops
from tamis.compiler.ir.evaluate import MEANINGS, evaluate, run
from tamis.compiler.ir.evaluate_erf import erf
from tamis.compiler.ir.evaluate_pointwise import BINARY, UNARY
from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.infer import RULES, infer
from tamis.errors import InputError
from tamis.formats.dtype import DType


def f64(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def types(arrays: Sequence[np.ndarray]) -> list[TensorType]:
    return [TensorType(array.shape, DType.of(array)) for array in arrays]


def result(op: ops.Op, *inputs: np.ndarray) -> np.ndarray:
    """The first result, after checking that ``infer`` foretells all of them and that float32 agrees."""
    results = evaluate(op, inputs)
    assert types(results) == list(infer(op, types(inputs)))[: len(results)]
    narrow = [a.astype(np.float32) if a.dtype == np.float64 else a for a in inputs]
    for wide, small in zip(results, evaluate(op, narrow), strict=True):
        assert small.dtype == (np.float32 if wide.dtype == np.float64 else wide.dtype)
        if wide.dtype == np.float64:
            np.testing.assert_allclose(small, wide, rtol=2e-4, atol=2e-5)
    return results[0]


def same(got: np.ndarray, want: torch.Tensor | np.ndarray) -> None:
    np.testing.assert_allclose(got, np.asarray(want), rtol=1e-10, atol=1e-12)


def t(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def test_every_operator_has_a_meaning_and_a_rule() -> None:
    operators = set(ops.Op.__args__)  # type: ignore[attr-defined]
    assert set(MEANINGS) == operators
    assert set(RULES) == operators
    assert set(UNARY) == set(ops.UNARY_KINDS) and set(BINARY) == set(ops.BINARY_KINDS)


# --- convolution and pooling -------------------------------------------------------------------------------

CONVOLUTIONS = [nn.conv1d, nn.conv2d, nn.conv3d]
TRANSPOSED = [nn.conv_transpose1d, nn.conv_transpose2d, nn.conv_transpose3d]


@pytest.mark.parametrize("seed", range(24))
def test_conv(seed: int) -> None:
    random = np.random.default_rng(seed)
    rank, groups = 1 + seed % 3, int(random.choice([1, 2, 3]))
    channels, filters = groups * int(random.integers(1, 4)), groups * int(random.integers(1, 4))
    kernel = random.integers(1, 4, rank).tolist()
    strides, dilations = random.integers(1, 4, rank).tolist(), random.integers(1, 3, rank).tolist()
    pads = random.integers(0, 3, rank).tolist()
    x = f64(2, channels, *random.integers(6, 9, rank).tolist(), seed=seed)
    weight, bias = f64(filters, channels // groups, *kernel, seed=seed), f64(filters, seed=seed)
    op = ops.Conv(tuple(strides), (*pads, *pads), tuple(dilations), groups, bias=True)
    want = CONVOLUTIONS[rank - 1](t(x), t(weight), t(bias), strides, pads, dilations, groups)
    same(result(op, x, weight, bias), want)
    lopsided = ops.Conv(tuple(strides), (*pads, *[p + 1 for p in pads]), tuple(dilations), groups)
    padded = np.pad(x, [(0, 0), (0, 0), *[(0, 1)] * rank])
    same(
        result(lopsided, x, weight),
        result(ops.Conv(op.strides, op.pads, op.dilations, groups), padded, weight),
    )


@pytest.mark.parametrize("seed", range(24))
def test_conv_transpose(seed: int) -> None:
    random = np.random.default_rng(seed)
    rank, groups = 1 + seed % 3, int(random.choice([1, 2, 3]))
    channels, filters = groups * int(random.integers(1, 4)), int(random.integers(1, 4))
    kernel = random.integers(2, 4, rank).tolist()
    strides, dilations = random.integers(1, 4, rank).tolist(), random.integers(1, 3, rank).tolist()
    pads = random.integers(0, 2, rank).tolist()
    extra = [int(random.integers(0, max(s, d))) for s, d in zip(strides, dilations, strict=True)]
    x = f64(2, channels, *random.integers(4, 6, rank).tolist(), seed=seed)
    weight, bias = f64(channels, filters, *kernel, seed=seed), f64(filters * groups, seed=seed)
    op = ops.ConvTranspose(tuple(strides), (*pads, *pads), tuple(dilations), tuple(extra), groups, bias=True)
    want = TRANSPOSED[rank - 1](t(x), t(weight), t(bias), strides, pads, extra, groups, dilations)
    same(result(op, x, weight, bias), want)


@pytest.mark.parametrize("seed", range(24))
def test_pools(seed: int) -> None:
    random = np.random.default_rng(seed)
    rank, ceil, count = 1 + seed % 3, bool(random.integers(0, 2)), bool(random.integers(0, 2))
    kernel = random.integers(1, 4, rank).tolist()
    strides, pads = random.integers(1, 4, rank).tolist(), [size // 2 for size in kernel]
    dilations = random.integers(1, 3, rank).tolist()
    x = f64(2, 3, *random.integers(6, 10, rank).tolist(), seed=seed)
    both, one = (*pads, *pads), (1,) * rank
    average = ops.Pool("average", tuple(kernel), tuple(strides), both, one, ceil, count)
    want = [nn.avg_pool1d, nn.avg_pool2d, nn.avg_pool3d][rank - 1](t(x), kernel, strides, pads, ceil, count)
    same(result(average, x), want)
    maximum = ops.Pool("max", tuple(kernel), tuple(strides), both, tuple(dilations), ceil)
    want = [nn.max_pool1d, nn.max_pool2d, nn.max_pool3d][rank - 1](t(x), kernel, strides, pads, dilations, ceil)
    same(result(maximum, x), want)


def test_max_pool_of_integers_and_of_nan() -> None:
    pool = ops.Pool("max", (2,), (1,), (1, 1), (1,))
    assert result(pool, np.asarray([[[-5, -7]]], np.int8)).tolist() == [[[-5, -5, -7]]]
    got = evaluate(pool, [np.asarray([[[1.0, np.nan, 2.0]]])])[0]
    assert np.isnan(got[0, 0, 1:3]).all() and got[0, 0, 0] == 1 and got[0, 0, 3] == 2


def test_convolution_passes_nan_on() -> None:
    x = np.zeros((1, 1, 4))
    x[0, 0, 1] = np.nan
    got = evaluate(ops.Conv((1,), (0, 0), (1,)), [x, np.zeros((1, 1, 2))])[0]
    assert np.isnan(got[0, 0]).tolist() == [True, True, False]


# --- matrix products ---------------------------------------------------------------------------------------


def test_linear_matmul_and_epilogue() -> None:
    x, weight, bias, residual = f64(2, 3, 5), f64(4, 5), f64(4), f64(3, 4)
    program = (ops.Pointwise("add", operand=3), ops.Pointwise("relu"))
    got = result(ops.Linear(bias=True, epilogue=program), x, weight, bias, residual)
    same(got, nn.relu(nn.linear(t(x), t(weight), t(bias)) + t(residual)))
    same(result(ops.MatMul(), f64(5), f64(2, 5, 3)), f64(5) @ f64(2, 5, 3))
    same(result(ops.MatMul(), f64(2, 1, 3, 5), f64(4, 5, 3)), f64(2, 1, 3, 5) @ f64(4, 5, 3))
    same(
        result(ops.Einsum("bhd,bkd->bhk"), f64(2, 3, 4), f64(2, 5, 4)),
        f64(2, 3, 4) @ f64(2, 5, 4).swapaxes(1, 2),
    )
    same(result(ops.Einsum("...ij,...jk"), f64(2, 3, 4), f64(4, 5)), f64(2, 3, 4) @ f64(4, 5))
    same(result(ops.Einsum("ii->i"), f64(4, 4)), np.diagonal(f64(4, 4)))


def test_attention() -> None:
    q, k, v = f64(2, 3, 4, 8), f64(2, 3, 6, 8), f64(2, 3, 6, 5)
    want = nn.scaled_dot_product_attention(t(q), t(k), t(v), scale=0.3)
    same(result(ops.Attention(0.3), q, k, v), want)
    bias = f64(4, 6)
    want = nn.scaled_dot_product_attention(t(q), t(k), t(v), t(bias), scale=0.3)
    same(result(ops.Attention(0.3, mask=True), q, k, v, bias), want)
    keep = np.tril(np.ones((4, 6), bool))
    want = nn.scaled_dot_product_attention(t(q), t(k), t(v), t(keep), scale=0.3)
    same(result(ops.Attention(0.3, mask=True), q, k, v, keep), want)


# --- pointwise ---------------------------------------------------------------------------------------------

UNARY_REFERENCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "abs": torch.abs, "acos": torch.acos, "acosh": torch.acosh, "asin": torch.asin, "asinh": torch.asinh,
    "atan": torch.atan, "atanh": torch.atanh, "ceil": torch.ceil, "celu": nn.celu, "cos": torch.cos,
    "cosh": torch.cosh, "elu": nn.elu, "erf": torch.erf, "exp": torch.exp, "floor": torch.floor,
    "gelu": nn.gelu, "gelu_tanh": lambda x: nn.gelu(x, approximate="tanh"),
    "hardsigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1), "hardswish": nn.hardswish,
    "identity": lambda x: x, "leaky_relu": nn.leaky_relu, "log": torch.log, "mish": nn.mish,
    "neg": torch.neg, "reciprocal": torch.reciprocal, "relu": nn.relu, "round": torch.round,
    "selu": nn.selu, "sigmoid": torch.sigmoid, "sign": torch.sign, "silu": nn.silu, "sin": torch.sin,
    "sinh": torch.sinh, "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "softsign": nn.softsign, "sqrt": torch.sqrt, "tan": torch.tan, "tanh": torch.tanh,
    "thresholded_relu": lambda x: nn.threshold(x, 1.0, 0.0),
    "isinf": torch.isinf, "isnan": torch.isnan,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(UNARY_REFERENCES))
def test_unary(kind: str) -> None:
    special = [0.0, 0.5, 1.0, 1.5, 2.5, -0.5, -1.5, 30.0, -30.0, 600.0, -600.0]
    if kind in ("exp", "sinh", "cosh"):
        special = special[:-2]
    x = np.concatenate([f64(200) * 3, np.asarray(special)])
    got = evaluate(ops.Elementwise((ops.Pointwise(kind),)), [x])[0]
    np.testing.assert_allclose(got, UNARY_REFERENCES[kind](t(x)).numpy(), rtol=1e-7, atol=1e-7)
    extreme = np.asarray([np.nan, np.inf, -np.inf])
    got = evaluate(ops.Elementwise((ops.Pointwise(kind),)), [extreme])[0]
    want = UNARY_REFERENCES[kind](t(extreme)).numpy()
    if kind in ("gelu", "gelu_tanh", "silu", "mish", "hardswish", "softsign"):
        got, want = got[:1], want[:1]  # x * 0 at minus infinity is NaN by the formula, 0 or NaN in libraries
    if kind == "sign":
        got, want = got[1:], want[1:]  # torch has 0 for the sign of NaN, NumPy has NaN
    np.testing.assert_allclose(got, want, rtol=1e-7)


def test_unary_parameters() -> None:
    x = f64(50) * 3

    def value(kind: str, *params: float) -> np.ndarray:
        return result(ops.Elementwise((ops.Pointwise(kind, params),)), x)

    same(value("clip", -0.5, 1.25), np.clip(x, -0.5, 1.25))
    same(value("elu", 0.7), nn.elu(t(x), 0.7))
    same(value("celu", 0.7), nn.celu(t(x), 0.7))
    same(value("leaky_relu", 0.3), nn.leaky_relu(t(x), 0.3))
    same(value("hardsigmoid", 0.25, 0.4), np.clip(0.25 * x + 0.4, 0, 1))
    same(value("selu", 1.5, 2.0), np.where(x > 0, 2 * x, 3 * np.expm1(x)))
    same(value("thresholded_relu", 0.5), np.where(x > 0.5, x, 0))


BINARY_REFERENCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": lambda a, b: np.where(a > b, a, b), "min": lambda a, b: np.where(a < b, a, b),
    "pow": lambda a, b: np.abs(a) ** b, "fmod": lambda a, b: a - b * np.trunc(a / b),
    "mod": lambda a, b: a - b * np.floor(a / b), "equal": lambda a, b: a == b, "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b, "less": lambda a, b: a < b, "less_equal": lambda a, b: a <= b,
    "prelu": lambda a, b: np.where(a < 0, a * b, a),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(BINARY_REFERENCES))
def test_binary(kind: str) -> None:
    a, b = f64(4, 1, 5), f64(3, 1)
    a = np.abs(a) if kind == "pow" else a
    want = BINARY_REFERENCES[kind](a, b)
    np.testing.assert_allclose(
        evaluate(ops.Elementwise((ops.Pointwise(kind, operand=1),)), [a, b])[0], want, rtol=1e-9, atol=1e-12
    )
    swapped = ops.Elementwise((ops.Pointwise(kind, operand=1, swap=True),))
    np.testing.assert_allclose(evaluate(swapped, [b, a])[0], want, rtol=1e-9, atol=1e-12)


def test_logic_and_integers() -> None:
    a, b = np.asarray([True, True, False, False]), np.asarray([True, False, True, False])
    for kind, want in (("and", a & b), ("or", a | b), ("xor", a ^ b)):
        assert (result(ops.Elementwise((ops.Pointwise(kind, operand=1),)), a, b) == want).all()
    assert (result(ops.Elementwise((ops.Pointwise("not"),)), a) == ~a).all()
    x, y = np.asarray([-7, 7, -7, 7]), np.asarray([2, -2, -2, 2])
    assert result(ops.Elementwise((ops.Pointwise("div", operand=1),)), x, y).tolist() == [-3, -3, 3, 3]
    power = ops.Elementwise((ops.Pointwise("pow", operand=1),))
    assert result(power, np.asarray([2, 3]), np.asarray([3, 2])).tolist() == [8, 9]
    assert result(power, np.asarray([2.0, 3.0]), np.asarray([3, 2])).tolist() == [8, 9]
    copied = result(ops.Elementwise(()), x)
    assert copied.tolist() == x.tolist()


def test_programs_chain_and_broadcast_up() -> None:
    program = (
        ops.Pointwise("mul", operand=1),
        ops.Pointwise("sub", operand=2, swap=True),
        ops.Pointwise("tanh"),
    )
    x, scale, shift = f64(3), f64(2, 1), f64(4, 1, 1)
    same(result(ops.Elementwise(program), x, scale, shift), np.tanh(shift - x * scale))


def test_erf_to_the_last_place() -> None:
    x = np.concatenate([np.linspace(-7, 7, 20001), [0.0, 1e-300, 0.46875, 4.0, 6.0, 100.0, np.inf, -np.inf]])
    want = np.asarray([math.erf(value) for value in x])
    np.testing.assert_allclose(erf(x), want, rtol=1e-15, atol=0)
    assert np.isnan(erf(np.asarray([np.nan])))[0]


# --- normalisation -----------------------------------------------------------------------------------------


def test_softmax() -> None:
    x = f64(3, 4, 5) * 50
    for axis in (0, 1, 2, -1):
        same(result(ops.Softmax(axis), x), torch.softmax(t(x), axis))
        same(result(ops.Softmax(axis, log=True), x), torch.log_softmax(t(x), axis))


def test_layer_norm() -> None:
    x, scale, bias, residual = f64(2, 3, 4), f64(3, 4), f64(3, 4), f64(2, 3, 4, seed=1)
    want = nn.layer_norm(t(x), (3, 4), t(scale), t(bias), 1e-3)
    same(result(ops.LayerNorm(-2, 1e-3), x, scale, bias), want)
    same(result(ops.LayerNorm(-1, 1e-3, scale=False, bias=False), x), nn.layer_norm(t(x), (4,), eps=1e-3))
    op = ops.LayerNorm(-1, 1e-3, bias=False, residual=True, rms=True)
    normal, total = evaluate(op, [x, scale[0], residual])
    same(total, x + residual)
    same(normal, nn.rms_norm(t(x + residual), (4,), t(scale[0]), 1e-3))


def test_batch_and_group_norm() -> None:
    x, scale, bias, mean, variance = f64(2, 6, 3, 4), f64(6), f64(6), f64(6, seed=1), np.abs(f64(6)) + 0.1
    want = nn.batch_norm(t(x), t(mean), t(variance), t(scale), t(bias), eps=1e-3)
    same(result(ops.BatchNorm(1e-3), x, scale, bias, mean, variance), want)
    for groups in (1, 2, 3, 6):
        same(
            result(ops.GroupNorm(groups, 1e-3), x, scale, bias),
            nn.group_norm(t(x), groups, t(scale), t(bias), 1e-3),
        )
    for size in (1, 3, 4, 5):
        op = ops.LocalResponseNorm(size, 1e-2, 0.6, 1.5)
        got = result(op, x)
        before = (size - 1) // 2
        for channel in range(6):
            window = x[:, max(0, channel - before) : channel - before + size]
            want_channel = x[:, channel] / (1.5 + 1e-2 / size * (window**2).sum(1)) ** 0.6
            same(got[:, channel], want_channel)


# --- reductions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(), (0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("keep", [True, False])
def test_reductions(axes: tuple[int, ...], keep: bool) -> None:
    x = f64(3, 4, 5)
    positive = np.abs(x)

    def value(kind: str, data: np.ndarray = x) -> np.ndarray:
        return result(ops.Reduce(kind, axes, keep), data)  # type: ignore[arg-type]

    same(value("sum"), x.sum(axes, keepdims=keep))
    same(value("mean"), x.mean(axes, keepdims=keep))
    same(value("max"), x.max(axes, keepdims=keep))
    same(value("min"), x.min(axes, keepdims=keep))
    same(value("prod"), x.prod(axes, keepdims=keep))
    same(value("l1"), np.abs(x).sum(axes, keepdims=keep))
    same(value("l2"), np.sqrt((x**2).sum(axes, keepdims=keep)))
    same(value("sum_square"), (x**2).sum(axes, keepdims=keep))
    same(value("log_sum", positive), np.log(positive.sum(axes, keepdims=keep)))
    if axes:
        big = np.asarray(torch.logsumexp(t(x * 1000), axes, keepdim=keep))
        same(evaluate(ops.Reduce("log_sum_exp", axes, keep), [x * 1000])[0], big)


def test_searches() -> None:
    x = np.asarray([[2.0, 7, 7, 1], [3, 3, 0, 0]])
    assert result(ops.ArgReduce("max", 1, False), x).tolist() == [1, 0]
    assert result(ops.ArgReduce("max", 1, True, last=True), x).tolist() == [[2], [1]]
    assert result(ops.ArgReduce("min", 1, False, last=True), x).tolist() == [3, 3]
    values, places = evaluate(ops.TopK(3, 1), [x])
    assert values.tolist() == [[7, 7, 2], [3, 3, 0]] and places.tolist() == [[1, 2, 0], [0, 1, 2]]
    values, places = evaluate(ops.TopK(2, 0, largest=False), [x])
    assert values.tolist() == [[2, 3, 0, 0], [3, 7, 7, 1]] and places.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0]]
    data = f64(3, 4)
    same(result(ops.CumSum(1), data), np.cumsum(data, 1))
    same(result(ops.CumSum(0, exclusive=True), data), np.cumsum(data, 0) - data)
    same(result(ops.CumSum(1, reverse=True), data), np.cumsum(data[:, ::-1], 1)[:, ::-1])
    same(result(ops.CumSum(1, exclusive=True, reverse=True), data), np.cumsum(data[:, ::-1], 1)[:, ::-1] - data)
    for diagonal in (-2, 0, 1):
        same(result(ops.Triangle(True, diagonal), data), torch.triu(t(data), diagonal))
        same(result(ops.Triangle(False, diagonal), data), torch.tril(t(data), diagonal))


# --- movement ----------------------------------------------------------------------------------------------


def test_movement() -> None:
    x = f64(2, 3, 4)
    same(result(ops.Reshape((4, 6)), x), x.reshape(4, 6))
    same(result(ops.Transpose((2, 0, 1)), x), t(x).permute(2, 0, 1))
    same(result(ops.Concat(1), x, f64(2, 1, 4)), torch.cat([t(x), t(f64(2, 1, 4))], 1))
    for got, want in zip(evaluate(ops.Split(2, (1, 0, 3)), [x]), t(x).split([1, 0, 3], 2), strict=True):
        same(got, want)
    same(result(ops.Slice((0, 2), (1, 3), (2, None), (1, -2)), x), x[1:2, :, 3::-2])
    same(result(ops.Expand((5, 2, 3, 4)), x), t(x).expand(5, 2, 3, 4))
    same(result(ops.Tile((2, 1, 3)), x), t(x).repeat(2, 1, 3))
    pads = (0, 1, 2, 1, 0, 3)
    same(result(ops.Pad(pads, value=1.5), x), nn.pad(t(x), (2, 3, 1, 0, 0, 1), value=1.5))
    same(result(ops.Pad((0, 0, 2, 0, 0, 3), "reflect"), x), nn.pad(t(x), (2, 3), "reflect"))
    same(result(ops.Pad((0, 0, 2, 0, 0, 3), "edge"), x), nn.pad(t(x), (2, 3), "replicate"))
    same(result(ops.Pad((0, 0, 2, 0, 0, 3), "wrap"), x), nn.pad(t(x), (2, 3), "circular"))
    same(result(ops.Pad((0, -1, 1, 0, 0, -2)), x), nn.pad(t(x), (1, -2, -1, 0)))
    same(result(ops.Where(), x > 0, x, f64(4)), np.where(x > 0, x, f64(4)))
    image = f64(2, 8, 3, 4)
    same(result(ops.DepthToSpace(2, "CRD"), image), nn.pixel_shuffle(t(image), 2))
    block = f64(2, 3, 4, 6)
    back = result(ops.DepthToSpace(2), result(ops.SpaceToDepth(2), block))
    same(back, block)
    same(result(ops.SpaceToDepth(2), block)[:, :3], block[:, :, ::2, ::2])


def test_gathers_and_scatters() -> None:
    x, indices = f64(3, 4, 5), np.asarray([[0, -1], [2, 1]])
    same(result(ops.Gather(1), x, indices), x[:, indices])
    same(result(ops.Gather(0), x, np.asarray(-2)), x[-2])
    places = np.random.default_rng(0).integers(0, 4, (3, 2, 5))
    same(result(ops.GatherElements(1), x, places), torch.gather(t(x), 1, t(places)))
    same(result(ops.GatherElements(1), x, places - 4), torch.gather(t(x), 1, t(places)))
    same(result(ops.GatherND(), x, np.asarray([[0, 1], [2, -1]])), x[[0, 2], [1, -1]])
    batched = np.asarray([[[0], [3]], [[1], [1]], [[2], [-1]]])
    want = np.stack([x[i][batched[i, :, 0]] for i in range(3)])
    same(result(ops.GatherND(1), x, batched), want)
    updates = f64(3, 2, 5, seed=2)
    kinds = {"none": None, "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    unique = (
        np.stack([np.random.default_rng(i).permutation(4)[:2] for i in range(15)], 1).reshape(2, 3, 5).swapaxes(0, 1)
    )
    for reduction, name in kinds.items():
        op = ops.ScatterElements(1, reduction)  # type: ignore[arg-type]
        at = unique if name is None else places
        if name is None:
            want_scatter = torch.scatter(t(x), 1, t(at.copy()), t(updates))
        else:
            want_scatter = torch.scatter_reduce(t(x), 1, t(at), t(updates), name)
        same(result(op, x, at, updates), want_scatter)
    rows = np.asarray([[2], [0], [2]])
    values = f64(3, 4, 5, seed=3)
    want = x.copy()
    for row, value in zip(rows[:, 0], values, strict=True):
        want[row] += value
    same(result(ops.ScatterND("add"), x, rows, values), want)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("size", [(14, 15), (4, 3), (9, 5), (1, 1)])
def test_resize_like_torch(mode: str, size: tuple[int, int]) -> None:
    x = f64(2, 3, 7, 5)
    scales = (1.0, 1.0, size[0] / 7, size[1] / 5)
    if mode == "nearest":
        op = ops.Resize((2, 3, *size), scales, "nearest", "asymmetric", "floor")
        same(result(op, x), nn.interpolate(t(x), size, mode="nearest"))
        return
    name = {"linear": "bilinear", "cubic": "bicubic"}[mode]
    op = ops.Resize((2, 3, *size), scales, mode, "half_pixel")  # type: ignore[arg-type]
    same(result(op, x), nn.interpolate(t(x), size, mode=name))
    op = ops.Resize((2, 3, *size), scales, mode, "align_corners")  # type: ignore[arg-type]
    same(result(op, x), nn.interpolate(t(x), size, mode=name, align_corners=True))


# --- types and quantisation --------------------------------------------------------------------------------


def test_casts() -> None:
    x = np.asarray([-1.7, -0.2, 0.0, 0.9, 2.5])
    assert evaluate(ops.Cast(DType.INT32), [x])[0].tolist() == [-1, 0, 0, 0, 2]
    assert evaluate(ops.Cast(DType.BOOL), [x])[0].tolist() == [True, True, False, True, True]
    assert evaluate(ops.Cast(DType.FLOAT16), [x])[0].dtype == np.float16
    eighth = evaluate(ops.Cast(DType.FLOAT8_E4M3), [np.asarray([1.0, 500.0, -1e9])])[0]
    assert eighth.astype(np.float32).tolist() == [1, 448, -448]


def test_quantisation_against_torch() -> None:
    x, scale, zero = (
        f64(3, 40).astype(np.float32),
        np.asarray([0.01, 0.02, 0.05], np.float32),
        np.asarray([3, 0, -7], np.int8),
    )
    got = result(ops.Quantize(0, DType.INT8), x, scale, zero)
    want = torch.quantize_per_channel(t(x), t(scale), t(zero.astype(np.int64)), 0, torch.qint8)
    np.testing.assert_array_equal(got, want.int_repr().numpy())
    np.testing.assert_array_equal(result(ops.Dequantize(0), got, scale, zero), want.dequantize().numpy())
    ties = np.asarray([0.5, 1.5, 2.5, -0.5, 1000, -1000], np.float32)
    one, point = np.asarray(1, np.float32), np.asarray(0, np.uint8)
    assert evaluate(ops.Quantize(0, DType.UINT8), [ties, one, point])[0].tolist() == [0, 2, 2, 0, 255, 0]


# --- whole graphs ------------------------------------------------------------------------------------------


def small_graph() -> Graph:
    return Graph(
        "net",
        ("x",),
        ("y", "c"),
        (
            Node("a", ops.Elementwise((ops.Pointwise("add", operand=1),)), ("x", "c"), ("h",)),
            Node("b", ops.Cast(DType.FLOAT16), ("h",), ("y",)),
        ),
        {
            "x": TensorType((2,)), "h": TensorType((2,)), "y": TensorType((2,), DType.FLOAT16),
            "c": TensorType(()),
        },
        {"c": np.asarray(0.1, np.float32)},
    )  # fmt: skip


def test_run_walks_the_nodes() -> None:
    values = run(small_graph(), {"x": np.asarray([1, 2], np.float32)})
    assert list(values) == ["y", "c"] and values["y"].dtype == np.float16
    exact = run(small_graph(), {"x": np.asarray([1, 2], np.float32)}, exact=True)
    assert exact["y"].dtype == np.float64
    np.testing.assert_array_equal(exact["y"], np.asarray([1, 2]) + np.float64(np.float32(0.1)))


def test_run_checks_its_inputs() -> None:
    with pytest.raises(InputError, match="input 'x' is missing"):
        run(small_graph(), {})
    with pytest.raises(InputError, match=r"input 'x' has shape \(3,\), expected \(2,\)"):
        run(small_graph(), {"x": np.zeros(3, np.float32)})


def test_depthwise_equals_grouped_loop() -> None:
    x, weight = f64(2, 4, 6, 6), f64(8, 1, 3, 3)
    got = result(ops.Conv((1, 1), (1, 1, 1, 1), (1, 1), 4), x, weight)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for k, i, j in product(range(8), range(6), range(6)):
        same(got[:, k, i, j], (padded[:, k // 2, i : i + 3, j : j + 3] * weight[k, 0]).sum((1, 2)))
