"""Write the tables of README and docs from the results files; ``--check`` only says whether they are old.

    python benchmarks/tables.py [--check]

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accuracy_rows import HEADER, LAYER_HEADER, accuracy_lines, failures, layer_lines

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
IN_README = ("epyc-25-17", "xeon-6-167-amx")  # a machine without AMX, and one with it
PEERS = ("onnxruntime", "openvino", "torch.compile")
MODEL_HEADER = (
    *("model", "precision", "ONNX Runtime", "OpenVINO", "torch.compile"),
    *("Tamis", "Tamis runs", "best peer / Tamis", "best dense int8 peer"),
)
LINEAR_HEADER = (
    *("layer, rows", "precision", "own dense", "own 2:4", "oneDNN", "2:4 against own dense", "2:4 against oneDNN"),
    "oneDNN int8",
)
GPU_HEADER = (
    *("model", "precision", "PyTorch eager", "PyTorch 2:4", "torch.compile", "Tamis dense", "Tamis", "Tamis runs"),
    *("torch.compile / Tamis dense", "Tamis dense / Tamis", "best peer / Tamis"),
)
KERNEL_HEADER = ("layer", "precision", "best dense library", "cuSPARSELt", "ours dense", "ours 2:4", "TOP/s in 2:4",
                 "of the roof", "library / ours dense", "library / ours 2:4")  # fmt: skip
LIBRARY_HEADER = ("model", "precision", "PyTorch 2:4", "Tamis dense, libraries", "Tamis 2:4, libraries",
                  "dense / PyTorch 2:4", "dense / 2:4")  # fmt: skip
COMPILED = {"cold": "compiled", "first": "compiled", "disk": "from disk"}
DENSE_LIBRARIES = ("cudnn.conv", "cudnn.torch", "cublaslt", "cublas", "cudnn.float16", "cublas.float16", "aten")
GPU_PEERS = ("torch-eager", "torch-semi-structured", "torch.compile")
WRONG = 1e29  # results.error_of marks what is not finite, or of the wrong shape, with 1e30

Row = Mapping[str, Any]


def readme_table(results: Path) -> str:
    """Latency of whole models beside their peers, on two machines."""
    wanted = (results / f"cpu-models-{machine}.json" for machine in IN_README)
    return _model_tables([path for path in wanted if path.is_file()])


def model_table(results: Path) -> str:
    """Latency of whole models beside their peers, one table for each machine."""
    return _model_tables(sorted(results.glob("cpu-models-*.json")))


def _model_tables(paths: Sequence[Path]) -> str:
    parts = []
    for path in paths:
        content = json.loads(path.read_text())
        rows = [row for row in content["rows"] if row["bench"] == "cpu-models" and usable(row)]
        parts += [caption(content["meta"]), "", markdown(MODEL_HEADER, model_lines(rows)), ""]
    return "\n".join(parts or ["No results yet: run `python benchmarks/bench_cpu.py`.", ""])


def usable(row: Row) -> bool:
    return not str(row.get("note", "")).startswith("failed") and row["max_rel_error"] < WRONG


def model_lines(rows: Sequence[Row]) -> Iterable[tuple[str, ...]]:
    for case in dict.fromkeys(row["case"] for row in rows):
        for precision in ("float32", "bfloat16"):
            found = {r["impl"]: r for r in rows if r["case"] == case and r["precision"] == precision}
            if "tamis" not in found:
                continue
            ours = found["tamis"]
            peers = [found[peer]["median_us"] for peer in PEERS if peer in found]
            ratio = f"{min(peers) / ours['median_us']:.2f}" if peers else ""
            quantised = [r["median_us"] for r in rows if r["case"] == case and r["precision"] == "int8"]
            int8 = milliseconds(min(quantised)) if quantised else ""
            times = (milliseconds(found[peer]["median_us"]) if peer in found else "" for peer in PEERS)
            yield (case, precision, *times, milliseconds(ours["median_us"]), ours["sparsity"], ratio, int8)


def linear_table(results: Path) -> str:
    """Single linear layers with caches defeated: 2:4 beside our own dense kernel and oneDNN."""
    parts = []
    for path in sorted(results.glob("cpu_linear-*.json")):
        content = json.loads(path.read_text())
        rows = [row for row in content["rows"] if row["case"].startswith("linear-")]
        parts += [caption(content["meta"]), "", markdown(LINEAR_HEADER, linear_lines(rows)), ""]
    return "\n".join(parts or ["No results yet: run `python benchmarks/bench_cpu_linear.py`.", ""])


def linear_lines(rows: Sequence[Row]) -> Iterable[tuple[str, ...]]:
    for case, batch in dict.fromkeys((row["case"], row["batch"]) for row in rows):
        here = [row for row in rows if (row["case"], row["batch"]) == (case, batch)]
        int8 = next((milliseconds(row["median_us"]) for row in here if row["precision"] == "int8"), "")
        for precision in ("bfloat16", "float32"):
            found = {row["impl"]: row["median_us"] for row in here if row["precision"] == precision}
            if "tamis" not in found:
                continue
            dense, sparse, library = found["tamis-dense"], found["tamis"], found["onednn"]
            times = (milliseconds(dense), milliseconds(sparse), milliseconds(library))
            name = f"{case.removeprefix('linear-')}, {batch}"
            yield (name, precision, *times, f"{dense / sparse:.2f}", f"{library / sparse:.2f}", int8)


def gpu_table(results: Path) -> str:
    """Whole models on GPUs: Tamis, dense and free, beside PyTorch; one table for each GPU."""
    parts = []
    for path in sorted(results.glob("cuda-models-*.json")):
        content = json.loads(path.read_text())
        parts += [
            gpu_caption(content["meta"]),
            "",
            markdown(*without_empty_columns(GPU_HEADER, gpu_lines(content))),
            "",
        ]
    return "\n".join(parts or ["No results yet: run `make bench-gpu`.", ""])


def newest_gpu_table(results: Path) -> str:
    """The same in short: of each model and precision the newest GPU's line, one table for all GPUs."""
    captions, lines = dict[str, str](), dict[tuple[str, ...], tuple[str, ...]]()
    contents = [json.loads(path.read_text()) for path in results.glob("cuda-models-*.json")]
    for content in sorted(contents, key=lambda content: content["meta"]["date"]):
        gpu = content["meta"].get("gpu", "GPU").removeprefix("NVIDIA ")
        captions[gpu] = gpu_caption(content["meta"])
        for line in gpu_lines(content):
            lines[line[:2]] = (line[0], gpu, *line[1:])
    header = (GPU_HEADER[0], "GPU", *GPU_HEADER[1:])
    if not lines:
        return gpu_table(results)
    shown = [words for gpu, words in captions.items() if gpu in {line[1] for line in lines.values()}]
    return "\n".join([*shown, "", markdown(*without_empty_columns(header, lines.values())), ""])


