"""How long the kernels of a network take to compile for a GPU, and to be found on disk. Needs no GPU.

    python benchmarks/bench_compile.py --model resnet50 --batch 128

All tiles that a build would race are compiled as it does it, with an empty store and then from it. Rows go to
``results/compile-<machine>.json``: seconds as microseconds, ``n`` is the number of times, ``bytes`` are those of the
binaries. "first" is when every layer had the best tile of each tactic.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from models import export
from results import Row, command_line, machine_name, merge, summarise
from tamis.compiler import import_onnx
from tamis.compiler.config import BuildConfig
from tamis.compiler.passes import run_passes
from tamis.compiler.tactics import tactics_of
from tamis.compiler.tactics.ahead import Unit, compile_ahead, in_order
from tamis.compiler.tactics.base import Choice, Layer, Tactic, layer_of
from tamis.compiler.tuner.describe import signature_of
from tamis.engine.plan import DeviceInfo
from tamis.kernels import VARIABLE, kernel_store
from tamis.kernels.cuda import compile as toolchain

HOPPER = DeviceInfo("cuda", "Hopper", "sm_90", 132, ("fp16", "tf32", "bf16", "sparse_tensor_cores", "fp8"), {})
READS = 7


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--level", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ[VARIABLE] = str(Path(folder) / "store")
        model = Path(folder) / "model.onnx"
        export(options.model, model, batch=options.batch, compare=False)
        work = work_of(model, options.level)
        units, first = in_order(work), len(best_of(work))
        rows = measured(f"{options.model}-b{options.batch}", options.batch, units, first)
    note = f"{len(units)} kernels by {toolchain.compiler_name()}"
    output = Path(__file__).parent / "results" / f"compile-{machine_name()}.json"
    merge(output, rows, {"command": command_line(sys.argv), "load": round(os.getloadavg()[0], 1)})
    print(note)
    for row in rows:
        print(f"{row.impl:6} {row.median_us / 1e6:8.3f} s  {row.note}")
    return 0


Work = list[tuple[Layer, list[tuple[Tactic, Choice]]]]


def work_of(model: Path, level: int) -> Work:
    """The layers of a network that is 2:4 wherever it can be, each kind once, and what races for them in float16."""
    config = BuildConfig(device="cuda", precisions=("float16",), optimization_level=level)  # type: ignore[arg-type]
    graph = run_passes(import_onnx(model, {}))
    layers = {signature_of(layer): layer for layer in (layer_of(graph, node) for node in graph.nodes)}
    return [(layer, offers_of(layer, config)) for layer in layers.values()]


def offers_of(layer: Layer, config: BuildConfig) -> list[tuple[Tactic, Choice]]:
    tactics = [tactic for tactic in tactics_of("cuda") if tactic.refuses(layer, HOPPER, config) is None]
    return [(tactic, choice) for tactic in tactics for choice in tactic.choices(layer, HOPPER, config)]


def best_of(work: Work) -> list[Unit]:
    """The kernels of each tactic's first choice for each layer: they are the first in order."""
    firsts = [(layer, list({tactic.name: (tactic, choice) for tactic, choice in reversed(offers)}.values()))
              for layer, offers in work]  # fmt: skip
    return in_order(firsts)


def measured(case: str, batch: int, units: Sequence[Unit], first: int) -> list[Row]:
    """Compiled once with an empty store, then read from it several times as new processes would."""
    told: list[float] = []
    start = time.perf_counter()
    late = compile_ahead(units, float("inf"), lambda *_: told.append(time.perf_counter() - start))
    assert not late
    store = kernel_store()
    assert store is not None and store.usage().entries == len(units), "a kernel did not compile"
    size = store.usage().size_bytes
    reads = []
    for _ in range(READS):
        toolchain._compile.cache_clear()
        start = time.perf_counter()
        compile_ahead(units, float("inf"), lambda *_: None)
        reads.append((time.perf_counter() - start) * 1e6)
    note = f"{len(units)} kernels by {toolchain.compiler_name()}"

    def row(impl: str, samples: Sequence[float], note: str) -> Row:
        return Row("compile", case, impl, "float16", "2:4", batch, *summarise(samples), 0, size, 0.0, note)

    return [
        row("cold", [told[-1] * 1e6], note),
        row("first", [told[first - 1] * 1e6], f"the first {first} of them"),
        row("disk", reads, note),
    ]


if __name__ == "__main__":
    sys.exit(main())
