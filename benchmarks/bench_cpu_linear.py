"""Linear layers with few rows on the CPU: our kernels beside oneDNN, and chains of them beside OpenVINO.

    python benchmarks/bench_cpu_linear.py --quick
    python benchmarks/bench_cpu_linear.py --chains

Single layers rotate through copies of their weights, several times larger than the last-level cache, so that
weights come from memory. All implementations take turns in one process, so that noise hits them alike;
medians, p10, p90. Chains run as a user would run them, on one copy of the model. Rows go to
``results/cpu_linear-<machine>.json``.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from results import Row, command_line, error_of, machine_name, merge, summarise
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


def _copies(weight_bytes: int, args) -> int:
    return max(2, -(-args.working_set // weight_bytes))


def _two_four(weight: np.ndarray) -> np.ndarray:
    k = weight.shape[1]
    mask = magnitude_mask(np.pad(weight, ((0, 0), (0, -k % 4))), TWO_FOUR)
    return weight * mask[:, :k]


def _own(weight, x, expected, layout, args) -> Contestant:
    dtype, pattern = layout
    n, k = weight.shape
    copies = _copies(n * k * (2 if dtype == "bfloat16" else 4), args)
    if pattern != DENSE:  # as many bytes of compressed weights, so that these come from memory too
        copies = copies * 16 // 9
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
    return Contestant(impl, dtype, str(pattern), packed.size, calls, error_of(target, expected), [])


def _onednn(weight, x, expected, dtype, copies) -> Contestant:
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    source = torch.from_numpy(x).to(kind)
    plain = torch.from_numpy(weight).to(kind)
    run = torch.ops.mkldnn._linear_pointwise
    weights = [torch.ops.mkldnn._reorder_linear_weight(plain.clone(), x.shape[0]) for _ in range(copies)]
    calls = [lambda w=w: run(source, w, None, "none", [], "") for w in weights]
    error = error_of(calls[0]().float().numpy(), expected)
    return Contestant("onednn", dtype, "dense", plain.nbytes, calls, error, [])


def _onednn_int8(weight, x, expected, copies) -> Contestant:
    """int8 weights for each output, uint8 inputs quantised beforehand, float32 outputs."""
    scales = np.abs(weight).max(axis=1) / 127
    integers = torch.from_numpy(np.round(weight / scales[:, None]).astype(np.int8))
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (high - low) / 255
    zero = round(-low / scale)
    source = torch.from_numpy(np.clip(np.round(x / scale) + zero, 0, 255).astype(np.uint8))
    scale_tensor, zeros = (
        torch.from_numpy(scales.astype(np.float32)),
        torch.zeros(len(scales), dtype=torch.int64),
    )
    packed = [torch.ops.onednn.qlinear_prepack(integers.clone(), list(x.shape)) for _ in range(copies)]
    run = torch.ops.onednn.qlinear_pointwise
    tail = (scale_tensor, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    calls = [lambda w=w: run(source, scale, zero, w, *tail) for w in packed]
    error = error_of(calls[0]().numpy(), expected)
    return Contestant("onednn", "int8", "dense", integers.nbytes, calls, error, [])


def _layer_contestants(n: int, k: int, rows: int, args) -> Iterator[Contestant]:
    rng = np.random.default_rng(n + k + rows)
    weight = rng.standard_normal((n, k), dtype=np.float32)
    sparse = _two_four(weight)
    x = rng.standard_normal((rows, k), dtype=np.float32)
    dense_y, sparse_y = (x.astype(np.float64) @ w.T.astype(np.float64) for w in (weight, sparse))
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        yield _own(weight, x, dense_y, (dtype, DENSE), args)
        yield _own(sparse, x, sparse_y, (dtype, TWO_FOUR), args)
        yield _onednn(weight, x, dense_y, dtype, _copies(n * k * size, args))
    yield _onednn_int8(weight, x, dense_y, _copies(n * k, args))


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


def _row(case: str, batch: int, flops: int, contestant: Contestant) -> Row:
    median, low, high, n = summarise(np.array(contestant.times) * 1e6)
    return Row(
        "cpu_linear", case, contestant.impl, contestant.precision, contestant.sparsity, batch, median, low,
        high, n, flops, contestant.weight_bytes, contestant.error,
    )  # fmt: skip


def _line(row: Row) -> str:
    return (
        f"{row.case:>20} rows {row.batch:>4}  {row.impl:>12} {row.precision:>8} {row.sparsity:>5}  "
        f"{row.p10_us:>10} {row.median_us:>10} {row.p90_us:>10} us   error {row.max_rel_error:.1e}"
    )


def _own_chains(layout, args, weights, inputs) -> tuple[list[Chain], Callable[[], object]]:
    dtype, pattern = layout
    chains, addresses, keep = [], [], []
    for layers, x in zip(weights, inputs, strict=True):
        made = []
        for i, weight in enumerate(layers):
            last = i == len(layers) - 1
            spec = LinearSpec(*weight.shape, dtype, pattern, () if last else (Step("relu"),))
            made.append(Layer(spec, pack(weight, spec)))
        chain = Chain(made, threads=args.threads, isa=args.isa)
        y = np.empty((x.shape[0], layers[-1].shape[0]), np.float32)
        chain.reserve(x.shape[0])
        chains.append(chain)
        addresses.append((x.ctypes.data, y.ctypes.data, x.shape[0]))
        keep.append(y)

    def call() -> list[np.ndarray]:
        for chain, where in zip(chains, addresses, strict=True):
            chain.run(*where)
        return keep

    return chains, call


def _openvino(precision, args, weights, inputs) -> Callable[[], object]:
    import openvino as ov  # noqa: PLC0415  an optional peer
    from openvino import opset13 as op  # noqa: PLC0415

    sources, results = [], []
    for layers, source in zip(weights, inputs, strict=True):
        x = op.parameter(list(source.shape), np.float32)
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


def _chain_case(case: str, widths, batch: int, args) -> list[Row]:
    rng = np.random.default_rng(batch)
    dense = [
        [rng.standard_normal((n, k), dtype=np.float32) * np.float32((2 / k) ** 0.5)
         for k, n in itertools.pairwise(sizes)]
        for sizes in widths
    ]  # fmt: skip
    sparse = [[_two_four(weight) for weight in layers] for layers in dense]
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
            chains, call = _own_chains((dtype, pattern), args, weights, inputs)
            error = max(error_of(*pair) for pair in zip(call(), expected(weights), strict=True))
            size = sum(layer.packed.size for chain in chains for layer in chain.layers)
            impl = "tamis-dense" if pattern == DENSE else "tamis"
            contestants.append(Contestant(impl, dtype, str(pattern), size, [call], error, []))
    for precision, dtype in (("bf16", "bfloat16"), ("f32", "float32")):
        try:
            call = _openvino(precision, args, dense, inputs)
        except ImportError:
            print("openvino is not installed: left out")
            break
        error = max(error_of(*pair) for pair in zip(call(), expected(dense), strict=True))
        count = sum(w.size for ws in dense for w in ws)
        size = count * (2 if precision == "bf16" else 4)
        contestants.append(Contestant("openvino", dtype, "dense", size, [call], error, []))
    _take_turns(contestants, args.rounds, args.seconds)
    flops = 2 * batch * sum(w.size for ws in dense for w in ws)
    return [_row(case, batch, flops, contestant) for contestant in contestants]


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
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.seconds = args.seconds or (0.05 if args.quick else 0.2)
    args.working_set = (args.working_set_mb << 20) or min(1 << 30, max(192 << 20, 4 * _cache_bytes()))
    return args


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    shapes = [tuple(int(size) for size in text.split("x")) for text in args.shape or []]
    shapes = shapes or (QUICK_SHAPES if args.quick else SHAPES)
    rows_list = args.rows or (QUICK_ROWS if args.quick else ROWS)
    results: list[Row] = []
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
    out = args.out or Path(__file__).parent / "results" / f"cpu_linear-{machine_name()}.json"
    extra = {
        "command": command_line(sys.argv), "threads": args.threads, "isa": args.isa or load().levels[-1],
        "cache_bytes": _cache_bytes(), "working_set_bytes": args.working_set,
    }  # fmt: skip
    merge(out, results, extra, key=("bench", "case", "batch"))  # other numbers of rows stay
    print(f"written: {out}")


if __name__ == "__main__":
    main()
