"""Our CUDA kernels for what surrounds the matrix products, beside PyTorch's eager ones and beside a plain copy.

    python benchmarks/bench_cuda_kernels.py --quick
    python benchmarks/bench_cuda_kernels.py --case "layer norm bert" --precision float16

These kernels are bound by memory, so the figure is bytes a second: every input read once and every output written
once, over the time. The roof is a device-to-device copy, measured in the same run. Calls rotate through tensors of
more than twice the L2 cache, are captured in CUDA graphs, and the graphs take turns. Results are checked against
float64 in the same run, over outputs that hold NaN. Rows go to ``results/cuda_kernels-<gpu>.json``.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpu_state import short_name
from results import Row, command_line, merge, summarise
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Node, TensorType
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import Concat, Elementwise, LayerNorm, Op, Pointwise, Pool, Reduce, Softmax
from tamis.compiler.tactics.base import Choice, Layer
from tamis.compiler.tactics.conversion import conversion_step
from tamis.compiler.tactics.cuda_kernels import TamisCuda
from tamis.compiler.tactics.cuda_steps import kernel_step
from tamis.devices.base import BoundShape, Runner
from tamis.devices.cuda import kernels
from tamis.devices.cuda.info import cuda_info
from tamis.engine.plan import Format, Step
from tamis.formats.dtype import DType
from tamis.kernels.cuda.movement import space_to_depth

TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 2e-6, "float16": 6e-4, "bfloat16": 5e-3}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One layer. ``eager`` is what PyTorch users write; ``constants`` are the inputs that do not change."""

    name: str
    op: Op
    shapes: tuple[Shape, ...]
    eager: Callable[..., torch.Tensor]
    constants: tuple[int, ...] = ()
    quick: bool = False


@dataclass(frozen=True)
class Conversion:
    """A change of format, or padding of blocks of pixels to ``channels``, from float32 or the precision itself."""

    name: str
    shape: Shape
    layouts: tuple[str, str]
    source: str | None = None
    channels: int | None = None
    block: int = 1
    quick: bool = False


def _program(*steps: tuple[str, int | None]) -> Elementwise:
    return Elementwise(tuple(Pointwise(kind, operand=operand) for kind, operand in steps))


def _norm(rows: Shape, residual: bool) -> tuple[LayerNorm, tuple[Shape, ...]]:
    width = (rows[-1],)
    return LayerNorm(-1, 1e-5, residual=residual), (rows, width, width, *([rows] if residual else []))


def _layer_norm(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *residual: torch.Tensor) -> torch.Tensor:
    x = x + residual[0] if residual else x
    return F.layer_norm(x, scale.shape, scale.to(x.dtype), bias.to(x.dtype))


