"""Our int8 and e4m3 kernels for Hopper's tensor cores beside the libraries that PyTorch brings, dense and 2:4.

    python benchmarks/bench_kernels_8bit.py
    python benchmarks/bench_kernels_8bit.py --case gemm-8192x8192x8192 --precision int8 --all-tiles

Ours have a scale for each filter, a bias and ReLU fused, and give float16, on convolutions also their own type. Peers
do less: ``_int_mm`` and ``_scaled_mm`` (dense), cuSPARSELt (2:4), and cuBLAS and cuDNN in float16. No library that
PyTorch brings has convolutions of 8 bits. All take turns on random data and a cold L2 cache; every result is checked
against float64 on some of its rows, and everywhere for being finite. The fastest of each makes a row of
``results/kernels-GPU.json``; what a peer refuses is printed.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bench_kernels import Case
from gpu_state import about_gpu, gpu_state, short_name
from results import Row, command_line, merge, summarise
from tamis.devices.base import BoundShape
from tamis.devices.cuda import kernels
from tamis.devices.cuda.stopwatch import CudaStopwatch
from tamis.engine.plan import Format, Step
from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.dtype import DType
from tamis.formats.hopper import pack_hopper
from tamis.kernels.cuda.compile import compile_source
from tamis.kernels.cuda.implicit_gemm import (
    FILLING_TILES,
    TILES,
    Convolution,
    Epilogue,
    Tile,
    channel_constants,
    deepest,
    has_instruction,
    implicit_gemm_hopper,
)
from tamis.kernels.cuda.pointwise import PointwiseStep
from tamis.kernels.cuda.specification import Kernel

CASES = (
    Case(0, 8192, 8192, 1, 8192),
    Case(0, 4096, 4096, 1, 2048),
    Case(3, 256, 256, 56, 128),
    Case(3, 256, 256, 14, 128),
)
PRECISIONS = (DType.INT8, DType.FLOAT8_E4M3)
TORCH = {DType.INT8: torch.int8, DType.FLOAT8_E4M3: torch.float8_e4m3fn, DType.FLOAT16: torch.float16}
ARCHITECTURE = "sm_90a"
RELU = (PointwiseStep("relu"),)
FIRST_ROUNDS, ROUNDS, FINALISTS = 3, 15, 3
LEAST_TILE = 128 * 128  # smaller ones only with --all-tiles
ALGORITHMS = 8  # of cuSPARSELt, where it does not tell how many it has
CHECKED_ROWS, CHECKED_IMAGES = 256, 3
# Largest error over the largest value: a rounding to 16 bits; of e4m3 also what tensor cores cut off on the way.
TOLERANCE = {DType.INT8: 2e-3, DType.FLOAT8_E4M3: 3e-2, DType.FLOAT16: 5e-3}


@dataclass(frozen=True)
class Data:
    """A case in one type on the GPU: image NHWC or [rows, k], 2:4 weight [filters, taps, channels], scale and bias."""

    case: Case
    dtype: DType
    shape: Convolution
    image: torch.Tensor
    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    @property
    def flops(self) -> int:
        """A multiply-add is two, zeros count."""
        return 2 * self.shape.pixels * self.weight.numel()

    def sums(self, image: torch.Tensor) -> torch.Tensor:
        """[pixels, filters] in float64 of some images, or of some rows of a matrix."""
        weight = self.weight.double()
        if not self.case.kernel:
            return image.double() @ weight[:, 0].T
        down, across = self.shape.kernel
        filters = weight.reshape(len(weight), down, across, -1).permute(0, 3, 1, 2)
        top, left, _, _ = self.shape.pads
        found = F.conv2d(image.double().permute(0, 3, 1, 2), filters, stride=self.shape.strides, padding=(top, left))
        return found.permute(0, 2, 3, 1).reshape(-1, len(weight))


@dataclass(frozen=True)
class Contestant:
    """Something to time: ``call`` gives [..., filters], ``expects`` what that should be, from float64 sums."""

    impl: str
    sparsity: str
    label: str
    call: Callable[[], torch.Tensor]
    expects: Callable[[torch.Tensor], torch.Tensor]
    dtype: DType
    exact_type: bool = False  # the result is rounded to 8 bits


def main() -> int:
    known = {case.name: case for case in CASES}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(known), metavar="CASE", help="may be repeated")
    parser.add_argument("--precision", action="append", choices=[str(p) for p in PRECISIONS], help="may be repeated")
    parser.add_argument("--all-tiles", action="store_true", help="also small and split ones")
    parser.add_argument("--output", type=Path, help="results file")
    options = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        print("needs a Hopper GPU")
        return 1
    name = torch.cuda.get_device_name()
    output = options.output or Path(__file__).parent / "results" / f"kernels-{short_name(name)}.json"
    stopwatch = CudaStopwatch(cold=True)
    for case in [known[name] for name in options.case] if options.case else CASES:
        for precision in map(DType, options.precision or PRECISIONS):
            before = gpu_state()
            data = data_of(case, precision)
            contestants = [*ours(data, all_tiles=options.all_tiles), *peers(data)]
            errors = {c: error for c in contestants if (error := error_of(c, data)) is not None}
            times = race(list(errors), stopwatch)
            rows = rows_of(data, times, errors, f"{before} -> {gpu_state()}")
            show(rows)
            merge(output, rows, about_gpu(name) | {"command": command_line(sys.argv)},
                  key=("bench", "case", "impl", "sparsity", "precision"))  # fmt: skip
    print(f"wrote {output}")
    return 0


def data_of(case: Case, dtype: DType, device: str = "cuda") -> Data:
    """Random values, int8 over its whole range; scaled sums have about unit variance."""
    generator = np.random.default_rng(0)
    taps = case.kernel or 1
    shape = (
        Convolution(case.batch, case.size, case.size, case.inputs, case.outputs, (taps, taps), (case.stride,) * 2,
                    (taps // 2,) * 4)
        if case.kernel else Convolution(1, 1, case.batch, case.inputs, case.outputs)
    )  # fmt: skip
    image = (case.batch, case.size, case.size, case.inputs) if case.kernel else (case.batch, case.inputs)
    weight = random_values((case.outputs, taps * taps, case.inputs), dtype, device)
    mask = magnitude_mask(weight.float().cpu().numpy(), TWO_FOUR)
    weight = torch.where(torch.from_numpy(mask).to(device), weight.float(), 0.0).to(TORCH[dtype])
    deviation = (128 / 3**0.5) ** 2 if dtype == DType.INT8 else 1.0
    spread = deviation * (taps * taps * case.inputs / 2) ** 0.5
    scale = generator.uniform(0.5, 1.5, case.outputs).astype(np.float32) / np.float32(spread)
    bias = generator.standard_normal(case.outputs).astype(np.float32)
    return Data(case, dtype, shape, random_values(image, dtype, device), weight, torch.from_numpy(scale).to(device),
                torch.from_numpy(bias).to(device))  # fmt: skip


def random_values(shape: Sequence[int], dtype: DType, device: str) -> torch.Tensor:
    """Uniform int8, normal e4m3."""
    if dtype == DType.INT8:
        return torch.randint(-128, 128, tuple(shape), dtype=torch.int8, device=device)
    return torch.randn(tuple(shape), device=device).to(TORCH[dtype])


# --- ours ---


def ours(data: Data, *, all_tiles: bool) -> list[Contestant]:
    """Every tile that is large enough, dense and 2:4, for each type of result; compiled on all cores."""
    planned: list[tuple[bool, DType, Tile, Kernel]] = []
    outs = (DType.FLOAT16, data.dtype) if data.case.kernel else (DType.FLOAT16,)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    for sparse in (False, True):
        for out in outs:
            for sizes in TILES + FILLING_TILES:
                tile = deepest(*sizes, sparse=sparse, itemsize=1)
                small = tile.filters * tile.pixels < LEAST_TILE or tile.split > 1
                runs = has_instruction(tile.pixels, data.dtype) and tile.split <= data.shape.steps_in(1)
                if not runs or (small and not all_tiles):
                    continue
                epilogue = Epilogue(RELU, bias=True, dtype=out, scaled=True)
                kernel = implicit_gemm_hopper(data.shape, tile, data.dtype, multiprocessors, epilogue, sparse=sparse)
                planned.append((sparse, out, tile, kernel))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        binaries = list(pool.map(compiled, (kernel for *_, kernel in planned)))
    packed: dict[tuple[bool, int], torch.Tensor] = {}
    found = []
    for (sparse, out, tile, kernel), binary in zip(planned, binaries, strict=True):
        blocks = tile.blocks * tile.groups
        if (sparse, blocks) not in packed:
            packed[sparse, blocks] = packed_weight(data, blocks, sparse=sparse)
        found.append(contestant(data, kernel, binary, packed[sparse, blocks], tile, out, sparse=sparse))
    return found


def compiled(kernel: Kernel) -> bytes:
    return compile_source(f"{kernel.family}.cu", kernel.defines, ARCHITECTURE)


def packed_weight(data: Data, blocks: int, *, sparse: bool) -> torch.Tensor:
    matrix = data.weight.view(torch.uint8).cpu().numpy().view(data.dtype.numpy)
    return torch.from_numpy(pack_hopper(matrix, blocks, sparse=sparse).data).to(data.weight.device)


def contestant(
    data: Data, kernel: Kernel, binary: bytes, packed: torch.Tensor, tile: Tile, out: DType, *, sparse: bool
) -> Contestant:
    """One of our kernels, bound as an engine binds it."""
    device = data.image.device
    own = out.size_bytes == 1
    out_scale = {DType.INT8: 1 / 32, DType.FLOAT8_E4M3: 1 / 16}.get(out, 1.0)
    numbers = channel_constants(data.scale.cpu().numpy(), data.bias.cpu().numpy(), out_scale)
    constants = {"cubin": torch.from_numpy(np.frombuffer(binary, np.uint8).copy()), "weight": packed,
                 "channels": torch.from_numpy(numbers).to(device)}  # fmt: skip
    step = Step("layer", f"cuda.{kernel.family}", ("x",), ("y",), tuple(constants), kernel.attributes())
    result = torch.zeros((data.shape.pixels, data.shape.filters), dtype=TORCH[out], device=device)
    result.view(torch.uint8).fill_(0x7F)  # NaN in floating-point types
    slots = [data.image, result]
    formats = (Format(data.dtype), Format(out))
    given, made = (BoundShape(i, tuple(slots[i].shape), formats[i], preallocated=i == 1) for i in range(2))
    run = kernels.bind(step, constants, [given], [made])

    def call() -> torch.Tensor:
        run(slots)
        return result

    def expects(sums: torch.Tensor) -> torch.Tensor:
        values = torch.relu(sums * data.scale + data.bias) / out_scale
        if out == DType.INT8:
            return values.round().clamp(-128, 127)
        return values.clamp(-448, 448) if out == DType.FLOAT8_E4M3 else values

    name = f"tamis.hopper{'.sparse' if sparse else ''}{'.requantised' if own else ''}"
    label = f"{tile.filters} x {tile.pixels}, cluster {tile.cluster}, split {tile.split}"
    return Contestant(name, "2:4" if sparse else "dense", label, call, expects, data.dtype, own)


# --- peers ---


def peers(data: Data) -> Iterator[Contestant]:
    """What PyTorch has for this case."""
    yield from half_precision(data)
    if not data.case.kernel:
        yield from (integer_peers if data.dtype == DType.INT8 else float8_peers)(data)


def half_precision(data: Data) -> Iterator[Contestant]:
    """cuBLAS or cuDNN in float16 on the same values, scaled beforehand, without bias and ReLU."""
    factor = data.scale.mean() ** 0.5
    image, weight = ((t.float() * factor).half() for t in (data.image, data.weight))

    def expects(sums: torch.Tensor) -> torch.Tensor:
        return sums * factor.double() ** 2

    if not data.case.kernel:
        matrix = weight[:, 0].T
        yield Contestant("cublas", "dense", "float16", lambda: image @ matrix, expects, DType.FLOAT16)
        return
    down, across = data.shape.kernel
    seen = image.permute(0, 3, 1, 2)  # channels last
    filters = weight.reshape(len(weight), down, across, -1).permute(0, 3, 1, 2)
    top, left, _, _ = data.shape.pads
    torch.backends.cudnn.benchmark = True
    yield Contestant(
        "cudnn", "dense", "float16",
        lambda: F.conv2d(seen, filters, stride=data.shape.strides, padding=(top, left)).permute(0, 2, 3, 1),
        expects, DType.FLOAT16,
    )  # fmt: skip


def integer_peers(data: Data) -> Iterator[Contestant]:
    """cuBLAS with int32 results, and cuSPARSELt with scaled float16 or what else it takes."""
    matrix = data.weight[:, 0]
    yield Contestant(
        "cublas", "dense", "_int_mm, int32", lambda: torch._int_mm(data.image, matrix.T), lambda sums: sums, data.dtype
    )
    yield from cusparselt(
        data, ((torch.float16, data.scale), (torch.bfloat16, data.scale), (torch.bfloat16, None), (torch.int32, None))
    )


def float8_peers(data: Data) -> Iterator[Contestant]:
    """cuBLAS in both ways of adding up, with one scale; cuSPARSELt without."""
    matrix, scale = data.weight[:, 0], data.scale.mean()
    one = torch.ones((), device=data.image.device)
    for fast in (True, False):
        yield Contestant(
            "cublas", "dense", f"_scaled_mm, float16, {'fast' if fast else 'slow'} sums",
            lambda fast=fast: torch._scaled_mm(  # type: ignore[misc]
                data.image, matrix.T, scale, one, out_dtype=torch.float16, use_fast_accum=fast
            ),
            lambda sums: sums * scale, data.dtype,
        )  # fmt: skip
    yield from cusparselt(data, ((torch.float16, None), (torch.bfloat16, None)))


def cusparselt(data: Data, ways: Sequence[tuple[torch.dtype, torch.Tensor | None]]) -> Iterator[Contestant]:
    """Every algorithm in the first of the ways, (type of the result, scale), that the library takes."""
    matrix, seen = data.weight[:, 0].contiguous(), data.image.T
    try:
        compressed = torch._cslt_compress(matrix)
    except (RuntimeError, AttributeError) as error:
        print(f"{data.case.name} cuSPARSELt does not compress {data.dtype}: {first_line(error)}")
        return

    def product(out: torch.dtype, alpha: torch.Tensor | None, algorithm: int) -> torch.Tensor:
        return torch._cslt_sparse_mm(
            compressed, seen, alpha=alpha, out_dtype=out, transpose_result=True, alg_id=algorithm
        )

    for out, alpha in ways:
        try:
            product(out, alpha, 0)
            torch.cuda.synchronize()
        except RuntimeError as error:
            words = f"{data.dtype} to {out}{'' if alpha is None else ', scaled'}"
            print(f"{data.case.name} cuSPARSELt refuses {words}: {first_line(error)}")
            continue
        for algorithm in range(algorithms()):
            yield Contestant(
                "cusparselt", "2:4", f"{str(out).removeprefix('torch.')}, algorithm {algorithm}",
                lambda out=out, alpha=alpha, a=algorithm: product(out, alpha, a),  # type: ignore[misc]
                lambda sums, alpha=alpha: sums if alpha is None else sums * alpha,  # type: ignore[misc]
                data.dtype,
            )  # fmt: skip
        return


def algorithms() -> int:
    """How many cuSPARSELt had for its last product."""
    try:
        return int(torch.backends.cusparselt.get_max_alg_id() or ALGORITHMS)
    except (AttributeError, RuntimeError):
        return ALGORITHMS


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# --- the race ---


def error_of(contestant: Contestant, data: Data) -> float | None:
    """Largest error over the largest value of some rows or images; None, and words, for what fails or is wrong."""
    who = f"{data.case.name} {data.dtype} {contestant.impl} ({contestant.label})"
    try:
        result = contestant.call()
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"{who} refuses: {first_line(error)}", flush=True)
        return None
    result = result.reshape(-1, data.shape.filters)
    picks = (
        (CHECKED_IMAGES, len(data.image)) if data.case.kernel else (min(CHECKED_ROWS, len(data.image)), len(data.image))
    )
    chosen = torch.linspace(0, picks[1] - 1, picks[0], device=result.device).round().long()
    image = data.image.view(torch.uint8)[chosen].view(data.image.dtype)  # not all types can be indexed
    expected = contestant.expects(data.sums(image))
    lines = data.shape.pixels // picks[1]
    size = result.element_size()
    raw = (
        result.contiguous()
        .view(torch.uint8)
        .reshape(picks[1], lines, -1)[chosen]
        .reshape(-1, data.shape.filters * size)
    )
    mine = raw.view(result.dtype).double()
    largest = float(expected.abs().max())
    error = float((mine - expected).abs().max()) / largest
    step = 0.0
    if contestant.exact_type:  # a unit of int8, or half a unit of e4m3's largest
        step = 1.01 / largest if data.dtype == DType.INT8 else 16.5 / largest
    finite = bool(torch.isfinite(result.float()).all())
    if not finite or not error <= TOLERANCE[contestant.dtype] + step:
        print(f"{who} is wrong: error {error:.1e}, {'all' if finite else 'not all'} finite", flush=True)
        return None
    return error


def race(contestants: Sequence[Contestant], stopwatch: CudaStopwatch) -> dict[Contestant, list[float]]:
    """Microseconds. All take turns a few times, then the fastest of each implementation many times."""

    def turns(runners: Sequence[Contestant], rounds: int) -> dict[Contestant, list[float]]:
        times: dict[Contestant, list[float]] = {c: [] for c in runners}
        for _ in range(rounds):
            for runner in random.sample(runners, len(runners)):
                times[runner].append(stopwatch.time_us(runner.call))
        return times

    first = turns(contestants, FIRST_ROUNDS)
    ranked = sorted(contestants, key=lambda c: statistics.median(first[c]))
    seen: dict[tuple[str, str], int] = {}
    finalists = []
    for runner in ranked:
        place = seen[runner.impl, runner.sparsity] = seen.get((runner.impl, runner.sparsity), 0) + 1
        if place <= FINALISTS:
            finalists.append(runner)
    return turns(finalists, ROUNDS)


def rows_of(data: Data, times: dict[Contestant, list[float]], errors: dict[Contestant, float], state: str) -> list[Row]:
    """The fastest of each implementation, with the others' times in the note."""
    rows = []
    for key in dict.fromkeys((c.impl, c.sparsity, c.dtype) for c in times):
        ranked = sorted(
            (c for c in times if (c.impl, c.sparsity, c.dtype) == key), key=lambda c: statistics.median(times[c])
        )
        best = ranked[0]
        others = "; ".join(f"{c.label} {statistics.median(times[c]):.1f}" for c in ranked)
        moved = data.image.numel() + data.weight.numel() + data.shape.pixels * data.shape.filters * 2
        # Peers of another type stand beside ours, under its name.
        impl = best.impl if best.dtype == data.dtype else f"{best.impl}.{best.dtype}"
        rows.append(
            Row("kernels", data.case.name, impl, str(data.dtype), best.sparsity, data.case.batch,
                *summarise(times[best]), data.flops, moved, errors[best], f"{best.label}; {state}; all: {others}")
        )  # fmt: skip
    return rows


def show(rows: Sequence[Row]) -> None:
    """One line for each row: time, speed, and how much faster than the fastest dense library."""
    best = min((row.median_us for row in rows if row.sparsity == "dense" and "tamis" not in row.impl), default=0.0)
    for row in sorted(rows, key=lambda row: row.median_us):
        speed = row.flops / row.median_us / 1e6
        print(f"{row.case:28} {row.precision:12} {row.impl:32} {row.sparsity:5} {row.median_us:9.1f} us "
              f"{speed:7.1f} TOP/s {best / row.median_us:5.2f}x  error {row.max_rel_error:.1e}  {row.note[:50]}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
