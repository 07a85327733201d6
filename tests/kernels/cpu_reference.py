"""What the tests of the CPU kernels share: a float64 reference, weights, guarded buffers, an error bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from tamis.formats import DENSE, TWO_FOUR, magnitude_mask
from tamis.kernels.cpu import Chain, Layer, Library, LinearSpec, Step, pack

NUMPY = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_erfc = np.frompyfunc(math.erfc, 1, 1)


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """As float32 numbers that ``dtype`` holds exactly."""
    return np.asarray(array, np.float32).astype(NUMPY[dtype]).astype(np.float32)


def activation(step: Step, y: np.ndarray) -> np.ndarray:
    """One step of an epilogue in float64."""
    with np.errstate(all="ignore"):
        if step.kind == "relu":
            return np.where(y < 0, 0.0, y)
        if step.kind == "clip":
            return np.clip(y, np.float32(step.p0), np.float32(step.p1))
        if step.kind == "sigmoid":
            return 1 / (1 + np.exp(-y))
        if step.kind == "silu":
            return y * (1 / (1 + np.exp(-y)))
        if step.kind == "hardswish":
            return y * np.clip(y / 6 + 0.5, 0, 1)
        if step.kind == "gelu":
            return y * 0.5 * _erfc(-y / math.sqrt(2)).astype(np.float64)
        if step.kind == "gelu_tanh":
            u = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
            return y / (1 + np.exp(-2 * u))
        if step.kind == "leaky_relu":
            return np.where(y < 0, np.float64(np.float32(step.p0)) * y, y)
        if step.kind == "tanh":
            return np.tanh(y)
    raise AssertionError(step.kind)


def reference(x, weight, bias, steps, residual=None) -> np.ndarray:
    """The layer in float64."""
    y = x.astype(np.float64) @ weight.astype(np.float64).T
    if bias is not None:
        y = y + bias
    for step in steps:
        y = y + residual.astype(np.float64) if step.kind == "add_residual" else activation(step, y)
    return y


def weight_for(rng: np.random.Generator, n: int, k: int, pattern: object, dtype: str) -> np.ndarray:
    """A random weight that follows the pattern, with groups that hold less than it allows."""
    padded = np.zeros((n, -(-k // 4) * 4), np.float32)
    padded[:, :k] = rng.standard_normal((n, k))
    if pattern == TWO_FOUR:
        padded *= magnitude_mask(padded, TWO_FOUR)
        padded *= rng.random(padded.shape) > 0.1
    else:
        assert pattern == DENSE
    return rounded(padded[:, :k], dtype)


@dataclass(frozen=True)
class Guarded:
    """A matrix inside a larger buffer: rows ``stride`` apart, everything that is not the matrix marked."""

    buffer: np.ndarray
    matrix: np.ndarray
    before: np.ndarray

    @classmethod
    def make(cls, rows: int, columns: int, stride: int, dtype: str, offset: int = 37) -> Guarded:
        count = offset + rows * stride + 64
        buffer = np.full(count, np.nan, NUMPY[dtype])  # poisoned: a result that is not written is not a number
        matrix = buffer[offset : offset + rows * stride].reshape(rows, stride)[:, :columns]
        return cls(buffer, matrix, buffer.copy())

    def untouched_outside(self) -> bool:
        """Whether only the matrix has changed."""
        now = self.buffer.copy()
        inside = np.zeros(self.buffer.shape, bool)
        offset = (self.matrix.ctypes.data - self.buffer.ctypes.data) // self.buffer.itemsize
        stride = self.matrix.strides[0] // self.buffer.itemsize
        for row in range(self.matrix.shape[0]):
            inside[offset + row * stride : offset + row * stride + self.matrix.shape[1]] = True
        return now[~inside].tobytes() == self.before[~inside].tobytes()


def run_layer(
    library: Library,
    isa: str,
    weight: np.ndarray,
    x: np.ndarray,
    *,
    dtype: str,
    pattern: object,
    bias: np.ndarray | None = None,
    steps: tuple[Step, ...] = (),
    x_dtype: str = "float32",
    y_dtype: str = "float32",
    threads: int = 1,
    residual: np.ndarray | None = None,
    residual_dtype: str = "float32",
    gap: int = 0,
) -> np.ndarray:
    """Run one layer between guards with a poisoned workspace; returns y as float32."""
    n, k = weight.shape
    rows = x.shape[0]
    spec = LinearSpec(n, k, dtype, pattern, steps)
    layer = Layer(spec, pack(weight, spec), bias, residual_dtype, n + gap)
    chain = Chain(
        [layer], threads=threads, isa=isa, x_dtype=x_dtype, y_dtype=y_dtype, x_stride=k + gap,
        y_stride=n + gap, library=library,
    )  # fmt: skip
    source = Guarded.make(rows, k, k + gap, x_dtype)
    source.matrix[...] = x.astype(NUMPY[x_dtype])
    target = Guarded.make(rows, n, n + gap, y_dtype)
    addresses = []
    if residual is not None:
        other = Guarded.make(rows, n, n + gap, residual_dtype)
        other.matrix[...] = residual.astype(NUMPY[residual_dtype])
        addresses = [other.matrix.ctypes.data]
    poison(chain, rows)
    chain.run(source.matrix.ctypes.data, target.matrix.ctypes.data, rows, addresses)
    assert target.untouched_outside()
    return target.matrix.astype(np.float32)


def poison(chain: Chain, rows: int) -> None:
    """Fill the workspace with NaN (all bits set)."""
    chain.reserve(rows)
    chain._workspace[...] = 0xFF


def tolerance(x: np.ndarray, weight: np.ndarray, expected: np.ndarray, y_dtype: str) -> np.ndarray:
    """How far a float32 sum of exact products, rounded to y's type, may be from ``expected``."""
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T
    bound = 2e-6 * magnitude + 2e-6 * np.abs(expected) + 1e-36
    return bound + (2.0**-8 * np.abs(expected) if y_dtype == "bfloat16" else 0)


def assert_close(got: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> None:
    """Equal within the bound; NaN and infinity must be where they are expected."""
    got = got.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(got[infinite], expected[infinite])
    numbers = np.isfinite(expected)
    excess = np.abs(got[numbers] - expected[numbers]) - np.broadcast_to(bound, got.shape)[numbers]
    assert not (excess > 0).any(), f"{(excess > 0).sum()} of {excess.size} differ, worst by {excess.max()}"
    assert np.isfinite(got[numbers]).all()
