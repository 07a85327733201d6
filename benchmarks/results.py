"""The results files that benchmarks write and tables are made from: one row for each measurement."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("tamis", "torch", "triton", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True)
class Row:
    """One measurement. Times are microseconds; ``max_rel_error`` is relative to the largest reference value.

    ``commit`` is that of the measured code; ``merge`` fills it in.
    """

    bench: str
    case: str
    impl: str
    precision: str
    sparsity: str
    batch: int
    median_us: float
    p10_us: float
    p90_us: float
    n: int
    flops: int
    bytes: int
    max_rel_error: float
    note: str = ""
    commit: str = ""


def merge(path: Path, rows: Sequence[Row], extra: dict[str, Any], key: Sequence[str] = ("bench", "case")) -> None:
    """Write rows into a results file; they replace the older rows that equal one of them in the ``key`` fields."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    measured = {tuple(getattr(row, name) for name in key) for row in rows}
    kept = [row for row in old if tuple(row[name] for name in key) not in measured]
    about = meta() | extra
    new = [asdict(replace(row, commit=row.commit or about["commit"])) for row in rows]
    content = {"meta": about, "rows": kept + new}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)  # whole or not at all: a run that is stopped loses nothing


def command_line(arguments: Sequence[str]) -> str:
    """A command for ``meta``, with the names of files and folders instead of this machine's paths."""
    script, *rest = arguments
    return " ".join((f"benchmarks/{Path(script).name}", *map(_without_path, rest)))


def _without_path(argument: str) -> str:
    name, equals, value = argument.rpartition("=")
    return f"{name}{equals}{Path(value).name}" if "/" in value else argument


def meta() -> dict[str, Any]:
    """Machine, versions, commit and date."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
                    "system": platform.release()},
        "versions": versions,
    }  # fmt: skip


def cpu_model() -> str:
    """The processor's name, with its family and model since virtual machines mask names."""
    text = Path("/proc/cpuinfo").read_text()
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.*)$", text, re.MULTILINE))
    amx = " AMX" if "amx_bf16" in text else ""
    return f"{fields.get('model name', '?')} (family {fields.get('cpu family')}, model {fields.get('model')}{amx})"


def conv_name(kernel: int, channels: tuple[int, int], size: int, batch: int, stride: int = 1, tail: str = "") -> str:
    """The stable name of a convolution: ``conv3x3-512x512-28-b128``, or ``conv1x1-256x512-56-s2-res-b128``."""
    strided = "" if stride == 1 else f"-s{stride}"
    inputs, outputs = channels
    return f"conv{kernel}x{kernel}-{inputs}x{outputs}-{size}{strided}{tail and '-'}{tail}-b{batch}"


def machine_name() -> str:
    """A short name for file names: ``epyc-26-2`` (family and model), or ``xeon-6-207-amx``."""
    text = cpu_model().lower()
    base = next((name for name in ("epyc", "xeon", "ryzen", "core") if name in text), "cpu")
    return "-".join((base, *re.findall(r"(?<=family )\d+|(?<=model )\d+|amx(?=\))", text)))


def summarise(samples_us: Sequence[float]) -> tuple[float, float, float, int]:
    """Median, tenth and ninetieth percentile, and count."""
    low, middle, high = np.percentile(samples_us, [10, 50, 90])
    return round(float(middle), 2), round(float(low), 2), round(float(high), 2), len(samples_us)


def error_of(result: np.ndarray, reference: np.ndarray) -> float:
    """Largest error over the largest reference value; not finite counts as 1e30."""
    if result.shape != reference.shape or not np.isfinite(result).all():
        return 1e30
    scale = float(np.abs(reference).max()) or 1.0
    return float(f"{float(np.abs(result.astype(np.float64) - reference).max()) / scale:.4g}")


def _commit() -> str:
    """Git's word; ``BENCH_COMMIT`` where the sources came without their history."""
    if os.environ.get("BENCH_COMMIT"):
        return os.environ["BENCH_COMMIT"]
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return found.stdout.strip() or "unknown"
