"""Linear layers on a GPU: cuBLASLt and 2:4 cuSPARSELt, every algorithm of each, beside PyTorch's F.linear.

    python benchmarks/bench_cuda_linear.py --quick
    python benchmarks/bench_cuda_linear.py --case 4096x1024x16384 --precision float16

A case is outputs x inputs x rows, with a bias. Every call of a measurement has its own weights, inputs and outputs, in
turn, more than twice the L2 cache in all. Calls are captured in CUDA graphs and the graphs take turns, so that clocks
hit all alike; a time is that of a graph over its calls. Results are checked against float64 in the same run, over
outputs that hold NaN. Rows go to ``results/cuda_linear-<gpu>.json``; the note of the fastest says so.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from gpu_state import short_name
from results import Row, command_line, merge, summarise
from tamis.compiler.tactics.cusparselt import ALGORITHMS, SPLIT_ALGORITHMS, SPLIT_MODES, SPLITS
from tamis.devices.cuda import cublaslt, cublaslt_library, cusparselt, cusparselt_library
from tamis.devices.cuda.workspace import Workspace
from tamis.errors import DeviceError, MissingLibrary
from tamis.formats.dtype import DType

# Outputs, inputs, rows: the 1x1 convolutions of ResNet-50 at batch 128, transformers, the largest, and few rows.
CASES = (
    (64, 256, 401408), (256, 64, 401408), (128, 512, 100352), (512, 128, 100352), (256, 1024, 25088),
    (1024, 256, 25088), (512, 2048, 6272), (2048, 512, 6272), (1024, 1024, 16384), (4096, 1024, 16384),
    (4096, 4096, 16), (4096, 4096, 2048), (8192, 8192, 8192),
)  # fmt: skip
QUICK_CASES = ((512, 2048, 6272), (1024, 1024, 16384), (4096, 1024, 16384), (4096, 4096, 16))
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """Outputs, inputs and rows of a layer."""

    n: int
    k: int
    rows: int

    @property
    def name(self) -> str:
        return f"gemm-{self.n}x{self.k}x{self.rows}"

    @property
    def flops(self) -> int:
        return 2 * self.n * self.k * self.rows

    def bytes(self, sparse: bool) -> int:
        weight = self.n * self.k * 9 // 8 if sparse else self.n * self.k * 2
        return weight + 2 * (self.rows * (self.n + self.k) + self.n)


@dataclass
class Copy:
    """One of the sets of tensors that calls rotate through."""

    x: torch.Tensor
    y: torch.Tensor
    bias: torch.Tensor
    dense: torch.Tensor
    kept: torch.Tensor
    places: torch.Tensor


@dataclass
class Contestant:
    """One implementation of a case: ``calls`` are the same work on different copies."""

    impl: str
    sparsity: str
    note: str
    calls: list[Callable[[int], None]]
    error: float = 0.0
    graph: torch.cuda.CUDAGraph | None = None
    launches: int = 0
    times_us: list[float] = field(default_factory=list)


def compressed(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept values [n, k / 2] and packed places [n, k / 8] of the two largest of each four."""
    n, k = weight.shape
    groups = weight.view(n, k // 4, 4)
    places = groups.abs().topk(2, dim=-1).indices.sort(dim=-1).values
    kept = groups.gather(-1, places).reshape(n, k // 2)
    four = places.reshape(n, k // 8, 4).to(torch.uint8)
    packed = four[..., 0] | four[..., 1] << 2 | four[..., 2] << 4 | four[..., 3] << 6
    return kept.contiguous(), packed.contiguous()


def make_copies(shape: Shape, dtype: torch.dtype, args) -> list[Copy]:
    count = max(2, -(-args.working_set // shape.bytes(sparse=True)))
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        random = {"dtype": torch.float32, "device": args.device}
        weight = torch.randn(shape.n, shape.k, **random).mul_(shape.k**-0.5).to(dtype)
        x = torch.randn(shape.rows, shape.k, **random).to(dtype)
        bias = torch.randn(shape.n, **random).to(dtype)
        y = torch.empty(shape.rows, shape.n, dtype=dtype, device=args.device)
        made.append(Copy(x, y, bias, weight, *compressed(weight)))
    return made


def torch_contestant(copies: list[Copy]) -> Contestant:
    """F.linear as users call it; its results lie in as many places as the others'."""
    held: list[torch.Tensor | None] = [None] * len(copies)

    def make(i: int, copy: Copy) -> Callable[[int], None]:
        def call(_stream: int) -> None:
            held[i] = F.linear(copy.x, copy.dense, copy.bias)

        return call

    contestant = Contestant("torch", "dense", "F.linear", [make(i, copy) for i, copy in enumerate(copies)])
    contestant.calls[0](0)
    copies[0].y.copy_(held[0])
    return contestant


def cublaslt_contestants(shape: Shape, dtype: DType, copies: list[Copy], workspace: Workspace) -> Iterator[Contestant]:
    context = cublaslt.context(torch.cuda.current_device())
    product = cublaslt.Product(shape.n, shape.rows, shape.k, dtype, dtype, dtype, "none", False, 0, transposed=True)

    def make(rank: int, copy: Copy) -> Callable[[int], None]:
        launch = cublaslt.prepare(context, workspace, replace(product, rank=rank), copy.bias, shape.name)
        w, x, y = copy.dense.data_ptr(), copy.x.data_ptr(), copy.y.data_ptr()
        return lambda stream: launch(w, x, y, y, stream)

    for rank in range(cublaslt.MOST_RESULTS):
        try:
            calls = [make(rank, copy) for copy in copies]
        except DeviceError:
            return  # there are no more
        yield Contestant("cublaslt", "dense", f"rank {rank}", calls)


def cusparselt_contestants(
    shape: Shape, dtype: DType, copies: list[Copy], workspace: Workspace, args
) -> Iterator[Contestant]:
    try:
        context = cusparselt.context(torch.cuda.current_device())
    except (MissingLibrary, DeviceError) as error:
        print(f"cuSPARSELt is left out: {error}")
        return
    version = cusparselt_library.version()
    forms = [(algorithm, 1, 0) for algorithm in ALGORITHMS[dtype]]
    if -(-shape.n // 128) * -(-shape.rows // 128) < args.multiprocessors:
        forms += [
            (a, split, mode) for split in SPLITS for mode in SPLIT_MODES for a in ALGORITHMS[dtype][:SPLIT_ALGORITHMS]
        ]

    def make(form: tuple[int, int, int], copy: Copy) -> Callable[[int], None]:
        product = cusparselt.Product(shape.rows, shape.n, shape.k, dtype, False, None, False, *form)
        launch = cusparselt.prepare(context, workspace, product, copy.kept, copy.places, copy.bias, shape.name)
        x, y = copy.x.data_ptr(), copy.y.data_ptr()
        return lambda stream: launch(x, y, y, stream)

    failures: dict[str, int] = {}
    for form in forms:
        try:
            calls = [make(form, copy) for copy in copies]
            calls[0](args.stream())
            torch.cuda.synchronize()
        except DeviceError as error:
            text = re.sub(r"algorithm \d+", "algorithm", error.cause)
            failures[text] = failures.get(text, 0) + 1
            continue
        split = f" split {form[1]} mode {form[2]}" if form[1] > 1 else ""
        yield Contestant("cusparselt", "2:4", f"{version} algorithm {form[0]}{split}", calls)
    for text, count in failures.items():
        print(f"  {count} forms left out: {text}")


def references(shape: Shape, copy: Copy) -> dict[str, torch.Tensor]:
    """What copy 0 should give, in float64, dense and sparse."""
    sparse = cusparselt.expand(copy.kept, copy.places)
    assert ((sparse == 0) | (sparse == copy.dense)).all() and int((sparse != 0).sum()) <= shape.n * shape.k // 2
    x, bias = copy.x.double(), copy.bias.double()
    return {"dense": x @ copy.dense.double().T + bias, "2:4": x @ sparse.double().T + bias}


def error_of(y: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error over the largest reference value; NaN counts as 1e30."""
    error = float((y - expected).abs().max() / expected.abs().max())
    return error if math.isfinite(error) else 1e30


def check_and_capture(contestant: Contestant, copies: list[Copy], expected: dict[str, torch.Tensor], args) -> None:
    if contestant.impl != "torch":
        copies[0].y.fill_(float("nan"))
        contestant.calls[0](args.stream())
    torch.cuda.synchronize()
    contestant.error = float(f"{error_of(copies[0].y, expected[contestant.sparsity]):.3g}")
    contestant.launches = max(len(copies), args.launches)
    contestant.graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(contestant.graph):
        for i in range(contestant.launches):
            contestant.calls[i % len(copies)](args.stream())


def take_turns(contestants: list[Contestant], rounds: int) -> None:
    """Time every graph once a round; the first round warms up and does not count."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for round_ in range(rounds + 1):
        for contestant in contestants:
            start.record()
            contestant.graph.replay()
            end.record()
            end.synchronize()
            if round_:
                contestant.times_us.append(start.elapsed_time(end) * 1e3 / contestant.launches)


def measure(shape: Shape, precision: str, args) -> list[Row]:
    dtype, copies = DType(precision), make_copies(shape, TYPES[precision], args)
    expected, workspace = references(shape, copies[0]), Workspace(torch.device("cuda"))
    contestants = []
    proposed = itertools.chain(
        [torch_contestant(copies)],
        cublaslt_contestants(shape, dtype, copies, workspace),
        cusparselt_contestants(shape, dtype, copies, workspace, args),
    )
    for contestant in proposed:
        try:
            check_and_capture(contestant, copies, expected, args)
            contestants.append(contestant)
        except (DeviceError, RuntimeError) as error:
            print(f"  {contestant.impl} {contestant.note} is left out: {error}")
    take_turns(contestants, args.rounds)
    rows = []
    for contestant in contestants:
        median, low, high, n = summarise(contestant.times_us)
        size = shape.bytes(contestant.sparsity != "dense")
        row = Row(
            "cuda_linear", shape.name, contestant.impl, precision, contestant.sparsity, shape.rows, median, low, high,
            n, shape.flops, size, contestant.error, contestant.note,
        )  # fmt: skip
        rows.append(row)
    return mark_best(rows, args.tolerance[precision])


def mark_best(rows: list[Row], tolerance: float) -> list[Row]:
    """The rows with a note at the fastest correct one of each implementation."""
    best: dict[str, Row] = {}
    for row in rows:
        if (
            row.max_rel_error <= tolerance
            and row.median_us < best.get(row.impl, replace(row, median_us=1e30)).median_us
        ):
            best[row.impl] = row
    return [replace(row, note=f"{row.note}, best") if row is best.get(row.impl) else row for row in rows]


def report(rows: list[Row], tolerance: float) -> None:
    wrong = [row for row in rows if row.max_rel_error > tolerance]
    best = [row for row in rows if row.note.endswith("best")]
    for row in best:
        count, rate = sum(r.impl == row.impl for r in rows), row.flops / row.median_us / 1e6
        print(
            f"{row.case:>24} {row.precision:>8}  {row.impl:>10}  {row.median_us:>9.2f} us "
            f"({row.p10_us:.2f} to {row.p90_us:.2f})  {rate:>5.0f} TFLOP/s  error {row.max_rel_error:.1e}  "
            f"{row.note}, of {count}",
            flush=True,
        )
    times = {row.impl: row.median_us for row in best}
    if {"cublaslt", "cusparselt"} <= times.keys():
        dense = min(times["cublaslt"], times.get("torch", times["cublaslt"]))
        print(f"{'':>33}  dense / 2:4 = {dense / times['cusparselt']:.2f}")
    for row in wrong:
        print(f"  WRONG: {row.impl} {row.note}: error {row.max_rel_error:.2e}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four cases, fewer rounds: under a minute")
    parser.add_argument("--case", action="append", help="OUTPUTSxINPUTSxROWS, instead of the table; may be repeated")
    parser.add_argument("--precision", action="append", choices=sorted(TYPES), help="may be repeated; both if absent")
    parser.add_argument("--rounds", type=int, default=0, help="0: 20, or 8 when quick")
    parser.add_argument("--launches", type=int, default=10, help="calls in a graph, at least one for each copy")
    parser.add_argument("--working-set-mb", type=int, default=160, help="bytes that calls rotate through")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.rounds = args.rounds or (8 if args.quick else 20)
    args.working_set, args.device = args.working_set_mb << 20, "cuda"
    args.tolerance = {"float16": 1e-3, "bfloat16": 8e-3}
    args.stream = lambda: torch.cuda.current_stream().cuda_stream
    return args


def main() -> int:
    args = arguments()
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 6
    properties = torch.cuda.get_device_properties(0)
    args.multiprocessors = properties.multi_processor_count
    architecture = f"sm_{properties.major}{properties.minor}"
    libraries = {"torch": torch.__version__, "cuda": torch.version.cuda, "cublaslt": cublaslt_library.version()}
    try:
        libraries["cusparselt"] = cusparselt_library.version()
        print(cusparselt_library.advice(libraries["cusparselt"], architecture) or f"libraries: {libraries}")
    except MissingLibrary as error:
        print(error)
    cases = [tuple(int(size) for size in text.split("x")) for text in args.case or []]
    gpu = short_name(properties.name)
    out = args.out or Path(__file__).parent / "results" / f"cuda_linear-{gpu}.json"
    extra = {
        "command": command_line(sys.argv), "gpu": properties.name, "architecture": architecture, "libraries": libraries,
        "working_set_bytes": args.working_set,
    }  # fmt: skip
    gc.freeze()  # each capture may collect garbage: leave out what is there by now
    wrong, begin = 0, time.perf_counter()
    for sizes in cases or (QUICK_CASES if args.quick else CASES):
        results: list[Row] = []
        for precision in args.precision or sorted(TYPES, reverse=True):
            rows = measure(Shape(*sizes), precision, args)
            report(rows, args.tolerance[precision])
            wrong += sum(row.max_rel_error > args.tolerance[precision] for row in rows)
            results += rows
            gc.collect()
            torch.cuda.empty_cache()
        merge(out, results, extra)  # after each case: what was measured is kept whatever the next one does
    print(f"written: {out} after {time.perf_counter() - begin:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
