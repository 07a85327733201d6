"""Products and convolutions of int8 and e4m3 on the GPU, launched directly: every tile, and random shapes.

The reference is float64 on the GPU, in which sums of int8 are exact. Those of e4m3 are not exact on the tensor cores:
each of their instructions cuts what it adds to about 14 bits of its largest term.
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eight_bit_products import Quantised, Values, assert_rounded, random_values
from tamis.devices.base import BoundShape
from tamis.devices.cuda import kernels
from tamis.devices.cuda.info import cuda_info
from tamis.engine.plan import Format, Step
from tamis.formats.dtype import DType
from tamis.kernels.cuda.compile import compile_source
from tamis.kernels.cuda.implicit_gemm import FILLING_TILES, TILES, Convolution, Tile, deepest, has_instruction
from tamis.kernels.cuda.specification import Kernel

INT8, E4M3 = DType.INT8, DType.FLOAT8_E4M3
TORCH = {INT8: torch.int8, E4M3: torch.float8_e4m3fn, DType.FLOAT16: torch.float16, DType.BFLOAT16: torch.bfloat16,
         DType.FLOAT32: torch.float32}  # fmt: skip
ARCHITECTURE = "sm_90a"
MULTIPROCESSORS = 132  # of a launch: blocks take turns on a GPU that has fewer
POISONS = 0xAA, 0x7F  # bytes: integers that nothing explains; 0x7f is NaN in all floating-point types
RANDOM = 72


def needs_hopper() -> None:
    capability = torch.cuda.get_device_capability()
    if capability != (9, 0):
        pytest.skip(f"needs compute capability 9.0; this is {capability} ({cuda_info().name})")


def on_gpu(array: np.ndarray, dtype: DType) -> torch.Tensor:
    """A tensor of the same bits."""
    raw = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8).reshape(-1).copy())
    return raw.cuda().view(TORCH[dtype]).reshape(array.shape)


def reference(layer: Quantised, values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Sums [pixels, filters] in float64, and the same of magnitudes."""
    shape, found = layer.shape, []
    image, weight = (on_gpu(array, layer.dtype).double() for array in (values.image, values.weight))
    down, across = shape.kernel
    filters = weight.reshape(shape.filters, down, across, shape.channels).permute(0, 3, 1, 2)
    top, left, bottom, right = shape.pads
    seen = F.pad(image.permute(0, 3, 1, 2), (left, right, top, bottom))
    for a, b in ((seen, filters), (seen.abs(), filters.abs())):
        if shape.is_product:
            sums = a.permute(0, 2, 3, 1).reshape(-1, shape.channels) @ b.reshape(shape.filters, -1).T
        else:
            sums = F.conv2d(a, b, stride=shape.strides, dilation=shape.dilations).permute(0, 2, 3, 1)
        found.append(sums.reshape(shape.pixels, shape.filters).cpu().numpy())
    return found[0], found[1]


def launched(layer: Quantised, values: Values, tile: Tile) -> np.ndarray:
    """[pixels, filters]; the same whatever the output held before, and nothing is written beside."""
    kernel = layer.kernel(tile, MULTIPROCESSORS)
    names = ("cubin", "weight", "channels")
    step = Step("layer", f"cuda.{kernel.family}", ("x", "r"), ("y",), names, kernel.attributes())
    cubin = np.frombuffer(compile_source(f"{kernel.family}.cu", kernel.defines, ARCHITECTURE), np.uint8)
    arrays = (cubin, values.packed(tile, sparse=layer.sparse), values.constants.view(np.uint8))
    constants = {name: torch.from_numpy(array.copy()).cuda() for name, array in zip(names, arrays, strict=True)}
    made, out = (layer.shape.pixels, layer.pitch or layer.shape.filters), layer.out
    slots = [on_gpu(values.image, layer.dtype), on_gpu(values.residual, out)]
    slots.append(torch.empty(made, dtype=TORCH[out], device="cuda"))
    dtypes = (layer.dtype, out, out)
    ports = [BoundShape(i, tuple(slots[i].shape), Format(dtypes[i]), preallocated=i == 2) for i in range(3)]
    run = kernels.bind(step, constants, ports[:2], ports[2:])
    results, end = [], layer.offset + layer.shape.filters
    for poison in POISONS:
        slots[2].view(torch.uint8).fill_(poison)
        run(slots)
        torch.cuda.synchronize()
        raw = slots[2].view(torch.uint8).cpu().numpy().reshape(*made, out.size_bytes)
        beside = np.delete(raw, np.s_[layer.offset : end], axis=1)
        assert (beside == poison).all(), "written beside its channels"
        results.append(np.ascontiguousarray(raw[:, layer.offset : end]).view(out.numpy)[..., 0])
    assert results[0].tobytes() == results[1].tobytes(), "some results were not written, or change from run to run"
    return results[0]


def check(layer: Quantised, tile: Tile, seed: int = 0) -> None:
    values = random_values(layer, seed)
    sums, magnitudes = reference(layer, values)
    exact = values.results(sums)
    scale = np.abs(values.scale.astype(np.float64)) / values.out_scale
    error: float | np.ndarray = 1e-5
    if layer.dtype == E4M3:
        # Each instruction cuts off 2^-13 of its largest term, which is the sum so far: a random walk, or all magnitudes.
        instructions = layer.shape.steps_in(1) * (2 if layer.sparse else 4)
        terms = layer.shape.channels * values.weight.shape[1]
        largest = np.minimum(magnitudes, 8 * magnitudes / np.sqrt(terms) + np.abs(sums))
        error = 1e-4 + instructions * 2.0**-13 * largest * scale
    assert_rounded(launched(layer, values, tile), exact, layer.out, error)


