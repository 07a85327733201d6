"""Convolutions on a GPU: cuDNN's plans, rank by rank, beside PyTorch's operators; NHWC, bias and activation fused.

    python benchmarks/bench_cuda_conv.py --quick
    python benchmarks/bench_cuda_conv.py --case 3x3-512x512-28 --precision float16 --batch 128

Every call of a measurement has its own image, weight and result, in turn, more than twice the L2 cache in all. Calls
are captured in CUDA graphs and the graphs take turns, so that clocks hit all alike; a time is that of a graph over its
calls. Results are checked against float64 in the same run (the first and the last image), over outputs that held NaN.
Rows go to ``results/cuda_conv-<gpu>.json``; the note of the fastest says so, and how long its plan took to build.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from gpu_state import short_name
from results import Row, command_line, conv_name, merge, summarise
from tamis.devices.base import BoundShape
from tamis.devices.cuda import cudnn, cudnn_torch
from tamis.devices.cuda.workspace import Workspace
from tamis.engine.plan import Format, Step
from tamis.errors import DeviceError, MissingLibrary
from tamis.formats.dtype import DType

# Kernel, channels in and out, size of the image, stride; "res" adds a residual before the activation.
SHAPES = (
    (3, 64, 64, 56, 1, "relu"), (3, 128, 128, 28, 1, "relu"), (3, 256, 256, 14, 1, "relu"),
    (3, 512, 512, 7, 1, "relu"), (3, 64, 128, 56, 2, "relu"), (3, 256, 512, 14, 2, "relu"),
    (3, 256, 256, 56, 1, "relu"), (3, 512, 512, 28, 1, "relu"), (3, 1024, 1024, 28, 1, "relu"),
    (1, 256, 1024, 14, 1, "res"), (1, 1024, 256, 14, 1, "relu"), (1, 512, 2048, 7, 1, "res"),
    (7, 3, 64, 224, 2, "relu"), (3, 64, 64, 80, 1, "silu"), (3, 256, 256, 20, 1, "silu"),
)  # fmt: skip
QUICK = (SHAPES[0], SHAPES[2], SHAPES[9], SHAPES[14])
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
MOST_RANKS = 8


@dataclass(frozen=True)
class Case:
    """One convolution; ``epilogue`` is relu, silu or res (residual, then ReLU)."""

    kernel: int
    inputs: int
    outputs: int
    size: int
    stride: int
    epilogue: str
    batch: int
    precision: str

    @property
    def name(self) -> str:
        """A stable name such as ``conv3x3-512x512-28-b128``."""
        tail = "" if self.epilogue == "relu" else self.epilogue
        return conv_name(self.kernel, (self.inputs, self.outputs), self.size, self.batch, self.stride, tail)

    @property
    def result(self) -> tuple[int, int, int, int]:
        """[N, K, P, Q]."""
        size = (self.size - 1) // self.stride + 1
        return (self.batch, self.outputs, size, size)

    @property
    def flops(self) -> int:
        """A multiply-add counts as two."""
        return 2 * torch.Size(self.result).numel() * self.inputs * self.kernel**2

    @property
    def bytes(self) -> int:
        """Image, weight, bias and result once each, and the residual."""
        result = torch.Size(self.result).numel() * (2 if self.epilogue == "res" else 1)
        image = self.batch * self.inputs * self.size**2
        weight = self.outputs * (self.inputs * self.kernel**2 + 1)
        return (image + weight + result) * TYPES[self.precision].itemsize

    def attributes(self, **more: object) -> dict[str, object]:
        """Those of a step."""
        around = self.kernel // 2
        return {"strides": [self.stride] * 2, "pads": [around] * 4, "dilations": [1, 1], "groups": 1, **more}


@dataclass
class Copy:
    """One of the sets of tensors that calls rotate through; ``weight`` is [K, R, S, C]."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    residual: torch.Tensor
    y: torch.Tensor

    @property
    def slots(self) -> list[torch.Tensor]:
        return [self.x, self.residual, self.y]


@dataclass
class Contestant:
    """One implementation of a case: ``calls`` are the same work on different copies."""

    impl: str
    note: str
    calls: list[Callable[[], object]]
    error: float = 0.0
    graph: torch.cuda.CUDAGraph | None = None
    times_us: list[float] = field(default_factory=list)


