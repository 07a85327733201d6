"""Every kernel compiles for every generation of GPU that Tamis supports, without one at hand."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tamis.errors import BuildError, MissingLibrary
from tamis.formats.dtype import DType
from tamis.kernels.cuda import compile as toolchain
from tamis.kernels.cuda import nvrtc as nvrtc_module
from tamis.kernels.cuda.compile import (
    compile_source,
    compile_with_nvcc,
    compiler_name,
)
from tamis.kernels.cuda.implicit_gemm import FILLING_TILES, TILES, Convolution, Epilogue, deepest, implicit_gemm_hopper
from tamis.kernels.cuda.implicit_gemm_ampere import AMPERE_TILES, deepest_ampere, implicit_gemm_ampere
from tamis.kernels.cuda.line_tiles import line_tiles
from tamis.kernels.cuda.movement import concat, convert, pad_channels, space_to_depth
from tamis.kernels.cuda.nvrtc import load_nvrtc
from tamis.kernels.cuda.pointwise import Operand, PointwiseStep, pointwise
from tamis.kernels.cuda.pool import pool, reduce_pixels
from tamis.kernels.cuda.pooled import Pooling, implicit_gemm_pooled, pooled_tiles
from tamis.kernels.cuda.rows import layer_norm, softmax
from tamis.kernels.cuda.specification import Argument, Kernel
from tamis.kernels.cuda.stationary import implicit_gemm_stationary, stationary_tiles
from tamis.kernels.cuda.unit import FOLDER, sources, translation_unit

ARCHITECTURES = ("sm_80", "sm_90a", "sm_120")
IMAGE, WINDOW = (2, 64, 14, 14), {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
needs_compiler = pytest.mark.skipif(compiler_name() is None, reason=toolchain.NO_COMPILER)


def kernels(dtype: DType) -> list[Kernel]:
    """One of each family at least."""
    steps = (PointwiseStep("mul", operand=1), PointwiseStep("gelu"), PointwiseStep("clip", (-1.0, float("inf"))))
    operands = (
        Operand(IMAGE, dtype, True, Argument("in", 0)),
        Operand((64, 1, 1), DType.FLOAT32, False, Argument("const", 0)),
    )
    everything = {"residual": Argument("in", 1), "scale": Argument("const", 0), "bias": Argument("const", 1)}
    return [
        pointwise(steps, operands, IMAGE, dtype, True),
        convert(IMAGE, (DType.FLOAT32, False), (dtype, True)),
        pad_channels((2, 3, 16, 16), (DType.FLOAT32, False), 8, dtype),
        space_to_depth((2, 3, 224, 224), (DType.FLOAT32, False), 2, (112, 112), 16, dtype),
        space_to_depth((2, 3, 37, 41), (dtype, True), 3, (13, 14), 32, dtype),
        space_to_depth((2, 3, 224, 224), (DType.FLOAT32, False), 2, (115, 115), 16, dtype, (2, 2)),
        layer_norm(512, 768, dtype, 1e-5, total=Argument("out", 1), rows_each=4, **everything),
        softmax(4096, 197, dtype),
        pool(IMAGE, (2, 64, 7, 7), dtype, average=False, **WINDOW),
        reduce_pixels(IMAGE, dtype, "mean"),
        concat([IMAGE, IMAGE], 1, dtype, True, Argument("out", 0), [Argument("in", 0), Argument("in", 1)]),
    ]


GEMMS = (Convolution(8, 14, 14, 256, 512, (3, 3), pads=(1, 1, 1, 1)), Convolution(1, 1, 4096, 512, 512))
FUSED = Epilogue((PointwiseStep("add", operand=0), PointwiseStep("silu")), bias=True, residual=True)


def hopper_kernels(dtype: DType) -> list[Kernel]:
    """Those that use what only Hopper has (sm_90a)."""
    return [
        implicit_gemm_hopper(shape, deepest(*tile, sparse=sparse), dtype, 132, FUSED, sparse=sparse)
        for tile in TILES + FILLING_TILES[::2]
        for shape in GEMMS
        for sparse in (False, True)
    ]


def stationary_kernels() -> list[Kernel]:
    """Weights that stay in registers, as many as a tile may hold: of lines, of single pixels, dense and in 2:4."""
    line = Convolution(128, 56, 56, 64, 64, (3, 3), pads=(1, 1, 1, 1))
    chosen = [(line, True, lambda tile: tile.lines and tile.pixels == 176)]
    chosen += [(line, False, lambda tile: tile.lines and tile.pixels == 64)]
    chosen += [(Convolution(128, 14, 14, 896, 256), True, lambda tile: tile.pixels == 128 and tile.groups == 2)]
    chosen += [(Convolution(128, 14, 14, 192, 256), False, lambda tile: tile.pixels == 256)]
    chosen += [(Convolution(128, 14, 14, 128, 1024), True, lambda tile: tile.blocks * tile.groups == 4)]
    found = []
    for shape, sparse, wanted in chosen:
        tile = next(tile for tile in stationary_tiles(shape, sparse=sparse, residual=True) if wanted(tile))
        found.append(implicit_gemm_stationary(shape, tile, DType.FLOAT16, 132, FUSED, sparse=sparse))
    return found


def eight_bit_kernels() -> list[Kernel]:
    """A 2:4 convolution of int8 and a dense product of e4m3, each with results of its type."""
    return [
        implicit_gemm_hopper(
            shape, deepest(*tile, sparse=sparse, itemsize=1), dtype, 132, replace(FUSED, scaled=True), sparse=sparse
        )
        for shape, tile, dtype, sparse in (
            (GEMMS[0], (2, 2, 128), DType.INT8, True),
            (GEMMS[1], (1, 2, 256), DType.FLOAT8_E4M3, False),
        )
    ]


def grouped_kernels() -> list[Kernel]:
    """Whole lines, taps and a product of grouped convolutions on Hopper, and the kernel for all GPUs.

    Groups of 24 do not fill steps.
    """
    shape = Convolution(8, 28, 28, 256, 256, (3, 3), pads=(1, 1, 1, 1), groups=32)
    odd = Convolution(8, 28, 28, 240, 240, (3, 3), pads=(1, 1, 1, 1), groups=10)
    product = Convolution(8, 14, 14, 256, 512, groups=4)
    lines = next(tile for tile in line_tiles(shape, sparse=True, residual=True) if tile.resident == 2)
    return [
        *(implicit_gemm_hopper(given, tile, DType.FLOAT16, 132, FUSED, sparse=sparse) for given, tile, sparse in (
            (shape, lines, True), (odd, deepest(1, 2, 128, sparse=False), False),
            (product, deepest(2, 2, 192, sparse=True), True),
        )),
        implicit_gemm_ampere(shape, deepest_ampere(4, 4, 1, 4, sparse=True), DType.FLOAT16, FUSED, sparse=True),
    ]  # fmt: skip


def pooled_kernels() -> list[Kernel]:
    """Pooling in registers: behind the stem of a ResNet, lines sliding and at once, by turns, and behind a VGG's layers."""
    stem = Convolution(128, 115, 112, 64, 64, (4, 1), apart=(16, 1840, 211600))
    block = Convolution(32, 112, 112, 128, 128, (3, 3), pads=(1, 1, 1, 1))
    small = Convolution(32, 56, 56, 64, 128, (3, 3), pads=(1, 1, 1, 1))
    windows, halves = Pooling(3, 1, 1, (56, 56)), Pooling(2, 0, 0, (56, 56))
    fused = replace(FUSED, steps=FUSED.steps[1:], residual=False)
    tiles = pooled_tiles(stem, windows, sparse=False)
    chosen = [(stem, windows, tile, False) for tile in tiles if tile.resident == 2 or tile.by_turns]
    chosen += [(block, halves, tile, True) for tile in pooled_tiles(block, halves, sparse=True)]
    quarter = Pooling(3, 1, 1, (28, 28))
    chosen += [(small, quarter, tile, tile.groups > 1) for tile in pooled_tiles(small, quarter, sparse=True)[::2]]
    return [
        implicit_gemm_pooled(shape, pooling, tile, DType.FLOAT16, 132, fused, sparse=sparse)
        for shape, pooling, tile, sparse in chosen
        if tile in pooled_tiles(shape, pooling, sparse=sparse)
    ]


