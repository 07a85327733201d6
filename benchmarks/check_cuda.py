"""The first minutes on a GPU machine: what works there and what is broken, part by part, in one call.

    python benchmarks/check_cuda.py --output folder [--seconds 540] [--group cudnn]

Prints versions, then runs the tests of each part that needs a GPU, and builds three small networks for the GPU and
compares them with the CPU's engines. Groups run beside each other, each in its own process and with a time limit; a
crash of one says nothing about the others. The last lines are a table; whole logs are in ``check.log`` in the folder.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("small-mlp", "small-resnet50", "small-bert")
PRECISIONS = (("float32",), ("float32", "tf32", "bfloat16", "float16"))
LEAST_COSINE = {1: 0.9999, 4: 0.99}  # by the number of precisions allowed
REASONS = 4  # shown of a group
WIDTH = 150
CHAINED = ("During handling of the above exception", "The above exception was the direct cause")


@dataclass(frozen=True)
class Group:
    """A part to check: a command, and the seconds it may take."""

    name: str
    command: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Result:
    """How a group fared; ``reasons`` are its failures in a few lines, the most frequent first."""

    name: str
    verdict: str
    summary: str
    seconds: float
    reasons: tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("check-cuda"), help="folder for the logs (%(default)s)")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything together (%(default)s)")
    parser.add_argument("--jobs", type=int, default=4, help="groups that run at the same time (%(default)s)")
    parser.add_argument("--group", action="append", help="only groups whose name contains this (may be repeated)")
    parser.add_argument("--build", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--versions", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        return check_build(options.build)
    if options.versions:
        return print_versions()
    chosen = [g for g in groups() if not options.group or any(part in g.name for part in options.group)]
    options.output.mkdir(parents=True, exist_ok=True)
    results = run_groups(chosen, options.output, options.seconds, options.jobs)
    print(table(results))
    return 0 if all(result.verdict == "ok" for result in results) else 1


def groups() -> list[Group]:
    """All groups: the machine, each file of tests that needs a GPU, such tests elsewhere, and whole builds."""
    python, script = sys.executable, str(Path(__file__))
    pytest = (python, "-m", "pytest", "-q", "-m", "cuda", "--maxfail=20", "--tb=short", "-p", "no:cacheprovider")
    files = sorted((ROOT / "tests" / "cuda").glob("test_*.py"))
    elsewhere = tuple(str(ROOT / "tests" / folder) for folder in ("kernels", "devices", "runtime", "compiler"))
    return [
        Group("versions", (python, script, "--versions"), 60),
        Group("tamis env", (python, "-m", "tamis.cli", "env", "--json"), 60),
        *(Group(f"build {model}", (python, script, "--build", model), 240) for model in MODELS),
        *(Group(name_of(file), (*pytest, str(file)), 240) for file in files),
        Group("other GPU tests", (*pytest, *elsewhere), 240),
    ]


def name_of(file: Path) -> str:
    """``test_cublaslt_on_gpu.py`` tests ``cublaslt``."""
    return file.stem.removeprefix("test_").removesuffix("_on_gpu").replace("_", " ")


# --- groups ---------------------------------------------------------------------------------------------------


def run_groups(chosen: Sequence[Group], folder: Path, seconds: float, jobs: int) -> list[Result]:
    """Run the groups, ``jobs`` at a time; each prints a line as it ends. What finds no time left is not run."""
    end = time.monotonic() + seconds

    lock, log = threading.Lock(), folder / "check.log"
    log.write_text("")

    def run(group: Group) -> Result:
        result, text = run_group(group, end - time.monotonic())
        with lock, log.open("a") as stream:  # one file, whole even when this process is stopped before the end
            stream.write(f"===== {result.name}: {result.verdict}\n{text}\n")
        print(f"{result.name}: {result.verdict}, {result.summary}, {result.seconds:.0f} s", flush=True)
        return result

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(run, chosen))


def run_group(group: Group, left: float) -> tuple[Result, str]:
    """Run one group, at most for its own time and the time that is left; the result and all that it printed."""
    if left <= 1:
        return Result(group.name, "not run", "no time was left", 0.0, ()), ""
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path.strip(os.pathsep), "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    with tempfile.TemporaryFile("w+b") as stream:
        process = subprocess.Popen(
            group.command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, process_group=0
        )
        try:
            code: int | None = process.wait(min(group.seconds, left))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        stream.seek(0)
        text = stream.read().decode(errors="replace")
    return result_of(group.name, code, text, time.monotonic() - start), text


def result_of(name: str, code: int | None, text: str, seconds: float) -> Result:
    """What a group's exit code and output say. Code None: it was stopped at its limit."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = lines[-1].strip("= ")[:WIDTH] if lines else "no output"
    reasons = failures_of(lines)
    if code is None:
        return Result(name, "TIME", f"stopped after: {last}", seconds, reasons)
    if code < 0:
        return Result(name, "CRASH", f"{signal.Signals(-code).name} after: {last}", seconds, reasons)
    if code == 5:  # pytest's: nothing was collected
        return Result(name, "ok", "no tests", seconds, ())
    if code == 0 and re.search(r"\bskipped\b", last) and not re.search(r"\bpassed\b", last):
        return Result(name, "SKIPPED", last, seconds, tuple(line[:WIDTH] for line in lines if "SKIPPED" in line)[:1])
    if code == 0:
        wrong = tuple(line.strip() for line in lines if "x disqualified" in line)[:REASONS]
        return Result(name, "ok", last if len(last) > 2 else f"{len(lines)} lines", seconds, wrong)
    return Result(name, "FAILED", last, seconds, reasons or tuple(line[:WIDTH] for line in lines[-REASONS:-1]))