_POOL = Pool("max", (3, 3), (2, 2), (1, 1, 1, 1), (1, 1))
CASES: tuple[Case | Conversion, ...] = (
    Case("residual relu resnet", _program(("add", 1), ("relu", None)), ((128, 256, 56, 56),) * 2,
         lambda x, r: F.relu(x + r), quick=True),
    Case("residual relu 7x7", _program(("add", 1), ("relu", None)), ((128, 2048, 7, 7),) * 2,
         lambda x, r: F.relu(x + r)),
    Case("silu detector", _program(("silu", None)), ((32, 64, 160, 160),), F.silu, quick=True),
    Case("gate mobile", _program(("sigmoid", None), ("mul", 1)), ((128, 96, 1, 1), (128, 96, 56, 56)),
         lambda g, x: g.sigmoid() * x),
    Case("gelu bert", _program(("gelu", None)), ((32, 384, 3072),), F.gelu, quick=True),
    Case("bias gelu bert", _program(("add", 1), ("gelu", None)), ((32, 384, 3072), (3072,)),
         lambda x, b: F.gelu(x + b.to(x.dtype)), (1,)),
    Case("layer norm bert", *_norm((32, 384, 768), False), _layer_norm, (1, 2), quick=True),
    Case("residual norm bert", *_norm((32, 384, 768), True), _layer_norm, (1, 2), quick=True),
    Case("layer norm bert batch 1", *_norm((1, 128, 768), True), _layer_norm, (1, 2)),
    Case("layer norm vit-l", *_norm((64, 197, 1024), True), _layer_norm, (1, 2)),
    Case("softmax bert", Softmax(-1), ((32, 12, 384, 384),), lambda x: x.softmax(-1), quick=True),
    Case("softmax vit", Softmax(-1), ((64, 12, 197, 197),), lambda x: x.softmax(-1)),
    Case("softmax classes", Softmax(-1), ((4096, 1000),), lambda x: x.softmax(-1)),
    Case("max pool resnet", _POOL, ((128, 64, 112, 112),), lambda x: F.max_pool2d(x, 3, 2, 1), quick=True),
    Case("max pool detector", Pool("max", (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)), ((32, 256, 20, 20),),
         lambda x: F.max_pool2d(x, 5, 1, 2)),
    Case("average pool densenet", Pool("average", (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)), ((64, 256, 56, 56),),
         lambda x: F.avg_pool2d(x, 2, 2)),
    Case("global average resnet", Reduce("mean", (2, 3), True), ((128, 2048, 7, 7),),
         lambda x: x.mean((2, 3), keepdim=True), quick=True),
    Case("concat densenet", Concat(1), ((64, 256, 28, 28), (64, 32, 28, 28)), lambda a, b: torch.cat((a, b), 1)),
    Conversion("to channels last", (64, 256, 56, 56), ("row_major", "channels_last"), quick=True),
    Conversion("to row major", (64, 2048, 7, 7), ("channels_last", "row_major")),
    Conversion("from float32", (64, 256, 56, 56), ("channels_last", "channels_last"), "float32"),
    Conversion("pad to 4", (256, 3, 224, 224), ("row_major", "channels_last"), "float32", 4, quick=True),
    Conversion("pad to 8", (256, 3, 224, 224), ("row_major", "channels_last"), "float32", 8),
    Conversion("blocks of 2", (256, 3, 224, 224), ("row_major", "channels_last"), "float32", 16, 2, quick=True),
    Conversion("blocks of 2, same type", (256, 3, 224, 224), ("row_major", "channels_last"), None, 16, 2),
    Conversion("blocks of 2, channels last", (256, 3, 224, 224), ("channels_last", "channels_last"), None, 16, 2),
    Conversion("patches of 16", (256, 3, 224, 224), ("row_major", "channels_last"), "float32", 768, 16),
)  # fmt: skip


@dataclass
class Contestant:
    """One implementation: ``calls`` do the same work on different tensors; ``result`` is what the first gives."""

    impl: str
    bytes: int
    calls: list[Callable[[], object]]
    result: Callable[[], torch.Tensor]
    error: float = 0.0
    graph: Any = None
    launches: int = 0
    times_us: list[float] = field(default_factory=list)


def tensor(shape: Shape, dtype: torch.dtype, layout: str) -> torch.Tensor:
    """Random values in a layout."""
    last = layout == "channels_last" and len(shape) == 4
    made = torch.randn(shape, dtype=torch.float32, device="cuda").to(dtype)
    return made.contiguous(memory_format=torch.channels_last) if last else made


def size_of(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def bind(
    step: Step, constants: Mapping[str, torch.Tensor], pairs: Sequence[tuple[torch.Tensor, Format]], count: int
) -> Callable[[], None]:
    """The step on these tensors, of which the last (behind ``count`` inputs) are outputs."""
    slots = [t for t, _ in pairs]
    places = [BoundShape(i, tuple(t.shape), f, i >= count) for i, (t, f) in enumerate(pairs)]
    run: Runner = kernels.bind(step, constants, places[:count], places[count:])
    return lambda: run(slots)


def on_gpu(constants: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()).cuda() for name, array in constants.items()}


