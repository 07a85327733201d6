"""One case of bench_cuda.py, in a process of its own: makes the contestants, races them, writes a report.

The report is written again after every step, so that what was measured survives whatever happens next, and it names
the contestant that was being worked on, so that the culprit of a crash is known.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compile_cache import CompileCache
from cuda_contestants import MAKERS, Case, NotApplicable, Setting, export_case, reference, stored
from cuda_race import WRONG, BrokenMachine, Contestant, Cpu, Gpu, Machine, check, fail, one_line, race
from gpu_state import gpu_state
from models import build as build_model
from models import get
from results import Row, summarise

BENCH = "cuda-models"
POLL_SECONDS = 0.2
EXPORT_SECONDS = 300.0  # longest wait for the exporter, which may have died
SPARE_SECONDS = 15.0  # to race and to write, after the last contestant is made


@dataclass(frozen=True)
class Job:
    """What the process of a case is asked to do; ``excluded`` are contestants that broke earlier tries."""

    case: Case
    precision: str
    impls: tuple[str, ...]
    excluded: tuple[str, ...]
    rounds: int
    seconds: float
    device: str
    folder: Path
    report: Path
    timing_cache: Path
    compile_cache: Path | None
    build_seconds: float
    level: int
    plans: Path | None = None


class Report:
    """What is known so far, kept in a file: rows, the contestant at work, what was not run and why."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"rows": [], "working_on": "", "reason": "", "not_run": {}, "meta": {}}

    def note(self, **entries: Any) -> None:
        """Change entries and write the file, whole or not at all."""
        self.content |= entries
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.content))
        draft.replace(self.path)

    def working_on(self, impl: str) -> None:
        self.note(working_on=impl)


def run_case(job: Job, makers: Sequence[tuple[str, Callable[[Setting], Contestant]]] = MAKERS) -> None:
    """Race a case and leave the rows in the report. Raises ``BrokenMachine`` when the device broke under one."""
    end = time.monotonic() + job.seconds
    report = Report(job.report)
    report.note(meta={"state_before": gpu_state()})
    machine: Machine = Gpu() if job.device == "cuda" else Cpu()
    setting = prepare(job, machine)
    references, flops = reference(setting)
    report.note(meta=report.content["meta"] | {"versions": versions()})
    contestants: list[Contestant] = []

    def snapshot() -> None:
        state = gpu_state()
        before = report.content["meta"]["state_before"]
        rows = [asdict(row_of(setting.case, c, flops, f"{before} -> {state}" if state else "")) for c in contestants]
        report.note(rows=rows, meta=report.content["meta"] | {"state_after": state})

    def turn(rounds: int) -> None:
        race(contestants, machine, rounds, random.Random(0), report.working_on)
        snapshot()

    try:
        for impl, make in makers:
            if impl not in job.impls or impl in job.excluded:
                continue
            if impl == "torch.compile":
                turn(1)  # rows of all the others, should this one take for ever
                expected = 30 if setting.compile_cache.has(job.case.name) else job.case.compile_seconds
                left = end - time.monotonic() - SPARE_SECONDS
                if expected > left:
                    report.content["not_run"][impl] = (
                        f"takes about {expected} s to compile, {max(left, 0):.0f} s are left"
                    )
                    continue
            report.working_on(impl)
            contestant = made(impl, make, setting, machine)
            if isinstance(contestant, str):
                report.content["not_run"][impl] = contestant
                continue
            contestants.append(contestant)
            check(contestant, references, machine)
        for contestant in contestants:
            contestant.samples.clear()
        turn(job.rounds)
        for contestant in contestants:  # again: what broke in between must not pass
            report.working_on(contestant.impl)
            check(contestant, references, machine)
    except BrokenMachine as broken:
        report.note(working_on=broken.impl, reason=broken.reason)
        raise
    snapshot()
    report.note(working_on="")


