"""Whole models on the CPU: Tamis beside ONNX Runtime, OpenVINO and torch.compile, interleaved in one process.

    python benchmarks/bench_cpu.py                         # all cases
    python benchmarks/bench_cpu.py --case resnet50-b1 --case dlrm-b1 --rounds 5

Each case runs in a process of its own. There, all implementations take turns in blocks of a few tenths of a
second, in an order that changes every round, so that a slow spell of the machine hits all of them. Outputs are
checked against ONNX Runtime in float32 in the same run. Rows go to ``results/cpu-models-<machine>.json``; an
implementation that fails is reported in the row's ``note`` and has no time.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models import build as build_model
from models import export, get
from results import Row, command_line, error_of, machine_name, merge, summarise

CASES = (
    ("resnet34-b1", "resnet34", 1), ("resnet50-b1", "resnet50", 1), ("resnet50-b8", "resnet50", 8),
    ("bert-base-b1", "bert-base", 1), ("vit-b16-b1", "vit-b16", 1), ("detector-b1", "detector", 1),
    ("dlrm-b1", "dlrm", 1), ("dlrm-b64", "dlrm", 64), ("mlp4096-b1", "mlp4096", 1),
    ("mlp4096-b16", "mlp4096", 16),
)  # fmt: skip
INT8_CASES = ("dlrm-b1", "dlrm-b64", "mlp4096-b1", "mlp4096-b16")
BLOCK_SECONDS = 0.4


@dataclass
class Contestant:
    """An implementation that runs the case on fixed inputs; ``call`` returns its first output."""

    impl: str
    precision: str
    sparsity: str
    call: Callable[[], np.ndarray]
    note: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case for case, _, _ in CASES]
    parser.add_argument("--case", action="append", choices=names, help="only this case (may be repeated)")
    parser.add_argument("--impl", action="append", help="only this implementation (may be repeated)")
    parser.add_argument("--rounds", type=int, default=5, help="blocks for each implementation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timing-cache", type=Path, help="timing cache for the Tamis builds")
    parser.add_argument("--output", type=Path, help="results file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        run_case(options)
        return
    output = options.output or Path(__file__).parent / "results" / f"cpu-models-{machine_name()}.json"
    for case in options.case or names:
        with tempfile.NamedTemporaryFile(suffix=".json") as rows:
            command = [sys.executable, __file__, "--worker", case, "--rounds", str(options.rounds)]
            command += ["--threads", str(options.threads), "--output", rows.name]
            command += [f"--impl={impl}" for impl in options.impl or ()]
            command += ["--timing-cache", str(options.timing_cache)] if options.timing_cache else []
            subprocess.run(command, check=True)
            content = json.loads(Path(rows.name).read_text())
        merge(output, [Row(**row) for row in content], {"command": command_line(sys.argv), "threads": options.threads})
    print(f"wrote {output}")


def run_case(options: argparse.Namespace) -> None:
    case = options.worker
    _, name, batch = next(c for c in CASES if c[0] == case)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / f"{case}.onnx"
        export(name, model, batch, "2:4")
        feeds = {k: v.numpy() for k, v in get(name).inputs(batch).items()}
        contestants = gather(case, name, batch, model, feeds, options, Path(folder))
        samples = race(contestants, options.rounds)
        reference = next(c for c in contestants if c.impl == "onnxruntime" and c.precision == "float32").call()
        rows = [
            row_of(case, batch, contestant, samples[index], reference) for index, contestant in enumerate(contestants)
        ]
    for row in rows:
        print(f"{case:14} {row.impl:14} {row.precision:9} {row.sparsity:6} {row.median_us:12.1f} us "
              f"[{row.p10_us:.1f}, {row.p90_us:.1f}] error {row.max_rel_error:.2e} {row.note}", flush=True)  # fmt: skip
    options.output.write_text(json.dumps([vars(row) for row in rows]))


def row_of(case: str, batch: int, c: Contestant, samples: list[float], reference: np.ndarray) -> Row:
    error = error_of(c.call(), reference)
    times = summarise(samples)
    return Row("cpu-models", case, c.impl, c.precision, c.sparsity, batch, *times, 0, 0, error, c.note)


def gather(
    case: str, name: str, batch: int, model: Path, feeds: dict[str, np.ndarray], options: argparse.Namespace,
    folder: Path,
) -> list[Contestant]:  # fmt: skip
    wanted = options.impl
    makers: list[tuple[str, Callable[[], list[Contestant]]]] = [
        ("onnxruntime", lambda: [onnxruntime_on(model, feeds, options.threads, "float32")]),
        ("openvino", lambda: [openvino_on(model, feeds, options.threads, p) for p in ("float32", "bfloat16")]),
        ("torch.compile", lambda: [compiled(name, batch, p) for p in ("float32", "bfloat16")]),
        ("tamis", lambda: tamis_engines(model, feeds, options)),
    ]
    if case in INT8_CASES:
        makers.append(("int8", lambda: int8_peers(model, feeds, options.threads, folder)))
    contestants = []
    for impl, make in makers:
        if wanted and impl not in wanted and impl != "onnxruntime":
            continue
        contestants += make()
    return contestants


def race(contestants: list[Contestant], rounds: int) -> list[list[float]]:
    """Microseconds of every call, by contestant; blocks in shuffled order."""
    for contestant in contestants:
        for _ in range(3):
            contestant.call()
    samples: list[list[float]] = [[] for _ in contestants]
    order = list(range(len(contestants)))
    for _ in range(rounds):
        random.shuffle(order)
        for index in order:
            call = contestants[index].call
            call()
            end = time.perf_counter() + BLOCK_SECONDS
            while True:
                start = time.perf_counter()
                call()
                now = time.perf_counter()
                samples[index].append((now - start) * 1e6)
                if now > end:
                    break
    return samples


def onnxruntime_on(model: Path, feeds: dict[str, np.ndarray], threads: int, precision: str) -> Contestant:
    import onnxruntime  # noqa: PLC0415

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    return Contestant("onnxruntime", precision, "dense", lambda: session.run(None, feeds)[0])


def openvino_on(model: Path, feeds: dict[str, np.ndarray], threads: int, precision: str) -> Contestant:
    import openvino  # noqa: PLC0415

    hint = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}[precision]
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": str(threads)}  # fmt: skip
    request = openvino.Core().compile_model(str(model), "CPU", settings).create_infer_request()
    for name, array in feeds.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def call() -> np.ndarray:
        request.infer()
        return request.get_output_tensor(0).data

    return Contestant("openvino", precision, "dense", call)


def compiled(name: str, batch: int, precision: str) -> Contestant:
    import torch._inductor.config  # noqa: PLC0415

    torch._inductor.config.freezing = True
    spec, module = build_model(name, "2:4")
    module = module.eval()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    module = module.to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in spec.inputs(batch).items()}
    if any(v.dim() == 4 for v in inputs.values()):
        for parameter in module.parameters():
            parameter.data = channels_last(parameter.data)
        inputs = {k: channels_last(v) for k, v in inputs.items()}
    function = torch.compile(module, dynamic=False)
    arguments = tuple(inputs.values())

    def call() -> np.ndarray:
        with torch.inference_mode():
            result = function(*arguments)
            first = result[0] if isinstance(result, tuple | list) else result
            return first.float().numpy()

    try:
        call()
    except Exception as error:
        # A peer that cannot compile a model is a finding, not a reason to have no figures.
        return Contestant("torch.compile", precision, "dense", lambda: np.zeros(1), f"failed: {error!s:.80}")
    return Contestant("torch.compile", precision, "dense", call)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The layout that torch.compile is fastest in; only images and their weights have it."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def tamis_engines(model: Path, feeds: dict[str, np.ndarray], options: argparse.Namespace) -> list[Contestant]:
    import tamis  # noqa: PLC0415

    contestants = []
    for precisions in (("float32",), ("float32", "bfloat16")):
        for sparsity in ("off", "auto"):
            config = tamis.BuildConfig(
                precisions=precisions, sparsity=sparsity, threads=options.threads, timing_cache=options.timing_cache
            )
            start = time.perf_counter()
            engine = tamis.build(model, config)
            seconds = time.perf_counter() - start
            session = tamis.load(engine)
            run = session.bind(feeds)
            sparse = sum(layer.chosen_sparsity == "2:4" for layer in engine.plan.layers)
            winner = next(record.name for record in engine.plan.engines if record.chosen)
            impl = "tamis" if sparsity == "auto" else "tamis-dense"
            note = f"{winner}; {sparse} sparse layers; built in {seconds:.1f} s"

            def call(run: Callable[[], list[torch.Tensor]] = run) -> np.ndarray:
                return run()[0].numpy()

            contestants.append(Contestant(impl, precisions[-1], "2:4" if sparse else "dense", call, note))
    return contestants


def int8_peers(model: Path, feeds: dict[str, np.ndarray], threads: int, folder: Path) -> list[Contestant]:
    """Static int8 (QDQ, signed, per channel) of the same file, in ONNX Runtime and in OpenVINO."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static  # noqa: PLC0415

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self._iterator = iter([feeds] * 4)  # the very inputs that are timed: the best case for accuracy

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._iterator, None)

    target = folder / "int8.onnx"
    quantize_static(model, target, Samples(), per_channel=True, weight_type=QuantType.QInt8,
                    activation_type=QuantType.QUInt8)  # fmt: skip
    first = onnxruntime_on(target, feeds, threads, "int8")
    return [first, openvino_on(target, feeds, threads, "int8")]


if __name__ == "__main__":
    main()
