"""Whole models on a GPU: Tamis beside torch.compile, eager PyTorch and PyTorch's 2:4 kernels, all as CUDA graphs.

    python benchmarks/bench_cuda.py                                      # all cases, the most telling first
    python benchmarks/bench_cuda.py --budget 540 --compile-cache kept --precompile 4 --timing-cache kept/tamis.json
    python benchmarks/bench_cuda.py --case resnet50-b1 --impl tamis --impl tamis-dense
    python benchmarks/bench_cuda.py --case mlp4096-b2048 --impl tamis-libraries --impl tamis-libraries-dense
    python benchmarks/bench_cuda.py --device cpu --case small-mlp-b4 --output trial.json   # try the script out

Every implementation has the same 2:4 weights, inputs in the measured precision that lie on the GPU, and replays one
CUDA graph. Blocks of replays alternate in shuffled order in one process and are timed with CUDA events. Outputs are
poisoned, and checked on the GPU against PyTorch in strict float32, before and after the race.

Each case runs in a process of its own, its rows are merged into ``results/cuda-models-GPU.json`` as soon as it is
done, and a process that breaks under one implementation is started again without it. Models are exported beside the
races. PyTorch gets images with channels innermost, Tamis row-major ones: its ports know no other.

torch.compile takes minutes for a case, most of them on the host. With ``--precompile N`` it first compiles N cases at a
time into ``--compile-cache``; its kernels are then tuned while others are, which may cost it a little.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compile_cache import CompileCache
from cuda_case import BENCH, Job, export_all, give_way, run_case
from cuda_contestants import IMPLEMENTATIONS, STORED_AS, USUAL, Case
from gpu_state import short_name
from results import Row, command_line, merge, meta
from tamis.devices.cuda.nvml import name_and_driver

# In the order of importance; with the seconds that torch.compile takes.
CASES = (
    Case("resnet50-b128", "resnet50", 128, 180),
    Case("bert-large-b32-s384", "bert-large-s384", 32, 95),
    Case("mlp4096-b2048", "mlp4096", 2048, 30),
    Case("mlp4096-b16", "mlp4096", 16, 30),
    Case("dlrm-b65536", "dlrm", 65536, 40),
    Case("resnet50-b1", "resnet50", 1, 155),
    Case("vit-b16-b64", "vit-b16", 64, 90),
    Case("dlrm-b2048", "dlrm", 2048, 40),
    Case("resnet34-b128", "resnet34", 128, 55),
    Case("resnet34-b1", "resnet34", 1, 45),
    Case("detector-b1", "detector", 1, 255),
    Case("detector-b32", "detector", 32, 400),  # more than the 250 that it once got
)
# For trying the script out; not run unless asked for.
TRIALS = (Case("small-mlp-b4", "small-mlp", 4), Case("small-resnet50-b2", "small-resnet50", 2),
          Case("small-bert-b2", "small-bert", 2))  # fmt: skip
LEAST_SECONDS = 40.0  # no case starts with less
GRACE_SECONDS = 20.0  # beyond its time, before a process is ended


@dataclass(frozen=True)
class Outcome:
    """How the process of a case ended; ``problem`` is empty when it ended well."""

    report: dict[str, Any]
    problem: str


def main() -> int:
    options = parse(sys.argv[1:])
    if options.process:
        return serve(options.process)
    found = name_and_driver()
    if options.device == "cuda" and found is None:
        print("there is no GPU: the driver lists none (--device cpu tries the script out on small models)")
        return 1
    name = short_name(found[0]) if options.device == "cuda" and found is not None else "cpu-trial"
    output = options.output or Path(__file__).parent / "results" / f"{BENCH}-{name}.json"
    # A compiler that was stopped may still write.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        missing = run_all(options, output, Path(folder), {"gpu": found[0], "driver": found[1]} if found else {})
    for case, reason in missing.items():
        print(f"not run: {case}: {reason}")
    if options.compile_cache:
        print(
            f"{options.compile_cache}: {CompileCache(options.compile_cache).megabytes():.1f} MB of compiled artefacts"
        )
    print(f"wrote {output}")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; cases come out as ``Case`` in the order in which they were given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {case.name: case for case in CASES + TRIALS}
    add = parser.add_argument
    add(
        "--case",
        action="append",
        choices=list(known),
        metavar="CASE",
        help=f"only this one (may be repeated): {', '.join(known)}",
    )
    add(
        "--impl",
        action="append",
        choices=IMPLEMENTATIONS,
        metavar="IMPL",
        help=f"only this one: {', '.join(IMPLEMENTATIONS)}",
    )
    add(
        "--precision",
        choices=list(STORED_AS),
        default="float16",
        help="of inputs, outputs and layers (default: %(default)s)",
    )
    add("--rounds", type=int, default=7, help="blocks of each implementation, at least 5 (default: %(default)s)")
    add("--budget", type=float, default=float("inf"), metavar="SECONDS", help="what does not fit is listed as not run")
    add(
        "--build-budget",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="for races in a Tamis build (default: %(default)s)",
    )
    add(
        "--level",
        type=int,
        default=3,
        choices=range(6),
        help="optimization level of Tamis builds (default: %(default)s)",
    )
    add("--compile-cache", type=Path, metavar="FOLDER", help="keep what torch.compile finds here, and use it again")
    add("--precompile", type=int, default=0, metavar="N", help="first let torch.compile compile N cases at a time")
    add("--timing-cache", type=Path, metavar="FILE", help="timing cache of the Tamis builds; none is kept without")
    add("--plans", type=Path, metavar="FOLDER", help="keep the plans and step times of Tamis's engines here")
    add("--output", type=Path, help="results file")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the script out; the times mean nothing")
    add("--process", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rounds < 5:
        parser.error("--rounds must be at least 5")
    if options.device == "cpu" and options.output is None and not options.process:
        parser.error("--device cpu needs --output: trials do not belong to the results")
    if options.precompile and not options.compile_cache:
        parser.error("--precompile needs --compile-cache")
    options.case = [known[name] for name in options.case] if options.case else list(CASES)
    return options


def run_all(
    options: argparse.Namespace, output: Path, folder: Path, about: dict[str, Any],
    launch: Callable[[Job], Outcome] | None = None, clock: Callable[[], float] = time.monotonic,
) -> dict[str, str]:  # fmt: skip
    """Run all cases and merge their rows one by one; returns what was not run, and why."""
    end = clock() + options.budget
    exporter = None if launch else start_exporter(options, folder)
    missing: dict[str, str] = {}
    try:
        precompile(options, folder, end, launch or run_process, clock)
        for case in options.case:
            left = end - clock()
            if left < LEAST_SECONDS:
                missing[case.name] = f"{max(left, 0):.0f} s of the budget are left"
                record(output, options, case, [], {}, about, missing)
                continue
            report = measure(job_of(options, case, folder, end - clock()), launch or run_process, end, clock)
            missing |= {f"{case.name} {impl}": reason for impl, reason in report["not_run"].items()}
            record(output, options, case, report["rows"], report["meta"], about, missing)
            show(report["rows"])
    finally:
        if exporter is not None:
            end_process(exporter)
    return missing


def precompile(
    options: argparse.Namespace, folder: Path, end: float, launch: Callable[[Job], Outcome], clock: Callable[[], float]
) -> None:  # fmt: skip
    """Compile what is not in the cache yet, several cases at a time; what they measure is thrown away."""
    if not options.precompile:
        return
    cache = CompileCache(options.compile_cache, f"-{options.precision}")
    with ThreadPoolExecutor(options.precompile) as pool:
        for case in options.case:
            if not cache.has(case.name):
                job = job_of(options, case, folder, end - clock())
                pool.submit(launch, replace(job, impls=("torch.compile",)))


def job_of(options: argparse.Namespace, case: Case, folder: Path, seconds: float) -> Job:
    return Job(
        case=case, precision=options.precision, impls=tuple(options.impl or USUAL), excluded=(),
        rounds=options.rounds, seconds=seconds, device=options.device, folder=folder,
        report=folder / f"{case.name}.json", timing_cache=options.timing_cache or folder / "timings.json",
        compile_cache=options.compile_cache, build_seconds=options.build_budget, level=options.level,
        plans=options.plans,
    )  # fmt: skip


def measure(
    job: Job, launch: Callable[[Job], Outcome], end: float, clock: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """A case's report. When its process breaks under a contestant, it is started again without that one."""
    failures: dict[str, str] = {}
    rows: dict[str, dict[str, Any]] = {}
    not_run: dict[str, str] = {}
    found: dict[str, Any] = {}
    while True:
        outcome = launch(replace(job, excluded=tuple(failures), seconds=end - clock()))
        report = outcome.report
        rows |= {row["impl"]: row for row in report.get("rows", ())}
        not_run |= report.get("not_run", {})
        found |= report.get("meta", {})
        if not outcome.problem:
            break
        culprit = report.get("working_on", "")
        reason = report.get("reason") or outcome.problem
        if not culprit or culprit in failures:
            not_run["the rest"] = reason
            break
        failures[culprit] = reason
        if end - clock() < LEAST_SECONDS:
            not_run["the rest"] = f"{culprit} failed ({reason}), and no time was left for another try"
            break
    rows |= {impl: failed_row(job, impl, reason) for impl, reason in failures.items()}
    return {"rows": list(rows.values()), "not_run": not_run, "meta": found}


