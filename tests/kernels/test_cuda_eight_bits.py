"""Products and convolutions of 8-bit types on the CPU: sums of int8 exactly, e4m3 against float64, requantised.

Sizes are arguments of a kernel, so that the layers of a test share one binary.
"""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import poison, run
from test_cuda_implicit_gemm import convolved

from eight_bit_products import FUSED, Quantised, Values, assert_rounded, random_values
from tamis.formats.dtype import DType
from tamis.kernels.cuda.implicit_gemm import (
    Convolution,
    Epilogue,
    Tile,
    channel_constants,
    deepest,
    implicit_gemm_hopper,
)
from tamis.kernels.cuda.implicit_gemm_ampere import AmpereTile, implicit_gemm_ampere

INT8, E4M3 = DType.INT8, DType.FLOAT8_E4M3
ALONE, PAIR, SPLIT = Tile(1, 1, 64, 1, 1, 2), Tile(1, 1, 64, 2, 1, 2), Tile(1, 1, 64, 1, 2, 2)
LARGE = Tile(2, 2, 64, 1, 1, 2)
CONVOLUTIONS = {
    "same": Convolution(2, 5, 7, 128, 64, (3, 3), pads=(1, 1, 1, 1)),
    "strided": Convolution(1, 8, 7, 144, 64, (3, 3), (2, 2), (1, 1, 1, 1)),
    "dilated": Convolution(1, 9, 9, 16, 72, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    "uneven pads": Convolution(3, 6, 5, 32, 8, (3, 2), (1, 2), (0, 1, 2, 0)),
}


def launched(layer: Quantised, values: Values, tile: Tile = ALONE, multiprocessors: int = 2) -> np.ndarray:
    """[pixels, filters]; channels beside them must not be touched."""
    kernel, out = layer.kernel(tile, multiprocessors), layer.out.numpy
    shape = (layer.shape.pixels, layer.pitch or layer.shape.filters)
    constants = [values.packed(tile, sparse=layer.sparse), values.constants]
    (result,) = run(kernel, [values.image, values.residual], constants, [(shape, out)])
    end = layer.offset + layer.shape.filters
    others = np.delete(result, np.s_[layer.offset : end], axis=1)
    assert others.tobytes() == poison(others.shape, out).tobytes(), "written beside its channels"
    return result[:, layer.offset : end]


def check(layer: Quantised, tile: Tile = ALONE, multiprocessors: int = 2) -> None:
    values = random_values(layer)
    sums = convolved(values.image, values.weight, layer.shape)
    assert_rounded(launched(layer, values, tile, multiprocessors), values.results(sums), layer.out)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("dtype", [INT8, E4M3], ids=str)
def test_convolutions_within_a_concat(dtype: DType, sparse: bool) -> None:
    for shape in CONVOLUTIONS.values():
        pitch, offset = (96, 16) if sparse else (99, 3)  # vectors, or single elements
        check(Quantised(shape, dtype, dtype, sparse, pitch=pitch, offset=offset))


def test_halves_are_rounded_to_even_and_large_values_saturate() -> None:
    """The epilogue of a kernel above, on odd numbers of halves."""
    layer = Quantised(Convolution(1, 16, 16, 16, 8, (2, 1)), INT8, INT8, True, pitch=96, offset=16)
    given = random_values(layer)
    image = np.random.default_rng(0).integers(-40, 41, given.image.shape).astype(np.int8)
    weight = np.zeros_like(given.weight)
    weight[:, 1, 5] = 1, 2, 3, -1, -2, 7, 9, -11
    values = Values(image, weight, np.full(8, 0.5, np.float32), np.zeros(8, np.float32), given.residual, 1.0, 0.0)
    exact = np.maximum(convolved(image, weight, layer.shape) * 0.5, 0.0)
    assert (exact % 1 == 0.5).any() and (exact > 127).any()
    np.testing.assert_array_equal(launched(layer, values), np.minimum(np.rint(exact), 127))


@pytest.mark.parametrize("channels", [144, 3072])
def test_sums_of_integers_are_exact(channels: int) -> None:
    """Also those that float32 cannot hold, and that blocks add up for each other."""
    layer = Quantised(Convolution(1, 1, 40, channels, 20), INT8, DType.FLOAT32, True, fused=False)
    values = random_values(layer)
    image = -100 - (values.image & 15)  # all sums are large
    weight = np.where(values.weight == 0, values.weight, 96 | values.weight & 31)
    values = Values(image, weight, np.full(20, 0.25, np.float32), None, values.residual, 1.0, 1.0)
    sums = convolved(image, weight, layer.shape)
    assert np.abs(sums).max() > 2**24 or channels == 144
    np.testing.assert_array_equal(launched(layer, values, SPLIT), (sums.astype(np.float32) * np.float32(0.25)))


def test_other_types_of_results_and_larger_tiles() -> None:
    check(Quantised(Convolution(1, 1, 100, 144, 328), E4M3, DType.BFLOAT16, True), LARGE, 1)
    check(Quantised(Convolution(2, 5, 5, 144, 130, (3, 3), pads=(1, 1, 1, 1)), INT8, DType.FLOAT16, False), PAIR, 4)


def test_what_cannot_run_is_refused() -> None:
    odd = Convolution(1, 1, 64, 24, 64)
    with pytest.raises(ValueError, match="24 channels are not a multiple of 16"):
        implicit_gemm_hopper(odd, ALONE, INT8, 2, Epilogue(scaled=True), sparse=True)
    with pytest.raises(ValueError, match="1 steps cannot be split among 2"):
        implicit_gemm_hopper(Convolution(1, 1, 64, 128, 64), SPLIT, E4M3, 2, Epilogue(scaled=True), sparse=True)
    with pytest.raises(ValueError, match="16 bits"):
        implicit_gemm_ampere(odd, AmpereTile(2, 2, 2, 2, 2), INT8, Epilogue(FUSED), sparse=True)
    with pytest.raises(ValueError, match="biases"):
        channel_constants(np.ones(4), np.ones(5))


def test_metadata_takes_more_room_than_in_16_bits() -> None:
    for sizes in ((1, 2, 256), (2, 2, 128)):
        tile = deepest(*sizes, sparse=True, itemsize=1)
        assert tile.stages >= 2
        assert tile.shared_bytes(sparse=True, itemsize=1) <= 227 * 1024
        assert tile.shared_bytes(sparse=True, itemsize=1) > tile.shared_bytes(sparse=True)