def ampere_kernels(dtype: DType) -> list[Kernel]:
    """Those for tensor cores with 16-bit types."""
    return [
        implicit_gemm_ampere(shape, deepest_ampere(*tile, sparse=sparse), dtype, FUSED, sparse=sparse)
        for tile in AMPERE_TILES
        for shape in GEMMS
        for sparse in (False, True)
    ]


def compiled(some: list[Kernel], architecture: str) -> list[tuple[Kernel, bytes]]:
    """Each with its cubin. nvcc is a process of its own: two of them run beside each other."""

    def compile_one(kernel: Kernel) -> bytes:
        return compile_source(f"{kernel.family}.cu", kernel.defines, architecture)

    with ThreadPoolExecutor(2) as pool:
        return list(zip(some, pool.map(compile_one, some), strict=True))


def test_the_list_is_complete():
    listed = kernels(DType.FLOAT16) + hopper_kernels(DType.FLOAT16) + ampere_kernels(DType.FLOAT16)
    assert {f"{kernel.family}.cu" for kernel in listed} == set(sources())


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16], ids=str)
def test_every_hopper_kernel_compiles(dtype):
    some = hopper_kernels(dtype)[:: 1 if load_nvrtc() is not None and dtype == DType.FLOAT16 else 5]
    for kernel, cubin in compiled(some, "sm_90a"):
        assert kernel.function.encode() in cubin