def failures_of(lines: Sequence[str]) -> tuple[str, ...]:
    """The failed tests that pytest lists, by cause, the most frequent first, each with one test that shows it."""
    causes: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    errors = errors_of(lines)
    for line in lines:
        found = re.match(r"(?:FAILED|ERROR) (\S+?)(?:::(.+?))?(?: - (.*))?$", line)
        if found:
            test = found[2] or found[1]
            message = errors.get(test.replace("::", ".")) or found[3] or "no message"
            cause = re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", message)[:WIDTH]
            causes[cause] += 1
            examples.setdefault(cause, f"{test}: {message}"[:WIDTH])
    shown = [f"{count}x {examples[cause]}" for cause, count in causes.most_common(REASONS)]
    rest = len(causes) - len(shown)
    return tuple(shown + ([f"and {rest} other causes"] if rest > 0 else []))


def errors_of(lines: Sequence[str]) -> dict[str, str]:
    """The message of each failed test, from the lines ``E   `` below its title.

    The list of failed tests at the end leaves messages out, or cuts them, where the line would be wider than 80.
    """
    errors: dict[str, str] = {}
    test = ""
    for line in lines:
        title = re.match(r"_+ (?:ERROR (?:collecting|at \w+ of) )?(.+?) _+$", line)
        if title:
            test = title[1]
        elif line.startswith(CHAINED):  # the next error came of the one so far, and is what the test failed with
            errors.pop(test, None)
        elif line.startswith("E  ") and errors.get(test, ":").endswith(":"):
            errors[test] = f"{errors.get(test, '')} {line[1:].strip()}".strip()
    return errors


def table(results: Sequence[Result]) -> str:
    """The summary: one line for each group, its failures below."""
    width = max((len(result.name) for result in results), default=0)
    lines = ["", "-" * WIDTH]
    for result in results:
        lines.append(f"{result.name:{width}}  {result.verdict:8} {result.seconds:5.0f} s  {result.summary}")
        lines += [f"{'':{width}}    {reason}" for reason in result.reasons]
    return "\n".join(lines)


# --- what the processes of two kinds of groups do -------------------------------------------------------------


def print_versions() -> int:
    """The GPU, the driver, and which of the libraries that the device uses are found, with versions."""
    import torch  # noqa: PLC0415

    from gpu_state import gpu_state  # noqa: PLC0415
    from tamis.devices.cuda.nvml import name_and_driver  # noqa: PLC0415

    print("GPU", name_and_driver(), gpu_state())
    for package in (
        "numpy",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "transformers",
        "triton",
        "cuda-core",
        "cuda-bindings",
    ):
        print(package, version_of(package))
    for package in ("nvidia-cudnn-frontend", "nvidia-cusparselt-cu13", "nvidia-cublas", "nvidia-cuda-nvrtc"):
        print(package, version_of(package))
    from tamis.devices.cuda.info import cuda_info, require_cuda  # noqa: PLC0415

    require_cuda()
    info = cuda_info()
    print(info.name, info.architecture, info.features)
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}; {dict(info.libraries)}")
    return 0


def version_of(package: str) -> str:
    from importlib import metadata  # noqa: PLC0415

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def check_build(name: str) -> int:
    """Build a small network for the GPU, in float32 and with all precisions, and compare it with the CPU's engine."""
    import numpy as np  # noqa: PLC0415

    import tamis  # noqa: PLC0415
    from models import export, get  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(name, path, 8, compare=False)
        inputs = {key: value.numpy() for key, value in get(name).inputs(8).items()}
        wanted = tamis.load(tamis.build(path, optimization_level=0, exclude_tactics=("openvino",))).run(inputs)
        worst, summary = True, []
        for precisions in PRECISIONS:
            engine = tamis.build(path, device="cuda", precisions=precisions, optimization_level=1)
            tell(engine.plan)
            outputs = tamis.load(engine).run(inputs)
            cosines = []
            for key, reference in wanted.items():
                found, exact = np.float64(outputs[key]).ravel(), np.float64(reference).ravel()
                finite = bool(np.isfinite(found).all())
                cosines.append(found @ exact / (np.linalg.norm(found) * np.linalg.norm(exact)) if finite else 0.0)
            worst &= min(cosines) >= LEAST_COSINE[len(precisions)]
            summary.append(f"{precisions[-1]}: cosine {min(cosines):.6f}, {len(engine.plan.steps)} steps")
    print("; ".join(summary))
    return 0 if worst else 1


def tell(plan: object) -> None:
    """Print the kernels of a plan, and for each tactic how often it won, lost, and was disqualified or left out."""
    fates: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for layer in plan.layers:  # type: ignore[attr-defined]
        for candidate in layer.candidates:
            fates[candidate.tactic][candidate.status] += 1
            if candidate.status not in ("won", "lost"):
                reasons[candidate.tactic][f"{candidate.status}: {candidate.reason}"] += 1
    print("kernels:", dict(collections.Counter(step.kernel for step in plan.steps)))  # type: ignore[attr-defined]
    for tactic, fate in sorted(fates.items()):
        print(f"{tactic}: {dict(fate)}")
        for reason, count in reasons[tactic].most_common(3):
            print(f"    {count}x {reason[:WIDTH]}")


if __name__ == "__main__":
    sys.exit(main())
