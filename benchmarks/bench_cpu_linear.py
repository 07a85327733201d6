"""Linear layers with few rows on the CPU: our dense and 2:4 kernels beside oneDNN, and chains beside OpenVINO.

    python benchmarks/bench_cpu_linear.py --quick
    python benchmarks/bench_cpu_linear.py --chains --out benchmarks/results/cpu_linear-mycpu.json

Single layers rotate through copies of their weights, several times larger than the last-level cache, so weights
come from memory. All implementations take turns in one process, so that noise hits them alike; medians, p10, p90.
Chains run as a user would run them, on one copy of the model.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from tamis.formats import DENSE, TWO_FOUR, magnitude_mask
from tamis.kernels.cpu import Chain, Layer, LinearSpec, Step, load, pack

SHAPES = [(n, k) for n in (1024, 4096, 8192) for k in (1024, 4096, 8192)]
ROWS = (1, 4, 16, 64, 128, 256)
QUICK_SHAPES = [(1024, 1024), (4096, 4096)]
QUICK_ROWS = (1, 4, 16, 64, 256)
DLRM = ((13, 512, 256, 128), (479, 1024, 1024, 512, 256, 1))
MLP = ((4096,) * 5,)


@dataclass
class Contestant:
    """One implementation of one case: ``calls`` are the same work on different copies of the weights."""

    impl: str
    precision: str
    sparsity: str
    weight_bytes: int
    calls: list[Callable[[], object]]
    error: float
    times: list[float]


def _cache_bytes() -> int:
    sizes = [0]
    for size in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = re.fullmatch(r"(\d+)([KM])\s*", size.read_text()).groups()
        sizes.append(int(number) << (10 if unit == "K" else 20))
    return max(sizes)


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max())


def _two_four(weight: np.ndarray) -> np.ndarray:
    return weight * magnitude_mask(weight, TWO_FOUR)


def _own(weight, x, expected, dtype, pattern, copies, args) -> Contestant:
    n, k = weight.shape
    spec = LinearSpec(n, k, dtype, pattern)
    packed = pack(weight, spec)
    rows = x.shape[0]
    source = np.ascontiguousarray(x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32))
    target = np.empty((rows, n), source.dtype)
    chains = [
        Chain([Layer(spec, packed.copy())], threads=args.threads, isa=args.isa, x_dtype=dtype, y_dtype=dtype)
        for _ in range(copies)
    ]
    for chain in chains:
        chain.reserve(rows)
    addresses = source.ctypes.data, target.ctypes.data, rows
    calls = [lambda chain=chain, _keep=(source, target): chain.run(*addresses) for chain in chains]
    calls[0]()
    impl = "tamis-dense" if pattern == DENSE else "tamis"
    return Contestant(impl, dtype, str(pattern), packed.size, calls, _error(target, expected), [])


def _onednn(weight, x, expected, dtype, copies) -> Contestant:
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    source = torch.from_numpy(x).to(kind)
    plain = torch.from_numpy(weight).to(kind)
    run = torch.ops.mkldnn._linear_pointwise
    weights = [torch.ops.mkldnn._reorder_linear_weight(plain.clone(), x.shape[0]) for _ in range(copies)]
    calls = [lambda w=w: run(source, w, None, "none", [], "") for w in weights]
    error = _error(calls[0]().float().numpy(), expected)
    return Contestant("onednn", dtype, "dense", plain.nbytes, calls, error, [])


def _onednn_int8(weight, x, expected, copies) -> Contestant:
    """int8 weights for each output, uint8 inputs quantised beforehand, float32 outputs."""
    scales = np.abs(weight).max(axis=1) / 127
    integers = torch.from_numpy(np.round(weight / scales[:, None]).astype(np.int8))
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (high - low) / 255
    zero = round(-low / scale)
    source = torch.from_numpy(np.clip(np.round(x / scale) + zero, 0, 255).astype(np.uint8))
    scale_tensor, zeros = torch.from_numpy(scales.astype(np.float32)), torch.zeros(len(scales), dtype=torch.int64)
    packed = [torch.ops.onednn.qlinear_prepack(integers.clone(), list(x.shape)) for _ in range(copies)]
    run = torch.ops.onednn.qlinear_pointwise
    tail = (scale_tensor, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    calls = [lambda w=w: run(source, scale, zero, w, *tail) for w in packed]
    error = _error(calls[0]().numpy(), expected)
    return Contestant("onednn", "int8", "dense", integers.nbytes, calls, error, [])


def _layer_contestants(n: int, k: int, rows: int, args) -> Iterator[Contestant]:
    rng = np.random.default_rng(n + k + rows)
    weight = rng.standard_normal((n, k), dtype=np.float32)
    sparse = _two_four(weight)
    x = rng.standard_normal((rows, k), dtype=np.float32)
    dense_y, sparse_y = (x.astype(np.float64) @ w.T.astype(np.float64) for w in (weight, sparse))
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        copies = max(2, -(-args.working_set // (n * k * size)))
        yield _own(weight, x, dense_y, dtype, DENSE, copies, args)
        # as many bytes for the compressed weights, so that these come from memory too
        yield _own(sparse, x, sparse_y, dtype, TWO_FOUR, copies * 16 // 9, args)
        yield _onednn(weight, x, dense_y, dtype, copies)
    yield _onednn_int8(weight, x, dense_y, max(2, -(-args.working_set // (n * k))))


def _take_turns(contestants: list[Contestant], rounds: int, seconds: float) -> None:
    for _ in range(rounds):
        for contestant in contestants:
            contestant.calls[-1]()  # wake the threads; not counted
            end = time.perf_counter() + seconds
            done = 0
            while done < 3 or time.perf_counter() < end:
                call = contestant.calls[(len(contestant.times)) % len(contestant.calls)]
                start = time.perf_counter()
                call()
                contestant.times.append(time.perf_counter() - start)
                done += 1


def _row(case: str, batch: int, flops: int, contestant: Contestant) -> dict[str, object]:
    times = np.array(contestant.times) * 1e6
    return {
        "bench": "cpu_linear", "case": case, "impl": contestant.impl, "precision": contestant.precision,
        "sparsity": contestant.sparsity, "batch": batch, "median_us": round(float(np.median(times)), 2),
        "p10_us": round(float(np.percentile(times, 10)), 2), "p90_us": round(float(np.percentile(times, 90)), 2),
        "n": len(times), "flops": flops, "bytes": contestant.weight_bytes, "max_rel_error": contestant.error,
    }  # fmt: skip


def _line(row: dict[str, object]) -> str:
    return (
        f"{row['case']:>20} rows {row['batch']:>4}  {row['impl']:>12} {row['precision']:>8} {row['sparsity']:>5}  "
        f"{row['p10_us']:>10} {row['median_us']:>10} {row['p90_us']:>10} us   error {row['max_rel_error']:.1e}"
    )


def _own_chains(widths, dtype, pattern, batch, args, weights, inputs) -> tuple[list[Chain], Callable[[], object]]:
    chains, addresses, keep = [], [], []
    for sizes, layers, x in zip(widths, weights, inputs, strict=True):
        made = []
        for i, weight in enumerate(layers):
            last = i == len(layers) - 1
            spec = LinearSpec(*weight.shape, dtype, pattern, () if last else (Step("relu"),))
            made.append(Layer(spec, pack(weight, spec)))
        chain = Chain(made, threads=args.threads, isa=args.isa)
        y = np.empty((batch, sizes[-1]), np.float32)
        chain.reserve(batch)
        chains.append(chain)
        addresses.append((x.ctypes.data, y.ctypes.data, batch))
        keep.append(y)

    def call() -> list[np.ndarray]:
        for chain, where in zip(chains, addresses, strict=True):
            chain.run(*where)
        return keep

    return chains, call


def _openvino(widths, batch, precision, args, weights, inputs) -> Callable[[], object]:
    import openvino as ov  # an optional peer
    from openvino import opset13 as op

    sources, results = [], []
    for sizes, layers in zip(widths, weights, strict=True):
        x = op.parameter([batch, sizes[0]], np.float32)
        sources.append(x)
        h = x
        for i, weight in enumerate(layers):
            h = op.matmul(h, op.constant(weight), False, True)
            h = h if i == len(layers) - 1 else op.relu(h)
        results.append(h)
    model = ov.Model(results, sources)
    options = {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": args.threads,
        "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    for i, x in enumerate(inputs):
        request.set_input_tensor(i, ov.Tensor(x, shared_memory=True))

    def call() -> list[np.ndarray]:
        request.infer()
        return [request.get_output_tensor(i).data for i in range(len(inputs))]

    return call


def _chain_case(case: str, widths, batch: int, args) -> list[dict[str, object]]:
    rng = np.random.default_rng(batch)
    dense = [[rng.standard_normal((n, k), dtype=np.float32) * np.float32((2 / k) ** 0.5) for k, n in
              zip(sizes[:-1], sizes[1:], strict=True)] for sizes in widths]  # fmt: skip
    sparse = [[_two_four(np.pad(w, ((0, 0), (0, -w.shape[1] % 4))))[:, : w.shape[1]] for w in ws] for ws in dense]
    inputs = [rng.standard_normal((batch, sizes[0]), dtype=np.float32) for sizes in widths]

    def expected(weights) -> list[np.ndarray]:
        outputs = []
        for layers, x in zip(weights, inputs, strict=True):
            h = x.astype(np.float64)
            for i, w in enumerate(layers):
                h = h @ w.T.astype(np.float64)
                h = h if i == len(layers) - 1 else np.maximum(h, 0)
            outputs.append(h)
        return outputs

    contestants = []
    for dtype in ("bfloat16", "float32"):
        for pattern, weights in ((DENSE, dense), (TWO_FOUR, sparse)):
            chains, call = _own_chains(widths, dtype, pattern, batch, args, weights, inputs)
            error = max(_error(*pair) for pair in zip(call(), expected(weights), strict=True))
            size = sum(layer.packed.size for chain in chains for layer in chain.layers)
            impl = "tamis-dense" if pattern == DENSE else "tamis"
            contestants.append(Contestant(impl, dtype, str(pattern), size, [call], error, []))
    for precision, dtype in (("bf16", "bfloat16"), ("f32", "float32")):
        try:
            call = _openvino(widths, batch, precision, args, dense, inputs)
        except ImportError:
            print("openvino is not installed: left out")
            break
        error = max(_error(*pair) for pair in zip(call(), expected(dense), strict=True))
        count = sum(w.size for ws in dense for w in ws)
        size = count * (2 if precision == "bf16" else 4)
        contestants.append(Contestant("openvino", dtype, "dense", size, [call], error, []))
    _take_turns(contestants, args.rounds, args.seconds)
    flops = 2 * batch * sum(w.size for ws in dense for w in ws)
    return [_row(case, batch, flops, contestant) for contestant in contestants]


def _meta(args) -> dict[str, object]:
    def first_line(command: list[str]) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().split("\n")[0]

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.*)", info)
    clocks = [float(mhz) for mhz in re.findall(r"cpu MHz\s*:\s*([\d.]+)", info)]
    library = load()
    return {
        "commit": first_line(["git", "rev-parse", "HEAD"]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": model.group(1) if model else platform.machine(), "cores": os.cpu_count(),
            "cache_bytes": _cache_bytes(), "levels": library.levels, "isa": args.isa or library.levels[-1],
            "threads": args.threads,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "clocks": {"mhz": clocks[:2]},
        "command": " ".join(sys.argv[1:]),
        "working_set_bytes": args.working_set,
    }  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two shapes, short turns")
    parser.add_argument("--chains", action="store_true", help="also whole MLPs, beside OpenVINO")
    parser.add_argument("--only-chains", action="store_true", help="no single layers")
    parser.add_argument("--shape", action="append", help="NxK, instead of the table; may be repeated")
    parser.add_argument("--rows", type=int, action="append", help="instead of the table; may be repeated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--isa", help="highest instruction set level to use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.0, help="length of a turn; 0: 0.2, or 0.05 when quick")
    parser.add_argument("--working-set-mb", type=int, default=0, help="bytes of weight copies; 0: 4 x last cache")
    parser.add_argument("--device", default="", help="name for the results file")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.seconds = args.seconds or (0.05 if args.quick else 0.2)
    args.working_set = (args.working_set_mb << 20) or min(1 << 30, max(192 << 20, 4 * _cache_bytes()))
    return args


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    meta = _meta(args)
    name = args.device or re.sub(r"[^a-z0-9]+", "-", str(meta["machine"]["cpu"]).lower()).strip("-")
    shapes = [tuple(int(size) for size in text.split("x")) for text in args.shape or []]
    shapes = shapes or (QUICK_SHAPES if args.quick else SHAPES)
    rows_list = args.rows or (QUICK_ROWS if args.quick else ROWS)
    results: list[dict[str, object]] = []
    for n, k in [] if args.only_chains else shapes:
        for rows in rows_list:
            contestants = list(_layer_contestants(n, k, rows, args))
            _take_turns(contestants, args.rounds, args.seconds)
            made = [_row(f"linear-{n}x{k}", rows, 2 * rows * n * k, contestant) for contestant in contestants]
            results += made
            print(*(_line(row) for row in made), sep="\n", flush=True)
    if args.chains or args.only_chains:
        for case, widths, batches in (("dlrm-mlps", DLRM, (1, 64, 256)), ("mlp4096", MLP, (1, 16, 64))):
            for batch in batches:
                made = _chain_case(case, widths, batch, args)
                results += made
                print(*(_line(row) for row in made), sep="\n", flush=True)
    out = args.out or Path(__file__).parent / "results" / f"cpu_linear-{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"meta": meta, "rows": results}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