def make_copies(case: Case, args) -> list[Copy]:
    def image(*shape: int) -> torch.Tensor:
        random = torch.randn(shape, device=args.device)
        return random.to(TYPES[case.precision]).contiguous(memory_format=torch.channels_last)

    made = []
    for seed in range(max(2, min(args.most_copies, -(-args.working_set // case.bytes)))):
        torch.manual_seed(seed)
        fan_in = case.inputs * case.kernel**2
        weight = torch.randn(case.outputs, case.kernel, case.kernel, case.inputs, device=args.device) * fan_in**-0.5
        bias = torch.randn(case.outputs, device=args.device).to(TYPES[case.precision])
        x = image(case.batch, case.inputs, case.size, case.size)
        residual = image(*case.result) if case.epilogue == "res" else x
        y = torch.empty(case.result, dtype=x.dtype, device=args.device, memory_format=torch.channels_last)
        made.append(Copy(x, weight.to(x.dtype), bias, residual, y))
    return made


def step_of(case: Case, kernel: str, attributes: dict[str, object]) -> Step:
    return Step(case.name, kernel, (), (), (), attributes, precision=DType(case.precision))


def bound_shapes(case: Case, copy: Copy) -> tuple[list[BoundShape], BoundShape]:
    format = Format(DType(case.precision).storage, "channels_last")
    inputs = [BoundShape(0, tuple(copy.x.shape), format)]
    if case.epilogue == "res":
        inputs.append(BoundShape(1, case.result, format))
    return inputs, BoundShape(2, case.result, format, preallocated=True)


def cudnn_contestants(case: Case, copies: list[Copy], args) -> Iterator[Contestant]:
    """Every rank of the fused graph; with SiLU also the ready plans with SiLU behind them."""
    if args.context is None:
        return
    fused = {"relu": ["relu"], "silu": ["silu"], "res": ["add", "relu"]}[case.epilogue]
    for impl, kinds in (("cudnn", fused), *((("cudnn + silu", []),) if case.epilogue == "silu" else ())):
        for rank in range(args.ranks):
            epilogue = [{"kind": kind, "params": []} for kind in kinds]
            step = step_of(case, "cudnn.conv", case.attributes(rank=rank, epilogue=epilogue))

            def bind(copy: Copy, step: Step = step, impl: str = impl) -> Callable[[], object]:
                places = bound_shapes(case, copy)
                run = cudnn.bind_conv(step, copy.weight, copy.bias, *places, args.context, args.workspace)
                slots, y = copy.slots, copy.y
                return (lambda: run(slots)) if impl == "cudnn" else (lambda: (run(slots), F.silu(y, inplace=True)))

            start = time.perf_counter()
            try:
                first = bind(copies[0])
            except DeviceError as error:
                print(f"  {impl}: {error.cause}")
                break
            built = time.perf_counter() - start
            yield Contestant(impl, f"rank {rank}, built in {1e3 * built:.0f} ms", [first, *map(bind, copies[1:])])


def torch_contestants(case: Case, copies: list[Copy]) -> Iterator[Contestant]:
    """PyTorch's fused operator, and its calls as users write them."""
    if case.precision in ("float16", "bfloat16") and case.epilogue != "silu":
        fused = {"relu": "relu", "res": "add_relu"}[case.epilogue]
        step = step_of(case, "cudnn.torch_conv", case.attributes(fused=fused))

        def bind(copy: Copy) -> Callable[[], object]:
            inputs, output = bound_shapes(case, copy)
            output = BoundShape(output.slot, output.shape, output.format)  # PyTorch allocates
            run, slots = cudnn_torch.bind_conv(step, copy.weight, copy.bias, inputs, output), copy.slots

            def call() -> None:
                run(slots)
                copy.y = slots[2]

            return call

        yield Contestant("torch fused", f"cudnn_convolution_{fused}", [bind(copy) for copy in copies])

    def make(copy: Copy) -> Callable[[], object]:
        weight = copy.weight.permute(0, 3, 1, 2)

        def call() -> None:
            y = F.conv2d(copy.x, weight, copy.bias, case.stride, case.kernel // 2)
            y = y.add_(copy.residual) if case.epilogue == "res" else y
            copy.y = F.silu(y, inplace=True) if case.epilogue == "silu" else F.relu_(y)

        return call

    yield Contestant("torch", "F.conv2d and in-place operators", [make(copy) for copy in copies])


def reference(case: Case, copy: Copy) -> torch.Tensor:
    """The first and the last result of copy 0 in float64."""
    ends = [0, case.batch - 1]
    weight = copy.weight.permute(0, 3, 1, 2).double()
    y = F.conv2d(copy.x[ends].double(), weight, copy.bias.double(), case.stride, case.kernel // 2)
    y = y + copy.residual[ends].double() if case.epilogue == "res" else y
    return F.silu(y) if case.epilogue == "silu" else F.relu(y)


def error_of(case: Case, y: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error over the largest reference value; anything not finite in the whole result counts as 1e30."""
    if not bool(torch.isfinite(y).all()):
        return 1e30
    error = (y[[0, case.batch - 1]].double() - expected).abs().max() / expected.abs().max()
    return float(f"{float(error):.3g}")


def check_and_capture(case: Case, contestant: Contestant, copies: list[Copy], expected: torch.Tensor) -> None:
    own = copies[0].y
    own.fill_(float("nan"))
    contestant.calls[0]()
    torch.cuda.synchronize()
    contestant.error = error_of(case, copies[0].y, expected)
    copies[0].y = own
    for call in contestant.calls:
        call()
    torch.cuda.synchronize()
    contestant.graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(contestant.graph):
        for call in contestant.calls:
            call()


def take_turns(contestants: list[Contestant], args) -> None:
    """Replay the graphs of all in turn; a time is that of one call of a graph, in microseconds."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for turn in range(args.warmups + args.turns):
        for contestant in contestants:
            assert contestant.graph is not None
            begin.record()
            contestant.graph.replay()
            end.record()
            end.synchronize()
            if turn >= args.warmups:
                contestant.times_us.append(1e3 * begin.elapsed_time(end) / len(contestant.calls))


def measure(case: Case, args) -> list[Row]:
    copies = make_copies(case, args)
    kept = [copy.y for copy in copies]
    expected = reference(case, copies[0])
    contestants = []
    for contestant in (*cudnn_contestants(case, copies, args), *torch_contestants(case, copies)):
        try:
            check_and_capture(case, contestant, copies, expected)
            contestants.append(contestant)
        except RuntimeError as error:
            print(f"  {contestant.impl}, {contestant.note}, is left out: {str(error).splitlines()[0]}")
        for copy, y in zip(copies, kept, strict=True):
            copy.y = y
    take_turns(contestants, args)
    right = [c for c in contestants if c.error <= args.tolerance[case.precision]]
    fastest = {
        impl: min((c for c in right if c.impl == impl), key=lambda c: summarise(c.times_us)[0])
        for impl in dict.fromkeys(c.impl for c in right)
    }
    rows = []
    for c in contestants:
        note = c.note + ("; fastest" if fastest.get(c.impl) is c else "") + ("" if c in right else "; WRONG")
        rows.append(
            Row(
                "cuda_conv", case.name, c.impl, case.precision, "dense", case.batch, *summarise(c.times_us),
                case.flops, case.bytes, c.error, note,
            )
        )  # fmt: skip
    for impl, c in fastest.items():
        median = summarise(c.times_us)[0]
        print(
            f"{case.name:34s} {case.precision:9s} {impl:13s} {median:9.2f} us {case.flops / median / 1e6:7.1f} TFLOP/s"
            f"  error {c.error:.1e}  {c.note}"
        )
    return rows


def context_of(args) -> cudnn.Context | None:
    """cuDNN with an empty folder for plans, so that building is measured."""
    try:
        return cudnn.Context(torch.cuda.current_device(), Path(tempfile.mkdtemp()))
    except MissingLibrary as error:
        print(f"cuDNN's graphs are left out: {error}")
        return None


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four shapes, four ranks, fewer turns: under a minute")
    parser.add_argument("--case", action="append", help="only cases whose name contains this")
    parser.add_argument("--precision", action="append", choices=list(TYPES), help="default: float16 and tf32")
    parser.add_argument("--batch", action="append", type=int, help="default: 1 and 128")
    parser.add_argument("--ranks", type=int, default=MOST_RANKS)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--warmups", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None, help="results file")
    args = parser.parse_args()
    if args.quick:
        args.ranks, args.turns = min(args.ranks, 4), 15
    args.precision = args.precision or (["float16"] if args.quick else ["float16", "tf32"])
    args.batch = args.batch or [1, 128]
    args.device, args.most_copies = "cuda", 200
    args.tolerance = {"float16": 2.5e-3, "bfloat16": 2e-2, "tf32": 3e-3, "float32": 5e-5}
    return args


def cases(args) -> Iterator[tuple[Case, ...]]:
    """The wanted cases; those of one name, which differ in precision, together."""
    for shape in QUICK if args.quick else SHAPES:
        for batch in args.batch:
            same = tuple(Case(*shape, batch, precision) for precision in args.precision)
            if not args.case or any(text in same[0].name for text in args.case):
                yield same


def main() -> None:
    args = parsed()
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA device")
    torch.backends.cudnn.benchmark = False
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    args.working_set = 5 * properties.L2_cache_size // 2
    args.context, args.workspace = context_of(args), Workspace(torch.device("cuda"))
    gpu = short_name(properties.name)
    path = args.output or Path(__file__).parent / "results" / f"cuda_conv-{gpu}.json"
    extra: dict[str, object] = {
        "command": command_line(sys.argv), "gpu": properties.name, "working_set_bytes": args.working_set,
        "libraries": {"cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda},
    }  # fmt: skip
    if args.context is not None:
        extra["cudnn_frontend"] = args.context.cudnn.__version__
    count, wrong, start = 0, [], time.perf_counter()
    for same in cases(args):
        rows: list[Row] = []
        for case in same:
            torch.backends.cudnn.allow_tf32 = case.precision != "float32"
            with torch.inference_mode():
                rows += measure(case, args)
            torch.cuda.empty_cache()
        merge(path, rows, extra)  # after each case: what was measured is kept whatever the next one does
        count += len(rows)
        wrong += [row for row in rows if row.note.endswith("WRONG")]
    print(f"{count} rows in {time.perf_counter() - start:.0f} s -> {path.name}")
    if wrong:
        raise SystemExit(f"{len(wrong)} results are wrong, the first: {wrong[0]}")


if __name__ == "__main__":
    main()