def gpu_lines(content: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """A line for each case and precision that Tamis ran; a ratio over 1 speaks for what it is divided by."""
    rows = [row for row in content["rows"] if row["bench"] == "cuda-models" and usable(row)]
    for case, precision in dict.fromkeys((row["case"], row["precision"]) for row in rows):
        found = {r["impl"]: r for r in rows if (r["case"], r["precision"]) == (case, precision)}
        us = {impl: float(row["median_us"]) for impl, row in found.items()}
        if not us.keys() & {"tamis", "tamis-dense"}:
            continue
        peers = [us[peer] for peer in GPU_PEERS if peer in us]
        times = (milliseconds(us[i]) if i in us else "" for i in (*GPU_PEERS, "tamis-dense", "tamis"))
        runs = str(found["tamis"]["sparsity"]) if "tamis" in found else ""
        best = ratio(min(peers) if peers else None, us.get("tamis"))
        dense = us.get("tamis-dense")
        yield (
            case,
            precision,
            *times,
            runs,
            ratio(us.get("torch.compile"), dense),
            ratio(dense, us.get("tamis")),
            best,
        )


def library_table(results: Path) -> str:
    """What 2:4 brings with libraries alone, beside PyTorch's own 2:4; one table for each GPU."""
    parts = []
    for path in sorted(results.glob("cuda-models-*.json")):
        content = json.loads(path.read_text())
        lines = []
        rows = [row for row in content["rows"] if usable(row)]
        for case, precision in dict.fromkeys((row["case"], row["precision"]) for row in rows):
            us = {r["impl"]: r["median_us"] for r in rows if (r["case"], r["precision"]) == (case, precision)}
            dense, sparse = us.get("tamis-libraries-dense"), us.get("tamis-libraries")
            if dense and sparse:
                torch = us.get("torch-semi-structured")
                times = [milliseconds(time) if time else "" for time in (torch, dense, sparse)]
                lines.append((case, precision, *times, ratio(dense, torch), ratio(dense, sparse)))
        if lines:
            parts += [gpu_caption(content["meta"]), "", markdown(LIBRARY_HEADER, lines), ""]
    return "\n".join(parts or ["No results yet: run `bench_cuda.py` with `--impl tamis-libraries`.", ""])


def start_table(results: Path) -> str:
    """How long building and loading take, one table for each GPU."""
    parts = []
    for path in sorted(results.glob("start-*.json")):
        content = json.loads(path.read_text())
        cases: dict[str, dict[str, Row]] = {}
        for row in content["rows"]:
            cases.setdefault(row["case"], {})[row["impl"]] = row
        lines = (
            (case, *(f"{found[impl]['median_us'] / 1e6:.1f} s" for impl in ("build", "cached", "load")))
            for case, found in cases.items()
        )
        header = ("model", "build", "build with its timing cache", "load, to the first result")
        parts += [gpu_caption(content["meta"]), "", markdown(header, lines), ""]
    return "\n".join(parts or ["No results yet: run `python benchmarks/bench_start.py`.", ""])


def without_empty_columns(
    header: Sequence[str], lines: Iterable[Sequence[str]]
) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and lines without the columns that no line has a value in."""
    lines = list(lines)
    kept = [index for index in range(len(header)) if any(line[index] for line in lines)]
    return [header[index] for index in kept], [[line[index] for index in kept] for line in lines]


def ratio(slow: float | None, fast: float | None) -> str:
    return f"{slow / fast:.2f}" if slow and fast else ""


def gpu_caption(meta: Mapping[str, Any]) -> str:
    """GPU, driver, versions and date of a results file."""
    versions = ", ".join(f"{name} {version}" for name, version in meta.get("versions", {}).items())
    return f"{meta.get('gpu', 'GPU')}, driver {meta.get('driver', '?')}; {versions}; {meta['date']}."


def kernel_table(results: Path) -> str:
    """Single layers on our tensor-core kernels beside the libraries, one table for each GPU."""
    parts = []
    for path in sorted(results.glob("kernels-*.json")):
        content = json.loads(path.read_text())
        rows = [row for row in content["rows"] if usable(row)]
        measured = [path.with_name(path.name.replace("kernels-", bench)) for bench in ("wgmma-", "cuda_kernels-")]
        roofs = [row for file in measured if file.exists() for row in json.loads(file.read_text())["rows"]]
        parts += [gpu_caption(content["meta"]), "", markdown(KERNEL_HEADER, kernel_lines(rows, roofs)), ""]
    return "\n".join(parts or ["No results yet: run `python benchmarks/bench_kernels.py`.", ""])


def kernel_lines(rows: Sequence[Row], roofs: Sequence[Row]) -> Iterable[tuple[str, ...]]:
    """A line for each layer and precision.

    The roof is what takes longer: the arithmetic, by the instruction's fastest form with copies beside it, or each byte
    once, at the highest rate that a kernel of plain reads and writes reached.
    """
    rates = [row["bytes"] / row["median_us"] for row in roofs if row["bench"] == "cuda_kernels"]
    for case, precision in dict.fromkeys((row["case"], row["precision"]) for row in rows):
        found = {row["impl"]: row for row in rows if (row["case"], row["precision"]) == (case, precision)}
        us = {impl: float(row["median_us"]) for impl, row in found.items()}
        dense = {impl: us[impl] for impl in DENSE_LIBRARIES if impl in us}
        sparse = found.get("tamis.hopper.sparse")
        if not dense or sparse is None:
            continue
        library = min(dense, key=lambda impl: dense[impl])
        speed = sparse["flops"] / sparse["median_us"] / 1e6
        kind = precision if precision != "float8_e4m3" else "int8"
        alike = [row for row in roofs if (row["precision"], row["sparsity"]) == (kind, "2:4")]
        reached = [row["flops"] / row["median_us"] for row in alike if row["case"].endswith("shared-fill")]
        ours = us.get("tamis.hopper")
        yield (
            case, precision, f"{milliseconds(dense[library])} ({library})",
            milliseconds(us["cusparselt"]) if "cusparselt" in us else "", milliseconds(ours) if ours else "",
            milliseconds(us["tamis.hopper.sparse"]), f"{speed:.0f}",
            of_the_roof(sparse, max(reached, default=0), max(rates, default=0)), ratio(dense[library], ours),
            ratio(dense[library], us["tamis.hopper.sparse"]),
        )  # fmt: skip


def of_the_roof(row: Row, flops_per_us: float, bytes_per_us: float) -> str:
    """How much of a layer's time its roof takes, and which one that is if it is the memory; empty without a roof."""
    if not flops_per_us:
        return ""
    arithmetic = row["flops"] / flops_per_us
    memory = row["bytes"] / bytes_per_us if bytes_per_us else 0.0
    share = f"{max(arithmetic, memory) / row['median_us']:.0%}"
    return f"{share}, memory" if memory > arithmetic else share


def runtime_table(results: Path) -> str:
    """What the runtime itself costs."""
    parts = []
    for path in sorted(results.glob("runtime-*.json")):
        content = json.loads(path.read_text())
        found = {row["case"]: row for row in content["rows"]}
        speed = found["read-verified"]["bytes"] / found["read-verified"]["median_us"] / 1e3
        lines = [
            ("one step of the loop", f"{found['step']['median_us'] / 1e3:.3f} us"),
            ("a run of one step, bound (`Session.bind`)", f"{found['bound-run']['median_us']:.2f} us"),
            ("a run of one step, checked (`Session.run`)", f"{found['checked-run']['median_us']:.2f} us"),
            ("reading an engine, digest verified", f"{speed:.2f} GB/s"),
            ("reading an engine of 256 MiB, not verified", f"{found['read-unverified']['median_us']:.0f} us"),
        ]
        parts += [caption(content["meta"]), "", markdown(("what", "cost"), lines), ""]
    return "\n".join(parts or ["No results yet: run `python benchmarks/bench_runtime.py`.", ""])


def compile_table(results: Path) -> str:
    """How long the kernels of networks take to compile, and to be found on disk."""
    parts = []
    for path in sorted(results.glob("compile-*.json")):
        content = json.loads(path.read_text())
        lines = [(row["case"], row["note"], COMPILED[row["impl"]], f"{row['median_us'] / 1e6:.2f} s")
                 for row in content["rows"]]  # fmt: skip
        load = f"Load of the machine at the end: {content['meta']['load']}."
        header = ("network", "what", "from where", "time")
        parts += [f"{caption(content['meta'])} {load}", "", markdown(header, lines), ""]
    return "\n".join(parts or ["No results yet: run `python benchmarks/bench_compile.py`.", ""])


def accuracy_table(results: Path) -> str:
    """What pruning costs in accuracy, and the errors of layers; two tables for each GPU."""
    parts = []
    for path in sorted(results.glob("accuracy-*.json")):
        content = json.loads(path.read_text())
        rows = content["rows"]
        parts += [gpu_caption(content["meta"]), "", markdown(HEADER, accuracy_lines(rows)), ""]
        if layers := list(layer_lines(rows)):
            parts += ["Each layer pruned alone:", "", markdown(LAYER_HEADER, layers), ""]
        if failed := failures(rows):
            parts += ["Failed:", "", *(f"- {line}" for line in failed), ""]
    return "\n".join(parts or ["No results are committed yet: run `python benchmarks/bench_accuracy.py`.", ""])


TABLES: Mapping[str, Callable[[Path], str]] = {
    "accuracy": accuracy_table,
    "compile": compile_table,
    "cpu": readme_table,
    "cpus": model_table,
    "gpu": newest_gpu_table,
    "gpus": gpu_table,
    "kernels": kernel_table,
    "libraries": library_table,
    "linear": linear_table,
    "runtime": runtime_table,
    "start": start_table,
}


def caption(meta: Mapping[str, Any]) -> str:
    """Machine, threads, versions and date of a results file."""
    cpu = meta["machine"]["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items() if name != "numpy")
    threads = f", {meta['threads']} threads" if "threads" in meta else ""
    return f"{cpu}, {meta['machine']['cores']} cores{threads}; {versions}; {meta['date']}."


def milliseconds(microseconds: float) -> str:
    return f"{microseconds / 1e3:.3g} ms" if microseconds >= 100 else f"{microseconds:.1f} us"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rendered(text: str, results: Path = RESULTS) -> str:
    """A document with all of its tables made anew."""
    for name, make in TABLES.items():
        start, end = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
        pattern = re.compile(f"{re.escape(start)}\n.*?{re.escape(end)}", re.DOTALL)
        if start in text:
            table = f"{start}\n{make(results)}{end}"
            text = pattern.sub(lambda _, table=table: table, text)  # type: ignore[misc]
    return text


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a table is old")
    options = parser.parse_args()
    old = [path for path in documents() if rendered(path.read_text()) != path.read_text()]
    for path in old:
        if options.check:
            print(f"{path.relative_to(ROOT)} has an old table: run 'make docs'")
        else:
            path.write_text(rendered(path.read_text()))
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if old and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