def every_tile() -> list[tuple[Quantised, Tile]]:
    """Both types, dense and 2:4, on a product and on a convolution that fill more than one tile."""
    cases = []
    for sizes in TILES + FILLING_TILES:
        for dtype, sparse in ((INT8, True), (INT8, False), (E4M3, True), (E4M3, False)):
            tile = deepest(*sizes, sparse=sparse, itemsize=1)
            if not has_instruction(tile.pixels, dtype):
                continue
            product = Convolution(1, 1, 3 * tile.pixels + 9, 128 * tile.split + 16, 2 * tile.filters + 8)
            conv = Convolution(3, 13, 11, 144, tile.filters + 24, (3, 3), pads=(1, 1, 1, 1))
            cases.append((Quantised(conv if sparse else product, dtype, dtype, sparse), tile))
    # The other way round, for some.
    for sizes in (TILES[4], TILES[6], TILES[-3]):
        for dtype, sparse in ((INT8, True), (INT8, False), (E4M3, True), (E4M3, False)):
            tile = deepest(*sizes, sparse=sparse, itemsize=1)
            product = Convolution(1, 1, 1000, 128 * tile.split + 1040, 520)
            conv = Convolution(2, 14, 14, 256, 300, (3, 3), pads=(1, 1, 1, 1))
            cases.append((Quantised(product if sparse else conv, dtype, dtype, sparse), tile))
    return cases


def random_case(seed: int) -> tuple[Quantised, Tile]:
    """Odd extents, a tile, types and what is fused."""
    draw = random.Random(seed)
    sparse, dtype = draw.random() < 0.7, draw.choice((INT8, E4M3))
    out = draw.choice((dtype, dtype, DType.FLOAT16, DType.FLOAT32))
    channels = 16 * draw.choice((1, 2, 3, 5, 8, 9, 16, 33))
    filters = draw.choice((1, 7, 8, 40, 64, 100, 128, 200, 257, 512))
    if draw.random() < 0.3:
        shape = Convolution(1, 1, draw.choice((1, 5, 64, 100, 1000)), channels * draw.choice((1, 4)), filters)
    else:
        kernel = draw.choice(((1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (2, 2)))
        dilation, stride = draw.choice((1, 1, 2)), draw.choice((1, 1, 2, 3))
        height, width = ((side - 1) * dilation + 1 + draw.choice((0, 3, 30)) for side in kernel)
        top, left, bottom, right = (draw.randint(0, 2) for _ in range(4))
        image = (draw.randint(1, 5), height, width, channels)
        steps = {"strides": (stride, stride), "dilations": (dilation, dilation)}
        shape = Convolution(*image, filters, kernel, pads=(top, left, bottom, right), **steps)
    beside = {} if draw.random() < 0.7 else {"pitch": filters + 24, "offset": 8}
    layer = Quantised(shape, dtype, out, sparse, draw.random() < 0.7, **beside)
    tiles = [deepest(*sizes, sparse=sparse, itemsize=1) for sizes in TILES]
    fitting = [tile for tile in tiles if tile.split <= shape.steps_in(1) and has_instruction(tile.pixels, dtype)]
    return layer, draw.choice(fitting)


@pytest.fixture(scope="module", autouse=True)
def compiled(request: pytest.FixtureRequest) -> None:
    """The binaries of all tests that were chosen, beforehand and on all cores."""
    if torch.cuda.get_device_capability() != (9, 0):
        return

    def compile_one(kernel: Kernel) -> None:
        compile_source(f"{kernel.family}.cu", kernel.defines, ARCHITECTURE)

    unique: dict[str, Kernel] = {}
    for item in request.session.items:
        if item.path != request.path or not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        given: dict[str, Any] = item.callspec.params
        if "seed" in given or "tile" in given:
            layer, tile = random_case(given["seed"]) if "seed" in given else (given["layer"], given["tile"])
            kernel = layer.kernel(tile, MULTIPROCESSORS)
            unique[str(sorted(kernel.defines.items()))] = kernel
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, unique.values()))


@pytest.mark.parametrize(
    ("layer", "tile"), every_tile(),
    ids=lambda v: f"{v.blocks}-{v.groups}-{v.pixels}-{v.cluster}-{v.split}" if isinstance(v, Tile) else
    f"{v.dtype}-{'2:4' if v.sparse else 'dense'}-{'product' if v.shape.is_product else 'conv'}",
)  # fmt: skip
def test_every_tile(layer: Quantised, tile: Tile) -> None:
    needs_hopper()
    check(layer, tile)


@pytest.mark.parametrize("seed", range(RANDOM))
def test_random_shapes(seed: int) -> None:
    needs_hopper()
    check(*random_case(seed), seed)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
def test_large_sums_of_integers_are_exact(sparse: bool) -> None:
    """Beyond what float32 holds; unscaled, so that every bit is seen."""
    needs_hopper()
    layer = Quantised(Convolution(1, 1, 500, 8192, 300), INT8, DType.FLOAT32, sparse, fused=False)
    values = random_values(layer)
    image = -100 - (values.image & 15)
    weight = np.where(values.weight == 0, values.weight, 96 | values.weight & 31)
    values = Values(image, weight, np.ones(300, np.float32), None, values.residual, 1.0, 1.0)
    sums, _ = reference(layer, values)
    assert np.abs(sums).max() > 2**24
    for sizes in ((2, 2, 128, 1, 1), (1, 2, 64, 1, 8)):
        result = launched(layer, values, deepest(*sizes, sparse=sparse, itemsize=1))
        np.testing.assert_array_equal(result, sums.astype(np.float32))
