"""What the runtime itself costs: microseconds a step and a run, and gigabytes a second when engines are read.

    python benchmarks/bench_runtime.py

Steps that do nothing are run, so the time is that of the loop. Rows go to ``results/runtime-<machine>.json``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from results import Row, command_line, machine_name, merge, summarise
from tamis.devices.cpu import CpuDevice
from tamis.engine import Buffer, Engine, Format, Plan, Port, Step, read, save
from tamis.engine.plan import PLAN_VERSION
from tamis.formats import DType
from tamis.runtime import Session

STEPS = 1000
REPEATS = 200
FILE_BYTES = 1 << 28


class IdleDevice(CpuDevice):
    """A CPU whose kernels do nothing."""

    def bind(self, *arguments: Any) -> Callable[[list[Any]], None]:
        return lambda slots: None


def engine_of(steps: int, tensors: dict[str, np.ndarray]) -> Engine:
    port = Port("x", (1, 16), DType.FLOAT32)
    plan = Plan(
        name="idle", version=PLAN_VERSION, tamis="", device=CpuDevice().info(), threads=1, inputs=(port,),
        outputs=(replace(port, name="y"),), input_values=("x",), output_values=("y",),
        buffers=(
            Buffer("x", (1, 16), Format(), "input", 0, steps, 64),
            Buffer("y", (1, 16), Format(), "arena", 0, steps, 64),
        ),
        steps=tuple(Step(f"step{n}", "idle", ("x",), ("y",)) for n in range(steps)), arena_bytes=64,
        peak_bytes=128, layers=(), regions=(), engines=(), config={},
    )  # fmt: skip
    return Engine(plan, tensors)


def timed(call: Callable[[], Any], repeats: int) -> list[float]:
    """Microseconds of each of some calls."""
    call()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        call()
        samples.append((time.perf_counter_ns() - start) / 1e3)
    return samples


def row(case: str, samples: list[float], size: int = 0) -> Row:
    return Row("runtime", case, "tamis", "float32", "dense", 1, *summarise(samples), 0, size, max_rel_error=0.0)


def main() -> None:
    x = np.zeros((1, 16), np.float32)
    many = Session(engine_of(STEPS, {}), device=IdleDevice())
    one = Session(engine_of(1, {}), device=IdleDevice())
    nanoseconds = [sample / STEPS * 1e3 for sample in timed(many.bind([x]), REPEATS)]
    rows = [
        # In nanoseconds, since results are rounded to hundredths.
        replace(row("step", nanoseconds), note="nanoseconds a step"),
        row("bound-run", timed(one.bind([x]), 20 * REPEATS)),
        row("checked-run", timed(lambda: one.run([x]), 20 * REPEATS)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.tamis"
        save(engine_of(1, {"w": np.ones(FILE_BYTES, np.uint8)}), path)
        rows.append(row("read-verified", timed(lambda: read(path), 7), FILE_BYTES))
        rows.append(row("read-unverified", timed(lambda: read(path, verify=False), 50), FILE_BYTES))
    output = Path(__file__).parent / "results" / f"runtime-{machine_name()}.json"
    merge(output, rows, {"command": command_line(sys.argv)})
    for item in rows:
        print(f"{item.case:16} {item.median_us:12.3f} {item.note or 'us'}")


if __name__ == "__main__":
    main()
