"""What early starts bring: networks of short kernels with and without them, in turns in one process.

    python benchmarks/bench_launch.py                                   # chains of our kernels, ResNet-50 at batch 1
    python benchmarks/bench_launch.py --case resnet50-b1 --ours --timing-cache kept.json
    python benchmarks/bench_launch.py --case resnet50-b1 --ours --exclude cudnn --exclude cublaslt --exclude cusparselt
    python benchmarks/bench_launch.py --engine model.tamis              # any engine for this GPU, on random inputs

Everything is recorded twice as a CUDA graph, once with ``OVERLAP.off()``, over the same memory; blocks of replays
alternate in shuffled order and are timed with CUDA events. Results must be the same bits. Rows are added to
``results/launch-GPU.json``.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import tamis
from cuda_contestants import TAMIS_PRECISIONS, Case, export_case
from cuda_race import Contestant, Gpu, Outputs, race
from gpu_state import gpu_state, short_name
from models import build as build_model
from results import Row, command_line, merge, summarise
from tamis.compiler import tactics
from tamis.compiler.tactics.base import Choice
from tamis.compiler.tactics.cuda_steps import kernel_step
from tamis.compiler.tactics.implicit_gemm import TARGET, ImplicitGemm
from tamis.devices.base import BoundShape, Runner
from tamis.devices.cuda import kernels
from tamis.devices.cuda.graph import record
from tamis.devices.cuda.info import cuda_info
from tamis.devices.cuda.overlap import OVERLAP, can_overlap
from tamis.engine import Engine, Format, Step, read
from tamis.formats.dtype import DType
from tamis.formats.hopper import pack_hopper
from tamis.kernels.cuda.implicit_gemm import Convolution, Epilogue, deepest, implicit_gemm_hopper
from tamis.kernels.cuda.pointwise import Operand, PointwiseStep, pointwise
from tamis.kernels.cuda.specification import Argument, Kernel

BENCH = "launch"
LINKS = 48  # kernels of a chain
MODEL = Case("resnet50-b1", "resnet50", 1)
RELU = PointwiseStep("relu")


@dataclass(frozen=True)
class Subject:
    """What is measured: ``make`` records it and returns the replay; ``note`` tells how many kernels may start early."""

    name: str
    make: Callable[[], Callable[[], Outputs]]
    note: str


def main() -> int:
    known = ("chain-relu", "chain-conv", MODEL.name)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--case", action="append", choices=known, help="only this one (may be repeated)")
    add("--engine", type=Path, metavar="FILE", help="this engine instead")
    add("--ours", action="store_true", help="let our convolutions race in the build, where they do not by themselves")
    add("--exclude", action="append", default=[], metavar="TACTIC", help="keep a tactic out of the build")
    add("--timing-cache", type=Path, metavar="FILE", help="of the build")
    add("--build-budget", type=float, default=60.0, metavar="SECONDS", help="for races (default: %(default)s)")
    add("--rounds", type=int, default=15, help="blocks of each (default: %(default)s)")
    add("--output", type=Path, help="results file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU")
        return 1
    if not can_overlap(0) or not OVERLAP.on:
        print(f"kernels do not overlap here: {OVERLAP.reason or 'the GPU is older than sm_90'}")
        return 1
    output = options.output or Path(__file__).parent / "results" / f"{BENCH}-{short_name(cuda_info().name)}.json"
    rows: list[Row] = []
    for name in (options.engine.stem,) if options.engine else options.case or known:
        if name == "chain-conv" and cuda_info().architecture != "sm_90":
            print(f"not run: {name}: needs Hopper's instructions")
            continue
        rows += measure(subject(name, options), options.rounds)
    merge(output, rows, {"command": command_line(sys.argv)})
    print(f"wrote {output}")
    return 0


def subject(name: str, options: argparse.Namespace) -> Subject:
    """A chain, a model or the engine of a file."""
    if name == "chain-relu":
        shape = (1, 64, 56, 56)
        kernel = pointwise([RELU], [Operand(shape, DType.FLOAT16, True, Argument("in", 0))], shape, DType.FLOAT16, True)
        return chain(name, kernel, {}, cuda_info().architecture, shape)
    if name == "chain-conv":
        layer = Convolution(1, 14, 14, 256, 256, (3, 3), pads=(1, 1, 1, 1))
        weight = np.random.default_rng(0).standard_normal((256, 9, 256)) / np.sqrt(9 * 256 / 2)
        tile = deepest(1, 1, 64, 1, 4, sparse=False)
        kernel = implicit_gemm_hopper(layer, tile, DType.FLOAT16, cuda_info().cores, Epilogue((RELU,)), sparse=False)
        packed = pack_hopper(weight.astype(np.float16), tile.filters // 64, sparse=False).data
        return chain(name, kernel, {"weight": packed}, TARGET, (1, 256, 14, 14))
    return engine_subject(name, read(options.engine) if options.engine else built(options))


def chain(
    name: str, kernel: Kernel, constants: dict[str, np.ndarray], architecture: str, shape: tuple[int, ...]
) -> Subject:
    """One kernel again and again, between two buffers; each link has weights of its own, as layers have."""
    choice = Choice("tamis", DType.FLOAT16, (), (), parameters={"architecture": architecture})
    step, packed = kernel_step(
        kernel, choice, name=name, layers=(), inputs=("x",), outputs=("y",), constants=constants, moved_bytes=0
    )
    slots = [torch.randn(shape, device="cuda").half() for _ in range(3)]  # the input and the two buffers
    runners: list[Runner] = []
    for link in range(LINKS):
        tensors = {name: torch.from_numpy(array.copy()).cuda() for name, array in packed.items()}
        given, made = BoundShape(1 + link % 2 if link else 0, (), Format()), 1 + (link + 1) % 2
        runners.append(kernels.bind(step, tensors, [given], [BoundShape(made, (), Format(), preallocated=True)]))

    def run() -> None:
        for runner in runners:
            runner(slots)

    def make() -> Callable[[], Outputs]:
        replay = record(run)

        def launch() -> Outputs:
            replay()
            return [slots[1 + LINKS % 2]]

        return launch

    return Subject(name, make, f"{LINKS} kernels")


def built(options: argparse.Namespace) -> Engine:
    """ResNet-50 with 2:4 weights."""
    ours = tuple(t for t in (ImplicitGemm(sparse=False), ImplicitGemm(sparse=True)) if options.ours)
    racing = {tactic.name for tactic in tactics.CUDA_TACTICS}
    tactics.CUDA_TACTICS = (*tactics.CUDA_TACTICS, *(t for t in ours if t.name not in racing))  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{MODEL.name}.onnx"
        export_case(MODEL, build_model(MODEL.model, "2:4")[1], "float16", path)
        return tamis.build(
            path, device="cuda", precisions=TAMIS_PRECISIONS["float16"], timing_cache=options.timing_cache,
            budget_seconds=options.build_budget, exclude_tactics=tuple(options.exclude),
        )  # fmt: skip


def engine_subject(name: str, engine: Engine) -> Subject:
    session, plan = tamis.load(engine), engine.plan
    generator = np.random.default_rng(0)
    values = {port.name: generator.standard_normal(port.shape).astype(port.dtype.numpy) for port in plan.inputs}
    inputs = {name: torch.from_numpy(value).cuda() for name, value in values.items()}
    early = [able(step) for step in plan.steps]
    pairs = sum(first and second for first, second in itertools.pairwise(early))
    note = f"{len(plan.steps)} steps, {sum(early)} may start early, {pairs} of them behind one of ours"
    return Subject(name, lambda: session.bind(inputs), note)


def able(step: Step) -> bool:
    """Whether a step's kernel may start early; also, it lets the next one do so."""
    return bool(step.attributes.get("overlaps")) and not step.waits


def measure(what: Subject, rounds: int) -> Sequence[Row]:
    """The rows of both ways."""
    with OVERLAP.off():
        plain = what.make()
    early = what.make()
    first, second = ([output.clone() for output in replay()] for replay in (plain, early))
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    entries = [Contestant(impl, "float16", "", [replay]) for impl, replay in (("early", early), ("plain", plain))]
    race(entries, Gpu(), rounds, random.Random(0), lambda impl: None)
    note = "; ".join(word for word in (what.note, "" if same else "the results differ", OVERLAP.reason) if word)
    rows = [
        Row(BENCH, what.name, entry.impl, "float16", "", 1, *summarise(entry.samples), 0, 0, 0.0 if same else 1e30,
            f"{note}; {gpu_state()}")
        for entry in entries
    ]  # fmt: skip
    gained = rows[1].median_us - rows[0].median_us
    print(
        f"{what.name}: {rows[1].median_us:.1f} us, with early starts {rows[0].median_us:.1f} us "
        f"({rows[1].median_us / rows[0].median_us:.3f} times as fast, {gained:.1f} us less); {note}",
        flush=True,
    )
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