@needs_compiler
@pytest.mark.slow
def test_products_of_eight_bits_compile():
    for kernel, cubin in compiled(eight_bit_kernels(), "sm_90a"):
        assert kernel.function.encode() in cubin


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [eight_bit_kernels, grouped_kernels, stationary_kernels, pooled_kernels],
    ids=["eight bits", "groups", "stationary", "pooled"],
)
def test_products_overlap_and_nothing_spills(made, tmp_path):
    """The assembler says so when it makes each product wait for the one before, and goes on."""
    nvcc = toolchain._find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc is not installed")

    def words_on(number: int, kernel: Kernel) -> str:
        unit = tmp_path / f"unit{number}.cu"
        unit.write_text(translation_unit(f"{kernel.family}.cu", kernel.defines))
        architecture = "sm_80" if kernel.family == "implicit_gemm_ampere" else "sm_90a"
        command = [nvcc, "-cubin", "-std=c++17", f"-arch={architecture}", f"-I{FOLDER}", "-Xptxas", "-v"]
        output = str(unit.with_suffix(".cubin"))
        return subprocess.run([*command, str(unit), "-o", output], capture_output=True, text=True, check=True).stderr

    some = made()
    with ThreadPoolExecutor(2) as pool:
        for words in pool.map(words_on, range(len(some)), some):
            assert "registers" in words and "serialized" not in words
            assert "0 bytes spill stores" in words


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16], ids=str)
def test_every_ampere_kernel_compiles(architecture, dtype):
    some = ampere_kernels(dtype)[:: 1 if load_nvrtc() is not None and dtype == DType.FLOAT16 else 7]
    for kernel, cubin in compiled(some, architecture):
        assert kernel.function.encode() in cubin


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16], ids=str)
def test_every_kernel_compiles(architecture, dtype):
    if load_nvrtc() is None and dtype != DType.BFLOAT16:
        pytest.skip("nvcc is slow: with it, one type must do")
    for kernel, cubin in compiled(kernels(dtype), architecture):
        assert cubin[:4] == b"\x7fELF"
        assert kernel.family.encode() in cubin  # the C name under which the driver finds it


@needs_compiler
@pytest.mark.slow
def test_the_rates_of_hoppers_instructions_compile():
    source = Path(__file__).parents[2] / "benchmarks" / "cuda" / "wgmma_rate.cu"
    for wide, sparse, registers, integers in [
        (64, 0, 0, 0),
        (256, 1, 0, 0),
        (128, 1, 1, 0),
        (256, 0, 1, 1),
        (128, 1, 0, 1),
    ]:
        defines = {
            "WIDE": wide,
            "SPARSE": sparse,
            "REGISTERS_A": registers,
            "INTEGERS": integers,
            "FILL": 1,
            "CLUSTER": 1,
            "SPLIT": 0,
            "STEPS": 64,
        }
        assert b"wgmma_rate" in compile_source(str(source), defines, "sm_90a")


@needs_compiler
def test_every_pointwise_step_compiles():
    from tamis.compiler.ir.ops import BINARY_KINDS, BOOLEAN_KINDS, UNARY_KINDS

    steps = [PointwiseStep(kind) for kind in UNARY_KINDS if kind not in BOOLEAN_KINDS]
    steps += [PointwiseStep(kind, operand=0) for kind in BINARY_KINDS if kind not in BOOLEAN_KINDS]
    operand = Operand((64,), DType.FLOAT16, False, Argument("in", 0))
    kernel = pointwise(steps, [operand], (64,), DType.FLOAT16, False)
    assert compile_source("pointwise.cu", kernel.defines, "sm_90")