def failed_row(job: Job, impl: str, reason: str) -> dict[str, Any]:
    """The row of a contestant that broke its process."""
    row = Row(BENCH, job.case.name, impl, job.precision, "dense", job.case.batch, 0.0, 0.0, 0.0, 0, 0, 0, 1e30,
              f"failed: {reason}")  # fmt: skip
    return dict(vars(row))


def record(
    output: Path, options: argparse.Namespace, case: Case, rows: Sequence[dict[str, Any]], found: dict[str, Any],
    about: dict[str, Any], missing: dict[str, str],
) -> None:  # fmt: skip
    """Merge a case into the results file. Rows of implementations that were not run now stay."""
    old = json.loads(output.read_text())["meta"] if output.exists() else {}
    states = old.get("states", {}) | (
        {case.name: f"{found.get('state_before', '')} -> {found.get('state_after', '')}"} if rows else {}
    )
    extra: dict[str, Any] = about | {"command": command_line(sys.argv), "not_run": missing, "states": states}
    packages = {name: version for name, version in meta()["versions"].items() if name in ("tamis", "triton")}
    extra["versions"] = packages | found.get("versions", old.get("versions", {}))
    merge(output, [Row(**row) for row in rows], extra, key=("bench", "case", "impl", "precision"))


def show(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        name = f"{row['case']:20} {row['impl']:22} {row['precision']:9} {row['sparsity']:6}"
        times = f"{row['median_us']:10.1f} us [{row['p10_us']:.1f}, {row['p90_us']:.1f}]"
        print(f"{name} {times} error {row['max_rel_error']:.1e} {row['note']}", flush=True)


# --- processes ------------------------------------------------------------------------------------------------


def serve(path: Path) -> int:
    """What a process started by this script does: one case, or all exports."""
    task = pickle.loads(path.read_bytes())
    if isinstance(task, Job):
        run_case(task)
    else:
        give_way()
        export_all(**task)
    sys.stdout.flush()
    os._exit(0)  # a library that crashes while it is unloaded must not turn a good report into a failure


def run_process(job: Job) -> Outcome:
    """Run a case in a process and wait for it, at most a little longer than its time."""
    job.report.unlink(missing_ok=True)
    errors = job.folder / f"{job.case.name}.stderr"
    with errors.open("wb") as stream:
        process = start(job, job.folder / f"{job.case.name}.job", job.folder, stream)
        try:
            code: int | None = process.wait(None if job.seconds == float("inf") else job.seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            end_process(process)
            code = None
    report = json.loads(job.report.read_text()) if job.report.is_file() else {}
    text = errors.read_text(errors="replace")
    sys.stderr.write(text[-4000:])
    return Outcome(report, problem_of(code, text, job.seconds))


def problem_of(code: int | None, errors: str, seconds: float) -> str:
    """Why a process ended badly, in words; empty when it did not."""
    if code == 0:
        return ""
    if code is None:
        return f"no result within {seconds:.0f} s"
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    last = lines[-1].strip()[:160] if lines else "nothing on stderr"
    return f"{signal.Signals(-code).name}: {last}" if code < 0 else f"exit code {code}: {last}"


def start_exporter(options: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    impls = options.impl or USUAL
    onnx = any(impl.startswith("tamis") for impl in impls)
    task = {"cases": options.case, "precision": options.precision, "folder": folder, "onnx": onnx}
    return start(task, folder / "export.job", folder, None)


def start(task: object, path: Path, folder: Path, errors: Any) -> subprocess.Popen[bytes]:
    """This script in another process, in a group of its own so that its helpers end with it."""
    path.write_bytes(pickle.dumps(task))
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    command = [sys.executable, __file__, "--process", str(path)]
    return subprocess.Popen(command, stderr=errors, env=environment, process_group=0)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process and its helpers."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
