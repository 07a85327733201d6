"""How long it takes to have an engine, and from its file to the first result: cold, with a timing cache, loaded.

    python benchmarks/bench_start.py
    python benchmarks/bench_start.py --case resnet50-b1 --budget 60
    python benchmarks/bench_start.py --device cpu --case small-mlp-b4 --output trial.json      # try the script out

Each build and each load is a process of its own, and its time begins when the imports are done and, on a GPU, the
process has it: these take the same whatever is started. "build" has neither timing cache nor compiled kernels, "cached"
has what the first one left of both and must give the same file, "load" is from an engine file to the first result in
the host's memory, compared with the result of the process that built it. Rows go to ``results/start-GPU.json``: seconds
as microseconds, ``bytes`` are those of the engine file.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tamis
import tamis.compiler
import tamis.engine
import tamis.runtime
from gpu_state import about_gpu, short_name
from models import export, get
from results import Row, command_line, error_of, merge, summarise
from tamis.kernels import VARIABLE

CASES = {
    "resnet50-b128": ("resnet50", 128), "resnet50-b1": ("resnet50", 1), "bert-large-b32-s384": ("bert-large-s384", 32),
    "small-mlp-b4": ("small-mlp", 4),
}  # fmt: skip
USUAL = ("resnet50-b128", "resnet50-b1")
PRECISIONS = {"cuda": "float16", "cpu": "float32"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="may be repeated")
    parser.add_argument("--budget", type=float, default=90.0, help="of a build's races, in seconds")
    parser.add_argument("--repeats", type=int, default=3, help="of cached builds and of loads")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the script out")
    parser.add_argument("--output", type=Path, help="results file")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        serve(json.loads(options.process))
        return 0
    if options.device == "cpu" and options.output is None:
        parser.error("--device cpu needs --output: trials do not belong to the results")
    for case in options.case or USUAL:
        rows, device = measured(case, options)
        for row in rows[1:]:
            seconds = [time_us / 1e6 for time_us in (row.median_us, row.p10_us, row.p90_us)]
            print(f"{case:20} {row.impl:6} {seconds[0]:8.2f} s [{seconds[1]:.2f}, {seconds[2]:.2f}]", flush=True)
        output = options.output or Path(__file__).parent / "results" / f"start-{short_name(device)}.json"
        merge(output, rows, about_gpu(device) | {"command": command_line(sys.argv)})
    return 0


def measured(case: str, options: argparse.Namespace) -> tuple[list[Row], str]:
    """The rows of a case, and the name of the device."""
    name, batch = CASES[case]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        export(name, folder / "model.onnx", batch, compare=False)
        np.savez(folder / "inputs.npz", **{key: tensor.numpy() for key, tensor in get(name).inputs(batch).items()})
        job = {"folder": text, "device": options.device, "budget": options.budget}
        first = run({**job, "build": True})
        print(f"{case:20} build {first['seconds']:9.2f} s  {first['note']}", flush=True)
        cached = [run({**job, "build": True}) for _ in range(options.repeats)]
        if any(report["digest"] != first["digest"] for report in cached):
            raise SystemExit(f"{case}: builds with a timing cache gave another file")
        loads = [run({**job, "build": False}) for _ in range(options.repeats)]
        size = (folder / "engine.tamis").stat().st_size
    wrong = max(report["error"] for report in loads)
    if not wrong <= 1e-6:
        raise SystemExit(f"{case}: a loaded engine differs from the built one by {wrong:.1e}")
    rows = [
        Row("start", case, impl, PRECISIONS[options.device], "2:4", batch,
            *summarise([r["seconds"] * 1e6 for r in reports]), 0, size, wrong, reports[0]["note"])
        for impl, reports in (("build", [first]), ("cached", cached), ("load", loads))
    ]  # fmt: skip
    return rows, first["device"]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """What a process of this script reports on its last line."""
    environment = {**os.environ, VARIABLE: str(Path(job["folder"]) / "kernels")}
    command = [sys.executable, __file__, "--process", json.dumps(job)]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report


def serve(job: dict[str, Any]) -> None:
    """Build or load, and print a report as one line of JSON."""
    if job["device"] == "cuda":
        torch.zeros(1, device="cuda")
    folder = Path(job["folder"])
    path = folder / "engine.tamis"
    inputs = dict(np.load(folder / "inputs.npz"))
    note = ""
    begin = time.perf_counter()
    if job["build"]:
        engine = tamis.build(
            folder / "model.onnx", output=path, device=job["device"], precisions=(PRECISIONS[job["device"]],),
            budget_seconds=job["budget"], timing_cache=folder / "timings.json",
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        sparse = sum(layer.chosen_sparsity == "2:4" for layer in engine.plan.layers)
        note = f"{sparse} sparse of {len(engine.plan.layers)} layers"
        result = first_of(tamis.load(engine).run(inputs))
        np.save(folder / "result.npy", result)
        error = 0.0
    else:
        result, note = loaded(path, inputs, job["device"])
        seconds = time.perf_counter() - begin
        error = error_of(result, np.load(folder / "result.npy"))
    gpu = torch.cuda.get_device_name() if job["device"] == "cuda" else "cpu"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(json.dumps({"seconds": seconds, "note": note, "error": error, "device": gpu, "digest": digest}))


def loaded(path: Path, inputs: dict[str, np.ndarray], kind: str) -> tuple[np.ndarray, str]:
    """The first result of an engine file, and how long each part of getting there took."""
    laps = [("", time.perf_counter())]

    def done(part: str) -> None:
        laps.append((part, time.perf_counter()))

    engine = tamis.engine.read(path)
    done("file")
    device = tamis.runtime.open_device(kind)
    done("device")
    binding: dict[str, float] = {}
    bind = device.bind

    def timed(step: Any, *rest: Any) -> Any:
        start = time.perf_counter()
        runner = bind(step, *rest)
        family = step.kernel.partition(".")[0]
        binding[family] = binding.get(family, 0.0) + time.perf_counter() - start
        return runner

    device.bind = timed  # type: ignore[method-assign]
    session = tamis.runtime.Session(engine, device=device)
    done("session")
    result = first_of(session.run(inputs))
    done("first run")
    parts = [f"{name} {end - start:.2f} s" for (_, start), (name, end) in itertools.pairwise(laps)]
    return result, ", ".join([*parts, *(f"of it binding {name} {seconds:.2f} s" for name, seconds in binding.items())])


def first_of(results: dict[str, Any]) -> np.ndarray:
    """The first output in float32."""
    return np.asarray(next(iter(results.values())), np.float32)


if __name__ == "__main__":
    sys.exit(main())
