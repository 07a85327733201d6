"""How fast Hopper's tensor cores are: dense and 2:4, operand A in shared memory or registers, beside copies or not.

    python benchmarks/bench_wgmma.py

The roofs for our kernels: ``cuda/wgmma_rate.cu`` on every multiprocessor, on random data, timed with events; forms take
turns, so that clocks hit all alike. Rows go to ``results/wgmma-GPU.json``; ``flops`` counts the zeros of 2:4.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
from collections.abc import Callable
from ctypes import addressof, c_uint64
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu_state import gpu_state, short_name
from results import Row, command_line, merge, summarise
from tamis.devices.cuda.kernels import current_stream
from tamis.devices.cuda.module import Module
from tamis.kernels.cuda.compile import compile_source

SOURCE = Path(__file__).parent / "cuda" / "wgmma_rate.cu"
STEPS, ROUNDS, STAGES = 8192, 7, 4
DATA_BYTES = 4 << 20  # stays in the L2 cache


@dataclass(frozen=True)
class Form:
    """One form of the instruction: ``fill``, the copy engine brings its operands meanwhile."""

    wide: int
    sparse: bool
    registers: bool
    fill: bool
    integers: bool

    @property
    def name(self) -> str:
        """As ``wgmma-f16-n256-registers-fill``."""
        where = "registers" if self.registers else "shared"
        return f"wgmma-{'s8' if self.integers else 'f16'}-n{self.wide}-{where}{'-fill' if self.fill else ''}"

    @property
    def defines(self) -> dict[str, str | int | float]:
        """The constants of the kernel."""
        return {"WIDE": self.wide, "SPARSE": int(self.sparse), "REGISTERS_A": int(self.registers),
                "FILL": int(self.fill), "INTEGERS": int(self.integers), "STEPS": STEPS,
                "CLUSTER": 1, "SPLIT": 0}  # fmt: skip

    @property
    def shared_bytes(self) -> int:
        """Shared memory: the stages and their barriers."""
        products = 2 if self.sparse else 4
        return STAGES * (self.wide * 128 + (1024 if self.registers else products * 4096)) + STAGES * 16

    def flops(self, blocks: int) -> int:
        """Of a launch: two warpgroups, 64 rows each, 128 bytes of depth a step."""
        return blocks * 2 * 2 * 64 * self.wide * (128 if self.integers else 64) * STEPS


FORMS = tuple(
    Form(wide, sparse, registers, fill, integers)
    for integers, wide, sparse, registers, fill in itertools.product(
        (False, True), (64, 128, 256), *((False, True),) * 3
    )
)


def main() -> int:
    properties = torch.cuda.get_device_properties(0)
    if (properties.major, properties.minor) != (9, 0):
        print(f"needs a Hopper GPU; this is {properties.name}")
        return 1
    blocks = properties.multi_processor_count
    data = {
        False: torch.randn(DATA_BYTES // 2, device="cuda").half(),
        True: torch.randint(-128, 128, (DATA_BYTES,), device="cuda", dtype=torch.int8),
    }
    out = torch.empty(blocks * 256, dtype=torch.int32, device="cuda")
    launches = {form: launcher(form, data[form.integers], out, blocks) for form in FORMS}
    times: dict[Form, list[float]] = {form: [] for form in FORMS}
    before = gpu_state()
    for _ in range(ROUNDS):
        for form in random.sample(FORMS, len(FORMS)):
            times[form].append(timed(launches[form]))
    state = f"{before} -> {gpu_state()}"
    rows = []
    for form in FORMS:
        precision = "int8" if form.integers else "float16"
        rows.append(Row("wgmma", form.name, "tamis", precision, "2:4" if form.sparse else "dense", 1,
                        *summarise(times[form]), form.flops(blocks), 0, 0.0, state))  # fmt: skip
        speed = form.flops(blocks) / statistics.median(times[form]) / 1e6
        print(f"{form.name:32} {rows[-1].sparsity:5} {rows[-1].median_us:9.1f} us {speed:7.1f} TFLOP/s", flush=True)
    output = Path(__file__).parent / "results" / f"wgmma-{short_name(properties.name)}.json"
    merge(output, rows, {"gpu": properties.name, "command": command_line(sys.argv)},
          key=("bench", "case", "precision", "sparsity"))  # fmt: skip
    print(f"wrote {output}")
    return 0


def launcher(form: Form, data: torch.Tensor, out: torch.Tensor, blocks: int) -> Callable[[], None]:
    """A function that launches a form."""
    module = Module(compile_source(str(SOURCE), form.defines, "sm_90a"), 0, form.name)
    numbers = (c_uint64 * 3)(data.data_ptr(), out.data_ptr(), DATA_BYTES)
    places = [addressof(numbers) + 8 * index for index in range(3)]
    launch = module.launcher("wgmma_rate", (blocks, 1, 1), (384, 1, 1), places, form.shared_bytes)
    return lambda _keep=numbers: launch(current_stream(0))


def timed(run: Callable[[], None]) -> float:
    """Microseconds of the second of two launches."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


if __name__ == "__main__":
    sys.exit(main())