@needs_compiler
def test_equal_sources_give_equal_cubins():
    kernel = softmax(4096, 64, DType.FLOAT16)
    first = compile_source("softmax.cu", kernel.defines, "sm_80")
    toolchain._compile.cache_clear()
    assert compile_source("softmax.cu", kernel.defines, "sm_80") == first


@needs_compiler
def test_a_source_that_does_not_compile():
    kernel = softmax(4096, 64, DType.FLOAT16)
    with pytest.raises(BuildError, match=r"cannot compile softmax\.cu"):
        compile_source("softmax.cu", kernel.defines | {"TYPE": "float8"}, "sm_90")
    with pytest.raises(BuildError, match="not a GPU architecture"):
        compile_source("softmax.cu", kernel.defines, "sm_90; echo")


def test_nvcc_compiles_the_same_units():
    nvcc = toolchain._find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    kernel = pad_channels((2, 3, 16, 16), (DType.FLOAT32, False), 4, DType.BFLOAT16)
    text = translation_unit("space_to_depth.cu", kernel.defines)
    assert compile_with_nvcc(nvcc, text, "space_to_depth.cu", "sm_90a")[:4] == b"\x7fELF"
    with pytest.raises(BuildError, match=r"nvcc cannot compile space_to_depth\.cu"):
        compile_with_nvcc(nvcc, f"{text}\n#error no\n", "space_to_depth.cu", "sm_90a")


def test_without_any_compiler(monkeypatch):
    monkeypatch.setattr(toolchain, "load_nvrtc", lambda: None)
    monkeypatch.setattr(toolchain, "_find_nvcc", lambda: None)
    assert compiler_name() is None
    with pytest.raises(MissingLibrary, match="no CUDA compiler"):
        compile_source("softmax.cu", {"never": 1}, "sm_90")


def test_a_library_without_its_builtins_comes_last(monkeypatch, tmp_path):
    for root, names in (("bare", ("libnvrtc.so.13",)), ("whole", ("libnvrtc.so.12", "libnvrtc-builtins.so.12.9"))):
        (tmp_path / root / "lib64").mkdir(parents=True)
        for name in names:
            (tmp_path / root / "lib64" / name).touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "bare"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "whole"))
    found = [path for path in nvrtc_module._candidates() if path.startswith(str(tmp_path))]
    assert [Path(path).parts[-3] for path in found] == ["whole", "bare"]


def test_the_builtins_beside_nvrtc_are_loaded_before_it(monkeypatch, tmp_path):
    """NVRTC 13.0 opens them by name, and does not look beside itself."""
    for name in ("libnvrtc.so.13", "libnvrtc-builtins.so.13.0", "libnvrtc-builtins.alt.so.13.0"):
        (tmp_path / name).write_bytes(name.encode())
    loaded = []

    def load(path):
        loaded.append(Path(path).name)
        return SimpleNamespace(nvrtcVersion=lambda major, minor: 0)

    monkeypatch.setattr(nvrtc_module.ctypes, "CDLL", load)
    monkeypatch.setattr(nvrtc_module, "_candidates", lambda: [str(tmp_path / "libnvrtc.so.13")])
    found = nvrtc_module.load_nvrtc.__wrapped__()
    assert loaded == ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"]
    (tmp_path / "libnvrtc.so.13").write_bytes(b"another build")
    assert nvrtc_module.load_nvrtc.__wrapped__().identity != found.identity


def test_a_bare_name_loads_nothing_from_the_folder_at_hand(monkeypatch, tmp_path):
    (tmp_path / "libnvrtc-builtins.so.13.0").write_bytes(b"somebody's")
    monkeypatch.chdir(tmp_path)
    loaded = []
    monkeypatch.setattr(nvrtc_module.ctypes, "CDLL", loaded.append)
    nvrtc_module._load_builtins(Path("libnvrtc.so.13"))
    assert not loaded


def test_nvrtc_is_looked_for_in_the_toolkit(monkeypatch, tmp_path):
    (tmp_path / "lib64").mkdir()
    for name in ("libnvrtc.so.13", "libnvrtc.so", "libnvrtc-builtins.so.13.0", "libnvrtc.alt.so.13"):
        (tmp_path / "lib64" / name).touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = [path.rsplit("/", 1)[1] for path in nvrtc_module._candidates() if path.startswith(str(tmp_path))]
    assert found == ["libnvrtc.so.13", "libnvrtc.so"]
