"""One linear layer at every level, against float64, with guards and poison around everything."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_reference import NUMPY, assert_close, reference, rounded, run_layer, tolerance, weight_for

from tamis.errors import DeviceError, FormatError, InputError, MissingLibrary
from tamis.formats import DENSE, NM, TWO_FOUR
from tamis.kernels.cpu import Chain, Layer, LinearSpec, Step, levels, load, pack

PATTERNS = pytest.mark.parametrize("pattern", [DENSE, TWO_FOUR], ids=str)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
# rows, n, k, threads: everything that is not a multiple of a tile, tall, wide, and large enough for k to be
# cut into parts or rows into chunks
SHAPES = [
    (1, 1, 1, 1), (2, 1, 5, 2), (3, 17, 33, 1), (1, 16, 32, 2), (1, 300, 100, 2), (4, 130, 31, 5),
    (5, 40, 64, 2), (7, 65, 97, 2), (9, 33, 129, 1), (16, 48, 128, 2), (17, 20, 70, 2), (31, 50, 36, 1),
    (33, 31, 95, 2), (48, 64, 64, 5), (64, 80, 40, 2), (65, 33, 100, 1), (257, 49, 70, 2),
    (1, 1, 4100, 2), (2, 20, 3001, 5),
    (40, 7, 2050, 2), (90, 17, 4000, 2), (300, 5, 3, 2),
]  # fmt: skip


@DTYPES
@PATTERNS
def test_shapes_and_threads(level, dtype, pattern):
    rng = np.random.default_rng(3)
    for i, (rows, n, k, threads) in enumerate(SHAPES):
        weight = weight_for(rng, n, k, pattern, dtype)
        x = rounded(rng.standard_normal((rows, k)), dtype)
        bias = rng.standard_normal(n).astype(np.float32) if i % 3 else None
        expected = reference(x, weight, bias, ())
        got = run_layer(
            *level, weight, x, dtype=dtype, pattern=pattern, bias=bias, threads=threads, gap=(0, 1, 19)[i % 3]
        )
        assert_close(got, expected, tolerance(x, weight, expected, "float32"))


@DTYPES
@PATTERNS
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("y_dtype", ["float32", "bfloat16"])
def test_element_types(level, dtype, pattern, x_dtype, y_dtype):
    rng = np.random.default_rng(4)
    for rows in (1, 6, 35):
        weight = weight_for(rng, 77, 150, pattern, dtype)
        x = rounded(rng.standard_normal((rows, 150)), "bfloat16")
        residual = rounded(rng.standard_normal((rows, 77)), x_dtype)
        steps = (Step("relu"), Step("add_residual"))
        expected = reference(x, weight, None, steps, residual)
        got = run_layer(
            *level, weight, x, dtype=dtype, pattern=pattern, steps=steps, x_dtype=x_dtype, y_dtype=y_dtype,
            residual=residual, residual_dtype=x_dtype, threads=2, gap=3,
        )  # fmt: skip
        assert_close(got, expected, tolerance(x, weight, expected, y_dtype))


def test_float32_inputs_of_bfloat16_weights_round_at_most_once(level):
    rng = np.random.default_rng(5)
    weight = weight_for(rng, 64, 256, DENSE, "bfloat16")
    x = rng.standard_normal((5, 256)).astype(np.float32)
    exact = reference(x, weight, None, ())
    once = reference(rounded(x, "bfloat16"), weight, None, ())
    got = run_layer(*level, weight, x, dtype="bfloat16", pattern=DENSE)
    bound = tolerance(x, weight, exact, "float32")
    assert (np.abs(got - exact) <= bound).all() or (np.abs(got - once) <= bound).all()


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_epilogue_steps_run_in_order(level, rows):
    rng = np.random.default_rng(6)
    weight = weight_for(rng, 53, 40, TWO_FOUR, "float32")
    x = rng.standard_normal((rows, 40)).astype(np.float32)
    bias = rng.standard_normal(53).astype(np.float32)
    residual = rng.standard_normal((rows, 53)).astype(np.float32)
    for steps in (
        (Step("add_residual"), Step("relu")),
        (Step("relu"), Step("add_residual")),
        (Step("silu"), Step("add_residual"), Step("clip", -0.5, 2.0)),
        (Step("leaky_relu", 0.2), Step("tanh"), Step("sigmoid")),
        (Step("hardswish"), Step("gelu")),
        (Step("gelu_tanh"),),
        (),
    ):
        expected = reference(x, weight, bias, steps, residual)
        uses = residual if any(step.kind == "add_residual" for step in steps) else None
        got = run_layer(
            *level,
            weight,
            x,
            dtype="float32",
            pattern=TWO_FOUR,
            bias=bias,
            steps=steps,
            residual=uses,
            threads=2,
        )
        assert_close(got, expected, tolerance(x, weight, expected, "float32") * 2)


@DTYPES
@PATTERNS
def test_infinity_and_nan_reach_only_their_row_and_column(level, dtype, pattern):
    rng = np.random.default_rng(7)
    weight = weight_for(rng, 35, 70, pattern, dtype)
    weight[:, 4] = np.where(weight[:, 4] == 0, 0, 1.5)
    x = rounded(rng.standard_normal((6, 70)), dtype)
    weight[:, 0:4] = [1, 0, 0, 2]
    x[1, 0] = np.inf
    x[2, 3] = -np.inf
    x[3, 0] = np.nan
    expected = reference(x, weight, None, ())
    expected[1:4] = [[np.inf], [-np.inf], [np.nan]]  # NumPy's reference multiplies stored zeros by infinity
    got = run_layer(*level, weight, x, dtype=dtype, pattern=pattern, threads=2)
    if pattern == DENSE:  # 0 * infinity = NaN is what a dense layer must say
        assert np.isnan(got[3]).all() and not np.isfinite(got[1:4]).any()
        np.testing.assert_array_equal(np.isfinite(got[[0, 4, 5]]), True)
    clean = [0, 4, 5]
    bound = tolerance(x[clean], weight, expected[clean], "float32")
    assert_close(got[clean], expected[clean], bound)
    assert_close(got[1:4], expected[1:4], np.zeros(1))


@DTYPES
@PATTERNS
def test_numbers_at_the_edges(level, dtype, pattern):
    """Negative zero, denormals (the bfloat16 units may take them as zero), the largest numbers."""
    weight = np.zeros((3, 8), np.float32)
    weight[0, 1], weight[0, 6] = -0.0, 1
    weight[1, 0], weight[1, 3] = 1e-39, -1e-39
    weight[2, 4], weight[2, 5] = 2.0**100, -(2.0**100)
    weight = rounded(weight, dtype)
    x = np.zeros((2, 8), np.float32)
    x[0] = [1, 1, 1, 1, 2.0**20, 2.0**20, -0.0, 1]
    x[1, 4] = 2.0**127
    x[1, 6] = -1e-39
    x = rounded(x, dtype)
    expected = reference(x, weight, None, ())
    with np.errstate(over="ignore"):
        expected = expected.astype(np.float32).astype(np.float64)
    got = run_layer(*level, weight, x, dtype=dtype, pattern=pattern)
    assert_close(got, expected, np.full(expected.shape, 3e-39))
    assert np.isinf(got[1, 2])


@PATTERNS
def test_weights_may_lie_at_any_address(level, pattern):
    library, isa = level
    rng = np.random.default_rng(8)
    for dtype in ("float32", "bfloat16"):
        weight = weight_for(rng, 50, 100, pattern, dtype)
        spec = LinearSpec(50, 100, dtype, pattern)
        packed = pack(weight, spec)
        space = np.full(packed.size + 128, 0xFF, np.uint8)
        x = rounded(rng.standard_normal((20, 100)), dtype)
        expected = reference(x, weight, None, ())
        for offset in (1, 4, 16, 33):
            space[offset : offset + packed.size] = packed
            layer = Layer(spec, space[offset : offset + packed.size])
            got = Chain([layer], isa=isa, library=library).apply(x)
            assert_close(got, expected, tolerance(x, weight, expected, "float32"))


def test_result_does_not_depend_on_the_call(level):
    """Same threads, same bits; whoever takes which unit."""
    library, isa = level
    rng = np.random.default_rng(9)
    weight = weight_for(rng, 40, 3000, TWO_FOUR, "bfloat16")
    spec = LinearSpec(40, 3000, "bfloat16", TWO_FOUR)
    x = rng.standard_normal((3, 3000)).astype(np.float32)
    for threads in (1, 2, 5):
        chain = Chain([Layer(spec, pack(weight, spec))], threads=threads, isa=isa, library=library)
        first = chain.apply(x)
        assert all((chain.apply(x) == first).all() for _ in range(20))


def test_rows_may_change_from_call_to_call(level):
    library, isa = level
    rng = np.random.default_rng(10)
    weight = weight_for(rng, 70, 90, TWO_FOUR, "bfloat16")
    spec = LinearSpec(70, 90, "bfloat16", TWO_FOUR)
    chain = Chain([Layer(spec, pack(weight, spec))], threads=2, isa=isa, library=library)
    for rows in (1, 40, 2, 17, 300, 5, 1, 0):
        x = rounded(rng.standard_normal((rows, 90)), "bfloat16")
        expected = reference(x, weight, None, ())
        assert_close(chain.apply(x), expected, tolerance(x, weight, expected, "float32"))


def test_wrong_arguments_are_refused():
    spec = LinearSpec(16, 32, "float32", DENSE)
    packed = pack(np.zeros((16, 32), np.float32), spec)
    with pytest.raises(FormatError, match="shape"):
        pack(np.zeros((32, 16), np.float32), spec)
    with pytest.raises(FormatError, match="packed weight"):
        Layer(spec, packed[:-1])
    with pytest.raises(FormatError, match="bias"):
        Layer(spec, packed, np.zeros(15, np.float32))
    with pytest.raises(FormatError, match="swish"):
        Step("swish")
    with pytest.raises(FormatError, match="no CPU tiles"):
        pack(np.zeros((16, 32), np.float32), LinearSpec(16, 32, "float32", NM(1, 4)))
    layer = Layer(spec, packed)
    with pytest.raises(FormatError, match="cannot feed"):
        Chain([layer, layer])
    with pytest.raises(FormatError, match="at least one"):
        Chain([])
    with pytest.raises(DeviceError, match="avx1024"):
        Chain([layer], isa="avx1024")
    with pytest.raises(InputError):
        Chain([layer]).apply(np.zeros((2, 31), np.float32))
    for bad in ({"threads": 0}, {"threads": 1000}, {"x_stride": 31}, {"y_stride": 15}):
        with pytest.raises(DeviceError):
            Chain([layer], **bad).run(packed.ctypes.data, packed.ctypes.data, 1)
    with pytest.raises(DeviceError):
        Chain([layer]).run(0, packed.ctypes.data, 1)
    with pytest.raises(DeviceError):
        Chain([layer]).run(packed.ctypes.data, packed.ctypes.data, -1)
    adds = Layer(LinearSpec(16, 32, "float32", DENSE, (Step("add_residual"),)), packed)
    with pytest.raises(DeviceError):  # the residual was forgotten
        Chain([adds]).run(packed.ctypes.data, packed.ctypes.data, 1)


def test_library(tmp_path):
    assert levels()[0] == "portable"
    assert load().openmp, "PyTorch's OpenMP runtime was not found"
    with pytest.raises(MissingLibrary, match="not built"):
        load(tmp_path / "absent.so")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(MissingLibrary, match="cannot be loaded"):
        load(broken)


def test_numpy_types_match():
    assert {name: dtype.itemsize for name, dtype in NUMPY.items()} == {"float32": 4, "bfloat16": 2}