def copies_for(one: int, args: argparse.Namespace) -> int:
    return max(1, min(-(-args.working_set // max(one, 1)), 64))


def layer_contestants(case: Case, precision: str, args: argparse.Namespace) -> tuple[list[Contestant], torch.Tensor]:
    names = tuple(f"v{i}" for i in range(len(case.shapes)))
    types = {name: TensorType(shape) for name, shape in zip(names, case.shapes, strict=True)}
    types["y"] = infer(case.op, list(types.values()))[0]
    generator = np.random.default_rng(0)
    constants = {names[i]: generator.standard_normal(case.shapes[i]).astype(np.float32) for i in case.constants}
    layer = Layer(Node(case.name, case.op, names, ("y",)), types, constants)
    tactic, config = TamisCuda(), BuildConfig(device="cuda", precisions=(precision,))
    reason = tactic.refuses(layer, args.info, config)
    assert reason is None, reason
    # The last choice of a precision has channels last where there are images.
    choice: Choice = [c for c in tactic.choices(layer, args.info, config) if c.precision == precision][-1]
    lowered = tactic.lower(layer, choice)
    uploaded = on_gpu(lowered.constants)
    (step,) = lowered.steps
    formats = dict(zip((*layer.values, "y"), (*choice.inputs, *choice.outputs), strict=True))
    ours, eager, held, outputs, inputs = [], [], {}, [], []
    first_size = 0
    while not inputs or len(inputs) < copies_for(first_size, args):
        values = {n: tensor(types[n].shape, TORCH[precision], formats[n].layout) for n in layer.values}
        y = tensor(types["y"].shape, TORCH[precision], formats["y"].layout).fill_(float("nan"))
        pairs = [(values[n], formats[n]) for n in step.inputs] + [(y, formats["y"])]
        ours.append(bind(step, uploaded, pairs, len(step.inputs)))
        given = [values[n] if n in values else torch.from_numpy(constants[n]).cuda() for n in names]
        eager.append(_keeping(case.eager, given, held, len(inputs)))
        inputs.append(given)
        outputs.append(y)
        first_size = size_of([*values.values(), y])
    exact = case.eager(*(value.double() for value in inputs[0]))
    moved = first_size + size_of([t for n, t in zip(names, inputs[0], strict=True) if n in constants])
    return [
        Contestant("tamis.cuda", moved, ours, lambda: outputs[0]),
        Contestant("torch", moved, eager, lambda: held[0]),
    ], exact


def _keeping(
    eager: Callable[..., torch.Tensor], given: list[torch.Tensor], held: dict, index: int
) -> Callable[[], None]:
    def call() -> None:
        held[index] = eager(*given)

    return call


def blocked_shape(case: Conversion) -> Shape:
    """The shape of a case's result."""
    batch, channels, *size = case.shape
    return (batch, case.channels or channels, *(extent // case.block for extent in size))


def moving_step(
    case: Conversion, given: Format, made: Format, args: argparse.Namespace
) -> tuple[Step, dict[str, np.ndarray]]:
    """The step from ``x`` to ``y`` of a case, with its constants."""
    if case.channels is None:
        return conversion_step("x", "y", case.shape, given, made, args.info)
    parameters = {"architecture": args.info.architecture}
    lies, size = (given.dtype, given.layout == "channels_last"), blocked_shape(case)[2:]
    return kernel_step(
        space_to_depth(case.shape, lies, case.block, (size[0], size[1]), case.channels, made.dtype),
        Choice("tamis.cuda", made.dtype, (given,), (made,), parameters=parameters), name=case.name, layers=(),
        inputs=("x",), outputs=("y",), constants={}, moved_bytes=0,
    )  # fmt: skip


def conversion_contestants(
    case: Conversion, precision: str, args: argparse.Namespace
) -> tuple[list[Contestant], torch.Tensor]:
    source = case.source or precision
    shape = blocked_shape(case)
    given, made = Format(DType(source), case.layouts[0]), Format(DType(precision), case.layouts[1])
    step, binaries = moving_step(case, given, made, args)
    uploaded = on_gpu(binaries)
    ours, eager, held, outputs, inputs = [], [], {}, [], []
    order = torch.channels_last if case.layouts[1] == "channels_last" else torch.contiguous_format

    def by_torch(x: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(x, case.block) if case.block > 1 else x
        x = F.pad(x, (0, 0, 0, 0, 0, shape[1] - x.shape[1])) if case.channels else x
        return x.to(TORCH[precision] if x.dtype != torch.float64 else x.dtype, memory_format=order)

    while not inputs or len(inputs) < copies_for(size_of([inputs[0], outputs[0]]), args):
        x = tensor(case.shape, TORCH[source], case.layouts[0])
        y = tensor(shape, TORCH[precision], case.layouts[1]).fill_(float("nan"))
        ours.append(bind(step, uploaded, [(x, given), (y, made)], 1))
        eager.append(_keeping(by_torch, [x], held, len(inputs)))
        inputs.append(x)
        outputs.append(y)
    moved = size_of([inputs[0], outputs[0]])
    return [
        Contestant("tamis.cuda", moved, ours, lambda: outputs[0]),
        Contestant("torch", moved, eager, lambda: held[0]),
    ], by_torch(inputs[0].double())


def copy_contestant(args: argparse.Namespace) -> Contestant:
    """The roof: bytes copied from one half of a large block to the other."""
    source = torch.empty(args.copy_bytes // 2, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return Contestant("copy", args.copy_bytes, [lambda: target.copy_(source)], lambda: target)


def capture(contestant: Contestant, exact: torch.Tensor | None, args: argparse.Namespace) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        contestant.calls[0]()
    torch.cuda.synchronize()
    if exact is not None:
        error = float((contestant.result().double() - exact).abs().max() / exact.abs().max())
        contestant.error = float(f"{1e30 if math.isnan(error) else error:.3g}")
    contestant.launches = max(len(contestant.calls), args.launches)
    contestant.graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(contestant.graph, stream=stream):
        for i in range(contestant.launches):
            contestant.calls[i % len(contestant.calls)]()


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


def measure(case: Case | Conversion, precision: str, args: argparse.Namespace) -> list[Row]:
    torch.manual_seed(0)
    make = layer_contestants if isinstance(case, Case) else conversion_contestants
    contestants, exact = make(case, precision, args)  # type: ignore[operator]
    for contestant in contestants:
        capture(contestant, exact, args)
    del exact
    contestants.append(args.copy)
    args.copy.times_us.clear()
    take_turns(contestants, args.rounds)
    roof = args.copy.bytes / summarise(args.copy.times_us)[0]
    rows = []
    for contestant in contestants[:-1]:
        median, low, high, n = summarise(contestant.times_us)
        rate = contestant.bytes / median
        note = f"{rate / 1e3:.0f} GB/s, {rate / roof:.2f} of a copy at {roof / 1e3:.0f} GB/s"
        shape = case.shapes[0] if isinstance(case, Case) else case.shape
        rows.append(Row("cuda_kernels", f"{case.name}-{precision}", contestant.impl, precision, "dense", shape[0],
                        median, low, high, n, 0, contestant.bytes, contestant.error, note))  # fmt: skip
    return rows


def report(rows: list[Row]) -> None:
    for row in rows:
        print(f"{row.case:>36}  {row.impl:>10}  {row.median_us:>8.2f} us  ({row.p10_us:.2f} to {row.p90_us:.2f})  "
              f"{row.note}  error {row.max_rel_error:.1e}", flush=True)  # fmt: skip
    print(f"{'':>36}  torch / ours = {rows[1].median_us / rows[0].median_us:.2f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="half of the cases in float16, fewer rounds: under a minute"
    )
    parser.add_argument("--case", action="append", help="name of a case; may be repeated")
    parser.add_argument("--precision", action="append", choices=sorted(TORCH), help="may be repeated")
    parser.add_argument("--rounds", type=int, default=0, help="0: 20, or 8 when quick")
    parser.add_argument(
        "--launches", type=int, default=10, help="calls in a graph, at least one for each set of tensors"
    )
    parser.add_argument("--working-set-mb", type=int, default=160, help="bytes that calls rotate through")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.rounds = args.rounds or (8 if args.quick else 20)
    args.working_set, args.copy_bytes = args.working_set_mb << 20, 1 << 30
    args.precision = args.precision or (["float16"] if args.quick else ["float32", "float16", "bfloat16"])
    return args


def main() -> int:
    args = arguments()
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 6
    args.info = cuda_info()
    begin, results = time.perf_counter(), []
    with torch.inference_mode():
        args.copy = copy_contestant(args)
        capture(args.copy, None, args)
        for case in CASES:
            if (args.case and case.name not in args.case) or (args.quick and not args.case and not case.quick):
                continue
            for precision in args.precision:
                rows = measure(case, precision, args)
                report(rows)
                results += rows
                gc.collect()
                torch.cuda.empty_cache()
    gpu = short_name(args.info.name)
    out = args.out or Path(__file__).parent / "results" / f"cuda_kernels-{gpu}.json"
    extra = {
        "command": command_line(sys.argv), "gpu": args.info.name, "architecture": args.info.architecture,
        "libraries": dict(args.info.libraries), "working_set_bytes": args.working_set,
        "seconds": round(time.perf_counter() - begin, 1),
    }  # fmt: skip
    merge(out, results, extra)
    print(f"written: {out} after {time.perf_counter() - begin:.0f} s")
    wrong = [row for row in results if row.impl == "tamis.cuda" and row.max_rel_error > TOLERANCE[row.precision]]
    for row in wrong:
        print(f"WRONG: {row.case}: error {row.max_rel_error:.2e}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