def made(impl: str, make: Callable[[Setting], Contestant], setting: Setting, machine: Machine) -> Contestant | str:
    """A contestant, failed or not; or why there is none."""
    try:
        return make(setting)
    except NotApplicable as reason:
        return str(reason)
    except Exception as error:  #  whatever a contestant raises costs its own row only
        failed = Contestant(impl, setting.precision, "dense", [])
        fail(failed, error, machine)
        if setting.machine.device.type == "cuda":
            torch.cuda.empty_cache()  # of what it held when it ran out of memory
        return failed


def row_of(case: Case, contestant: Contestant, flops: int, state: str) -> Row:
    """The row of a contestant; one that failed, or has no samples yet, has no time."""
    failure = contestant.failure or ("" if contestant.samples else "no time was left")
    times = (0.0, 0.0, 0.0, 0) if failure else summarise(contestant.samples)
    words = (f"failed: {failure}" if failure else f"cosine {contestant.cosine:.6f}", contestant.note, state)
    compared = not failure or failure.startswith(WRONG)
    error = float(f"{contestant.error if compared else 1e30:.4g}")
    note = "; ".join(word for word in words if word)
    return Row(BENCH, case.name, contestant.impl, contestant.precision, contestant.sparsity, case.batch, *times,
               flops, 0, error, note)  # fmt: skip


def prepare(job: Job, machine: Machine) -> Setting:
    """The model and its inputs. The model comes from the exporter's folder, once it is there."""
    dtype = torch.float32 if job.precision in ("float32", "tf32") else getattr(torch, job.precision)
    spec = get(job.case.model)
    inputs = {name: tensor.to(machine.device) for name, tensor in stored(spec.inputs(job.case.batch), dtype).items()}
    path = awaited(model_file(job.folder, job.case), job.folder, job.case)
    module: nn.Module = torch.load(path, weights_only=False)
    return Setting(
        case=job.case, precision=job.precision, machine=machine, spec=spec, module=module.eval(), inputs=inputs,
        onnx=lambda: awaited(onnx_file(job.folder, job.case), job.folder, job.case),
        timing_cache=job.timing_cache, build_seconds=job.build_seconds, level=job.level,
        compile_cache=CompileCache(job.compile_cache, f"-{job.precision}"), plans=job.plans,
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of the libraries that the GPU's kernels come from."""
    import platform  # noqa: PLC0415

    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda or ""}
    if torch.cuda.is_available():
        cudnn = torch.backends.cudnn.version() or 0
        found["cudnn"] = f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"
        sparse = torch.backends.cusparselt.version() or 0
        found["cusparselt"] = f"{sparse // 1000}.{sparse // 100 % 10}.{sparse % 100}" if sparse else ""
    return {name: version for name, version in found.items() if version}


# --- the exporter: another process that works ahead -----------------------------------------------------------


def model_file(folder: Path, case: Case) -> Path:
    return folder / f"{case.model}.pt"


def onnx_file(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}.onnx"


def failure_file(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}.failed"


def give_way() -> None:
    """Let the races' processes come first, from now on: to be called by the exporter's process only."""
    os.nice(5)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))


def export_all(cases: Sequence[Case], precision: str, folder: Path, *, onnx: bool) -> None:
    """Prune and write the models of all cases, in order, beside the races; they wait for what they need.

    A model that fails leaves its reason in a file.
    """
    for case in cases:
        try:
            path = model_file(folder, case)
            if not path.is_file():
                _, module = build_model(case.model, "2:4")
                torch.save(module, path.with_suffix(".draft"))
                path.with_suffix(".draft").replace(path)
            if onnx:
                module = torch.load(path, weights_only=False)
                export_case(case, module, precision, onnx_file(folder, case))
        except Exception as error:  #  the other models go on
            failure_file(folder, case).write_text(one_line(error))


def awaited(path: Path, folder: Path, case: Case, limit: float = EXPORT_SECONDS) -> Path:
    """A file of the exporter, once it is there. Raises ``RuntimeError`` with the reason when it will not come."""
    end = time.monotonic() + limit
    while not path.is_file():
        if failure_file(folder, case).is_file():
            raise RuntimeError(f"export failed: {failure_file(folder, case).read_text()}")
        if time.monotonic() > end:
            raise RuntimeError(f"the exporter has not written {path.name} within {limit:.0f} s")
        time.sleep(POLL_SECONDS)
    return path
