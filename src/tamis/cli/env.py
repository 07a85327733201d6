"""``tamis env``: what this machine offers, and what is missing."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from tamis.cli.options import Json
from tamis.cli.output import show, show_json

# Libraries: what each is needed for, and how to get it.
LIBRARIES = (
    ("torch", "every CPU kernel but our own", "pip install torch"),
    ("onnx", "reading models", "pip install onnx"),
    ("onnx-ir", "reading models", "pip install onnx-ir"),
    ("openvino", "the 'openvino' tactic: whole regions of dense layers", "pip install openvino"),
    ("onnxruntime", "'tamis compare' and the demo", "pip install onnxruntime"),
    ("onnxscript", "exporting models from PyTorch", "pip install onnxscript"),
    ("matplotlib", "pictures of 'tamis crossover'", "pip install matplotlib"),
    ("scikit-learn", "the demo's images", "pip install scikit-learn"),
)

# What tactics on the GPU need, by the name under which the device lists it.
GPU_LIBRARIES = {
    "cudnn": "install a CUDA build of PyTorch",
    "cudnn_frontend": "pip install --no-deps nvidia-cudnn-frontend",
    "cublaslt": "install a CUDA build of PyTorch",
    "cusparselt": "pip install nvidia-cusparselt-cu13",
}


def command(json: Json = False) -> None:
    """Show versions, CPU features, kernels, and what is missing and how to get it."""
    data = _environment()
    if json:
        show_json(data)
        return
    from rich.text import Text

    from tamis.report import table

    device, kernels = data["device"], data["kernels"]
    gpu = data["cuda"]
    facts = (
        ("Tamis", data["tamis"]),
        ("Python", f"{data['python']} on {data['platform']}"),
        ("CPU", f"{device['name']} ({device['architecture']}), {device['cores']} cores"),
        ("Features", " ".join(device["features"]) or "none known"),
        ("GPU", _gpu_line(gpu)),
        *(("", note) for note in gpu.get("notes", ())),
        (
            "Kernels",
            f"levels {', '.join(kernels['levels'])}; OpenMP {kernels['openmp']}" if kernels else "missing",
        ),
        ("Kernel cache", _cache_line(data["kernel_cache"])),
    )
    show(table(("", ""), facts), Text())
    rows = ((name, version or "missing", needed) for name, version, needed in _libraries())
    show(table(("library", "version", "needed for"), rows))
    if "libraries" in gpu:
        show(Text(), table(("on the GPU", "version"), sorted(gpu["libraries"].items())))
    if data["missing"]:
        show(Text(), table(("missing", "how to get it"), ((m["name"], m["remedy"]) for m in data["missing"])))


def _environment() -> dict[str, Any]:
    from dataclasses import asdict

    import tamis
    from tamis.errors import MissingLibrary
    from tamis.kernels.cpu import load
    from tamis.runtime import open_device

    missing = [{"name": name, "remedy": remedy} for name, _, remedy in LIBRARIES if _version(name) is None]
    kernels: dict[str, Any] | None = None
    try:
        library = load()
        kernels = {"path": str(library.path), "levels": list(library.levels), "openmp": library.openmp}
    except MissingLibrary as error:
        missing.append({"name": "Tamis's own CPU kernels", "remedy": str(error)})
    return {
        "tamis": tamis.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": asdict(open_device("cpu").info()),
        "kernels": kernels,
        "cuda": _cuda(missing),
        "kernel_cache": _kernel_cache(),
        "libraries": {name: version for name, version, _ in _libraries()},
        "missing": missing,
    }


def _gpu_line(gpu: Mapping[str, Any]) -> str:
    if "reason" in gpu:
        return str(gpu["reason"])
    sparse = "with" if "sparse_tensor_cores" in gpu["features"] else "without"
    return f"{gpu['name']} ({gpu['architecture']}), {gpu['cores']} multiprocessors, {sparse} sparse tensor cores"


def _kernel_cache() -> dict[str, Any] | None:
    """Where compiled GPU kernels are kept, and how much; None when they are not."""
    from tamis.kernels import kernel_store

    store = kernel_store()
    if store is None:
        return None
    usage = store.usage()
    return {
        "path": str(store.folder),
        "entries": usage.entries,
        "bytes": usage.size_bytes,
        "most_bytes": store.most_bytes,
    }


def _cache_line(cache: Mapping[str, Any] | None) -> str:
    from tamis.kernels import VARIABLE
    from tamis.report import counted, size

    if cache is None:
        return f"off ({VARIABLE})"
    return f"{cache['path']}: {counted(cache['entries'], 'GPU kernel')}, {size(cache['bytes'])}"


def _cuda(missing: list[dict[str, str]]) -> dict[str, Any]:
    """The GPU with its libraries and what its user should know, or the reason why there is none."""
    from dataclasses import asdict

    from tamis.devices.cuda import cuda_info, cusparselt_advice, require_cuda
    from tamis.errors import DeviceError
    from tamis.kernels.cuda import compiler_name

    try:
        require_cuda()
    except DeviceError as error:
        return {"reason": error.cause, "remedy": error.remedy}
    info = cuda_info()
    missing += [{"name": name, "remedy": how} for name, how in GPU_LIBRARIES.items() if name not in info.libraries]
    if compiler_name() is None:
        missing.append({"name": "a CUDA compiler", "remedy": "pip install nvidia-cuda-nvrtc"})
    word = cusparselt_advice(info.libraries.get("cusparselt", ""), info.architecture)
    return asdict(info) | {"compiler": compiler_name(), "notes": [word] if word else []}


def _libraries() -> list[tuple[str, str | None, str]]:
    return [(name, _version(name), needed) for name, needed, _ in LIBRARIES]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
