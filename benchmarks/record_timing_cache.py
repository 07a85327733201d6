"""Record on a GPU what a build of two small models measures, so that a machine without one can build them again.

    python benchmarks/record_timing_cache.py --output tests/recorded

Writes a folder named after the GPU: the models, the timing cache, the cubins that were compiled, each engine's plan and
the SHA-256 of its file, and what the GPU is. ``tests/benchmarks/test_recorded_builds.py`` builds the models from it, on
paper: exactly the same while the code is that of the recording, afterwards from what is still asked for. Each model
is built twice: the second build must measure nothing and give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

import tamis
from gpu_state import short_name
from models import export
from results import meta
from tamis.compiler.tactics import cuda_steps
from tamis.devices.base import Device
from tamis.engine import Engine
from tamis.engine.plan import to_json
from tamis.kernels.cuda.compile import compiler_name
from tamis.kernels.cuda.unit import translation_unit
from tamis.runtime import open_device

MODELS = ("small-resnet50", "small-bert")
BATCH = 8
OPTIONS: Mapping[str, Any] = {
    "device": "cuda",
    "precisions": ("float32", "tf32", "bfloat16", "float16"),
    "optimization_level": 1,
    "budget_seconds": 300.0,  # a candidate that is left out for want of time would be missed
}
CACHE, RECORD, KERNELS = "timing-cache.json.gz", "recording.json", "kernels.zip"
# Smaller initializers may be limits of a type or epsilons, and take no room.
ROUNDED_ELEMENTS = 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder in which that of the GPU is made")
    options = parser.parse_args()
    device = open_device("cuda")
    folder = options.output / short_name(device.info().name)
    record(folder, device)
    for file in sorted(folder.iterdir()):
        print(f"{file}: {file.stat().st_size / 1e3:.1f} kB")
    return 0


def record(folder: Path, device: Device, names: Sequence[str] = MODELS) -> None:
    """Build models with one timing cache and write all that another machine needs to do the same.

    Raises ``RuntimeError`` when a second build measures anything or gives another file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    engines: dict[str, str] = {}
    kernels: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache.json"
        for name in names:
            model = small_model(name, Path(place))
            engine = built(model, cache)
            measured, engines[name] = cache.read_bytes(), file_digest(engine)
            with noted_kernels() as used:  # the race compiled many that no engine needs
                again = built(model, cache)
            kernels |= used
            if file_digest(again) != engines[name] or cache.read_bytes() != measured:
                raise RuntimeError(f"{name}: the second build differs from the first")
            write_packed(folder / f"{name}.onnx.gz", model)
            write_packed(folder / f"{name}.plan.json.gz", to_json(engine.plan).encode())
        write_packed(folder / CACHE, cache.read_bytes())
    with zipfile.ZipFile(folder / KERNELS, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, cubin in sorted(kernels.items()):
            archive.writestr(key, cubin)
    content = {
        "meta": meta(),
        "device": asdict(device.info()),
        "cache_bytes": device.cache_bytes,
        "compiler": compiler_name(),
        "code": code_digest(),
        "options": OPTIONS,
        "engine_sha256": engines,
    }
    (folder / RECORD).write_text(json.dumps(content, indent=1) + "\n")


def code_digest() -> str:
    """Sixteen digits that stand for the sources that decide what is measured and what an engine is, on a GPU."""
    root, digest = Path(tamis.__file__).parent, hashlib.sha256()
    for part in ("compiler", "devices", "engine", "formats", "kernels", "runtime"):
        for path in sorted(p for p in (root / part).rglob("*") if p.suffix in (".py", ".cu", ".h", ".cpp")):
            if "cpu" not in path.relative_to(root).parts:
                digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def built(model: bytes, cache: Path) -> Engine:
    """An engine; one that fails in the last race is an error, because the cache keeps nothing of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="a proposed engine failed")
        return tamis.build(model, timing_cache=cache, **OPTIONS)


def small_model(name: str, place: Path) -> bytes:
    """A model of the collection with 2:4 weights, as ONNX.

    It is recorded, because another version of PyTorch exports it otherwise. To keep the file small, weights are rounded
    to bfloat16, whose lower halves are zeros, and the exporter's notes on its own source lines are left out.
    """
    path = place / f"{name}.onnx"
    export(name, path, BATCH, compare=False)
    model = onnx.load(str(path))
    for node in model.graph.node:
        del node.metadata_props[:]
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size >= ROUNDED_ELEMENTS:
            rounded = array.astype(ml_dtypes.bfloat16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    return model.SerializeToString(deterministic=True)


@contextmanager
def noted_kernels() -> Iterator[dict[str, bytes]]:
    """The cubins of all kernels that are compiled meanwhile, by ``kernel_key``."""
    kernels: dict[str, bytes] = {}
    compile_source = cuda_steps.compile_source

    def noting(source: str, defines: Mapping[str, str | int | float], architecture: str) -> bytes:
        cubin = compile_source(source, defines, architecture)
        kernels[kernel_key(source, defines, architecture)] = cubin
        return cubin

    with patch.object(cuda_steps, "compile_source", noting):
        yield kernels


def kernel_key(source: str, defines: Mapping[str, str | int | float], architecture: str) -> str:
    """A name for a kernel: its source, its constants and what it is compiled for."""
    text = f"{architecture}\n{translation_unit(source, defines)}"
    return f"{Path(source).stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.cubin"


def file_digest(engine: Engine) -> str:
    """The SHA-256 of an engine's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tamis"
        tamis.save_engine(engine, path)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def write_packed(path: Path, content: bytes) -> None:
    """Write a file with gzip, equal for equal content."""
    path.write_bytes(gzip.compress(content, 9, mtime=0))


if __name__ == "__main__":
    sys.exit(main())
