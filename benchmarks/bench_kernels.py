"""Our kernels for tensor cores beside cuDNN, cuBLASLt and cuSPARSELt, layer by layer, bias and ReLU fused.

    python benchmarks/bench_kernels.py
    python benchmarks/bench_kernels.py --case conv3x3-256x256-14-b128 --case gemm-8192x8192x8192
    python benchmarks/bench_kernels.py --grouped    # grouped convolutions alone
    python benchmarks/bench_kernels.py --case stem-pool    # with the pooling behind it, as one kernel and as two
    python benchmarks/bench_kernels.py --level 4    # on Hopper, with the kernels for all GPUs since Ampere too
    python benchmarks/bench_kernels.py --level 5    # all tiles, those whose weights stay in registers among them
    python benchmarks/bench_kernels.py --device cpu --case gemm-256x256x64 --output trial.json     # try the script out

Each case is a graph of one layer with 2:4 weights, dense ones where an image has three channels, and goes through the
race of a build: all candidates in turns on random data and a cold L2 cache, every result checked on the GPU against
float32. Of each tactic the fastest candidate makes a row of ``results/kernels-GPU.json``; for ours the note names the
tile, and the times of the others. A case with pooling is a graph of two layers: a row for the fastest kernel that runs
both, and one for the fastest two, timed in turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpu_state import about_gpu, gpu_state, short_name
from pooled_pairs import race_pair
from results import Row, command_line, conv_name, merge
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import Conv, Linear, Op, Pointwise, Pool
from tamis.compiler.passes.note_sparsity import note_sparsity
from tamis.compiler.tactics import tactics_of
from tamis.compiler.tactics.base import flops_of, layer_of, moved_bytes_of
from tamis.compiler.tactics.generations import AMPERE
from tamis.compiler.tactics.pooled import pooled_layer
from tamis.compiler.tuner import open_track
from tamis.compiler.tuner.race import Entry, LayerRace, Track, prepare, race_layer
from tamis.compiler.tuner.timing import Clock
from tamis.devices.base import Device
from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.dtype import DType
from tamis.runtime import open_device

BUDGET_SECONDS = 600.0
OURS = ("tamis.hopper", "tamis.ampere")


@dataclass(frozen=True)
class Case:
    """A layer: ``kernel`` 0 is a matrix product of ``batch`` rows; ``residual``: one is added before the ReLU.

    ``inputs`` and ``outputs`` are the channels of all ``groups``. ``pool``: the size of windows of stride 2 that are
    pooled behind it, 0 for none; ``label`` is a name of its own.
    """

    kernel: int
    inputs: int
    outputs: int
    size: int
    batch: int
    stride: int = 1
    residual: bool = False
    groups: int = 1
    pool: int = 0
    label: str = ""

    @property
    def name(self) -> str:
        """A stable name, as ``conv3x3-256x256-14-b128`` or ``gemm-8192x8192x8192`` (outputs, inputs, rows)."""
        if self.label:
            return self.label
        if not self.kernel:
            return f"gemm-{self.outputs}x{self.inputs}x{self.batch}"
        tail = "-".join(
            [f"g{self.groups}"] * (self.groups > 1) + ["res"] * self.residual + [f"pool{self.pool}"] * (self.pool > 0)
        )
        return conv_name(self.kernel, (self.inputs, self.outputs), self.size, self.batch, self.stride, tail)


CASES = (
    *(Case(3, c, c, size, 128) for c, size in ((256, 56), (512, 28), (1024, 28))),
    *(Case(3, c, c, size, 128) for c, size in ((64, 56), (128, 28), (256, 14), (512, 7))),
    *(Case(3, c, c, size, 1) for c, size in ((64, 56), (128, 28), (256, 14), (512, 7))),
    Case(3, 64, 128, 56, 128, stride=2), Case(3, 256, 512, 14, 128, stride=2),
    # The 1x1 convolutions of ResNet-50: into a block, out of it, and its shortcuts.
    *(Case(1, 4 * c, c, size, 128) for c, size in ((64, 56), (128, 28), (256, 14), (512, 7))),
    *(Case(1, c, 4 * c, size, 128, residual=True) for c, size in ((64, 56), (128, 28), (256, 14), (512, 7))),
    Case(1, 64, 64, 56, 128), Case(1, 64, 256, 56, 128),
    *(Case(1, 4 * c, 8 * c, size, 128, stride=2) for c, size in ((64, 56), (128, 28), (256, 14))),
    *(Case(1, c, 4 * c, size, 1, residual=True) for c, size in ((256, 14), (512, 7))),
    # Short sums, whose weights may stay in registers: with a residual, on larger images, and longer ones in 2:4 alone.
    Case(3, 64, 64, 56, 128, residual=True), Case(3, 64, 64, 112, 32), Case(3, 128, 128, 28, 128, residual=True),
    Case(1, 512, 512, 28, 128), Case(0, 256, 256, 1, 100352), Case(0, 512, 512, 1, 50176),
    # First layers: of ResNets, and 3x3 of stride 2 as in MobileNets. Their weights are dense.
    Case(7, 3, 64, 224, 128, stride=2), Case(3, 3, 32, 224, 128, stride=2),
    # Grouped ones: of ResNeXt-50 32x4d, RegNetX-1.6GF (groups of 24), RegNetY-4.0GF (of 64) and RegNetX-8.0GF (of 120).
    *(Case(3, c, c, size, 128, groups=32) for c, size in ((128, 56), (256, 28), (512, 14), (1024, 7))),
    *(Case(3, c, c, size, 128, stride=2, groups=32) for c, size in ((256, 56), (512, 28), (1024, 14))),
    *(Case(3, c, c, size, 1, groups=32) for c, size in ((128, 56), (256, 28), (512, 14), (1024, 7))),
    Case(3, 408, 408, 14, 128, groups=17), Case(3, 912, 912, 7, 128, groups=38),
    Case(3, 192, 192, 28, 128, groups=3), Case(3, 512, 512, 14, 128, groups=8), Case(3, 720, 720, 14, 128, groups=6),
    # With the max pooling behind it: of ResNets and DenseNets, at batch 1 too; and of a VGG.
    Case(7, 3, 64, 224, 128, stride=2, pool=3, label="stem-pool"), Case(7, 3, 64, 224, 1, stride=2, pool=3),
    Case(3, 128, 128, 112, 32, pool=2), Case(3, 256, 256, 56, 32, pool=2),
    Case(0, 8192, 8192, 1, 8192), Case(0, 4096, 4096, 1, 2048), Case(0, 1024, 1024, 1, 12288),
    Case(0, 1024, 4096, 1, 12288), Case(0, 4096, 1024, 1, 12288),
)  # fmt: skip
TRIALS = (
    Case(0, 256, 256, 1, 64),
    Case(3, 16, 16, 8, 1),
    Case(3, 32, 32, 8, 1, groups=4),
    Case(3, 16, 16, 8, 1, pool=3),
)


def main() -> int:
    known = {case.name: case for case in CASES + TRIALS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(known), metavar="CASE", help="may be repeated")
    parser.add_argument("--grouped", action="store_true", help="the cases with groups alone")
    parser.add_argument("--precision", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument("--level", type=int, default=3, choices=range(6), help="how many algorithms of libraries race")
    parser.add_argument("--output", type=Path, help="results file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the script out")
    options = parser.parse_args()
    if options.device == "cpu" and options.output is None:
        parser.error("--device cpu needs --output: trials do not belong to the results")
    device = open_device(options.device)
    name = short_name(device.info().name)
    output = options.output or Path(__file__).parent / "results" / f"kernels-{name}.json"
    wanted = [case for case in CASES if case.groups > 1 or not options.grouped]
    for case in [known[name] for name in options.case] if options.case else wanted:
        before = gpu_state()
        graph, track = opened(case, DType(options.precision), device, options.level)
        rows = rows_of_pair(case, graph, track) if case.pool else rows_of(case, raced(graph, track))
        rows = [replace(row, note=f"{row.note}; {before} -> {gpu_state()}") for row in rows] if before else rows
        show(rows)
        merge(output, rows, about_gpu(device.info().name) | {"command": command_line(sys.argv)},
              key=("bench", "case", "impl", "sparsity", "precision"))  # fmt: skip
    print(f"wrote {output}")
    return 0


def opened(case: Case, precision: DType, device: Device, level: int) -> tuple[Graph, Track]:
    """The graph of a case, and what its races need: a clock with a cold cache."""
    graph = graph_of(case)
    kind = device.info().kind
    config = BuildConfig(
        device=kind,  # type: ignore[arg-type]
        precisions=(precision,) if kind == "cuda" else (DType.FLOAT32, precision),
        optimization_level=level, budget_seconds=BUDGET_SECONDS,
    )  # fmt: skip
    return graph, replace(open_track(graph, device, config), clock=Clock(device, cold=True))


def raced(graph: Graph, track: Track) -> LayerRace:
    """All candidates for the one layer of a graph."""
    layer, tactics = layer_of(graph, graph.nodes[0]), tactics_of(track.config.device)
    prepare([layer], tactics, track)
    return race_layer(layer, tactics, track)


def graph_of(case: Case) -> Graph:
    """One layer, and perhaps pooling behind it, with random weights, 2:4 where the channels allow it.

    Sums have about unit variance.
    """
    random = np.random.default_rng(0)
    taps, depth = case.kernel or 1, case.inputs // case.groups
    shape = (case.outputs, depth, taps, taps) if case.kernel else (case.outputs, depth)
    weight = random.standard_normal(shape, dtype=np.float32) / np.float32((depth * taps**2 / 2) ** 0.5)
    if depth % TWO_FOUR.m == 0:
        weight = np.where(magnitude_mask(weight, TWO_FOUR, 1), weight, np.float32(0))
    image = (case.batch, case.inputs, case.size, case.size) if case.kernel else (case.batch, case.inputs)
    program: tuple[Pointwise, ...] = (Pointwise("relu"),)
    if case.residual:
        program = (Pointwise("add", operand=3), *program)
    op: Op = Linear(True, program)
    if case.kernel:
        op = Conv((case.stride,) * 2, (taps // 2,) * 4, (1, 1), case.groups, True, program)
    types = {"x": TensorType(image), "w": TensorType(shape), "b": TensorType((case.outputs,))}
    (result,) = infer(replace(op, epilogue=()), list(types.values()))[:1]  # type: ignore[call-arg]
    types |= {"y": result} | ({"r": result} if case.residual else {})
    inputs = ("x", "w", "b", "r") if case.residual else ("x", "w", "b")
    constants = {"w": weight, "b": random.standard_normal(case.outputs, dtype=np.float32)}
    node = Node(case.name, op, inputs, ("y",))
    values = tuple(v for v in inputs if v not in constants)
    nodes: tuple[Node, ...] = (node,)
    if case.pool:
        pool = Pool("max", (case.pool,) * 2, (2, 2), ((case.pool - 1) // 2,) * 4, (1, 1))
        nodes = (node, Node(f"{case.name}.pool", pool, ("y",), ("z",)))
        types |= {"z": infer(pool, [types["y"]])[0]}
    return note_sparsity(Graph(case.name, values, nodes[-1].outputs, nodes, types, constants))


def rows_of_pair(case: Case, graph: Graph, track: Track) -> list[Row]:
    """One kernel for both layers and the fastest two, dense and 2:4."""
    found, failed = race_pair(graph, track)
    conv, pool = (layer_of(graph, node) for node in graph.nodes)
    for words in dict.fromkeys(failed):
        print(f"{case.name} {words}")
    rows = []
    flops = flops_of(conv) + flops_of(pool)
    for each in found:
        border = replace(each.choices[0], outputs=each.choices[-1].outputs)
        rows.append(
            Row("kernels", case.name, each.name, str(each.choices[0].precision), each.choices[0].sparsity, case.batch,
                each.timing.median_us, each.timing.p10_us, each.timing.p90_us, each.timing.n, flops,
                moved_bytes_of(pooled_layer(conv, pool), border), each.accuracy.max_relative_error, each.note)
        )  # fmt: skip
    return rows


def rows_of(case: Case, race: LayerRace) -> list[Row]:
    """The fastest of each tactic in 16 bits, ours with the times of all tiles; disqualified candidates are told."""
    rows = []
    names = list(dict.fromkeys(entry.choice.tactic for entry in race.entries))
    for name in names:
        entries = [e for e in race.entries if e.choice.tactic == name and e.choice.precision.size_bytes == 2]
        timed = sorted((e for e in entries if e.timing and not e.disqualified), key=median)
        wrong = [e.reason for e in entries if e.disqualified]
        if not timed:
            if wrong:
                print(f"{case.name} {name}: none works: {wrong[0]}")
            continue
        best = timed[0]
        assert best.timing is not None and best.accuracy is not None
        words = [described(best), f"{len(wrong)} failed: {wrong[0]}" if wrong else ""]
        if name.startswith(OURS):
            words.append("all: " + "; ".join(f"{described(e)} {median(e):.1f}" for e in timed))
        rows.append(
            Row("kernels", case.name, name, str(best.choice.precision), best.choice.sparsity, case.batch,
                best.timing.median_us, best.timing.p10_us, best.timing.p90_us, best.timing.n, flops_of(race.layer),
                moved_bytes_of(race.layer, best.choice), best.accuracy.max_relative_error,
                "; ".join(word for word in words if word))
        )  # fmt: skip
    return rows


def median(entry: Entry) -> float:
    """Microseconds."""
    return entry.timing.median_us if entry.timing else float("inf")


def described(entry: Entry) -> str:
    """The parameters of a candidate that vary."""
    parameters: dict[str, Any] = dict(entry.choice.parameters)
    if "blocks" in parameters:
        filters = 64 * parameters["blocks"] * parameters["groups"]
        usual = {"cluster": 1, "split": 1, "resident": 1}
        more = [f"{name} {parameters[name]}" for name, value in usual.items() if parameters[name] > value]
        more += [f"{parameters['lines']} lines"] if parameters["lines"] else []
        more += ["stationary"] if parameters["stationary"] else []
        return " ".join([f"{filters} x {parameters['pixels']} by {parameters['groups']}", *more])
    if "matrices" in parameters:
        tile = AMPERE.tile(parameters)
        return f"{tile.filters} x {tile.pixels}, warps {tile.down} x {tile.across}"
    return " ".join(f"{name} {value}" for name, value in parameters.items() if name not in ("architecture",))


def show(rows: Sequence[Row]) -> None:
    """One line for each row: time, speed, and how much faster than the fastest dense library."""
    libraries = [row.median_us for row in rows if row.sparsity == "dense" and not row.impl.startswith(OURS)]
    best = min(libraries, default=0.0)
    for row in sorted(rows, key=lambda row: row.median_us):
        speed = row.flops / row.median_us / 1e6
        print(f"{row.case:28} {row.impl:20} {row.sparsity:5} {row.median_us:9.1f} us {speed:7.1f} TFLOP/s "
              f"{best / row.median_us:5.2f}x  error {row.max_rel_error:.1e}  {row.note[:60]}", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
