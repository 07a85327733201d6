"""What this GPU is, for the engine and for the key of the timing cache."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from importlib import metadata

import torch

from tamis.devices.cuda import cublaslt_library, cusparselt_library
from tamis.engine.plan import DeviceInfo
from tamis.errors import DeviceError, DeviceLost, MissingLibrary

# What arrived with which compute capability. Sparse tensor cores: A100, A30, RTX 30, 40 and 50, L4, L40S, Orin, H100,
# H200, B200; not V100, T4, RTX 20 or Xavier.
_FEATURES = (("fp16", (7, 0)), ("tf32", (8, 0)), ("bf16", (8, 0)), ("sparse_tensor_cores", (8, 0)), ("fp8", (8, 9)))


def require_cuda() -> None:
    """Raise ``DeviceError`` unless PyTorch can use a GPU here, ``DeviceLost`` when this process broke it before."""
    if torch.version.cuda is None:
        raise DeviceError(
            "there is no CUDA device: this PyTorch was built without CUDA",
            remedy="install a CUDA build of PyTorch, or build for the CPU (--device cpu)",
        )
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceLost(
                f"a kernel that ran earlier in this process broke the GPU: {str(error).splitlines()[0]}",
                remedy="start a new process to use the GPU",
            ) from error
    if not torch.cuda.is_available():
        raise DeviceError(
            "there is no CUDA device: PyTorch finds no GPU or no driver",
            remedy="check that nvidia-smi lists a GPU, or build for the CPU (--device cpu)",
        )


def architecture_of(capability: tuple[int, int]) -> str:
    """The name that compilers use: (9, 0) is ``sm_90``."""
    return f"sm_{capability[0]}{capability[1]}"


def features_of(capability: tuple[int, int]) -> tuple[str, ...]:
    """What a GPU of this compute capability can do that an older one cannot."""
    return tuple(name for name, since in _FEATURES if capability >= since)


def visible_from(environment: Mapping[str, str]) -> dict[str, str]:
    """What a new process must have in its environment for its first GPU to be the current one of this process.

    ``environment`` is that of this process.
    """
    try:
        index = torch.cuda.current_device()
    except RuntimeError:  # a broken context need not answer; nearly always it is the first GPU
        return {}
    if index == 0:
        return {}
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[index].strip() if visible else str(index)}


def cuda_info(index: int = 0) -> DeviceInfo:
    """The GPU and the libraries whose version its kernels depend on; what is missing is left out."""
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    return DeviceInfo(
        kind="cuda",
        name=properties.name,
        architecture=architecture_of(capability),
        cores=properties.multi_processor_count,
        features=features_of(capability),
        libraries=_libraries(),
    )


def _libraries() -> dict[str, str]:
    found = {"torch": str(torch.__version__), "cuda": str(torch.version.cuda)}
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if cudnn is not None:
        found["cudnn"] = f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"
    for name, version in (("cublaslt", cublaslt_library.version), ("cusparselt", cusparselt_library.version)):
        with contextlib.suppress(MissingLibrary):
            found[name] = version()
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["cudnn_frontend"] = metadata.version("nvidia-cudnn-frontend")
    driver = driver_version()
    return found | ({"driver": driver} if driver else {})


def driver_version() -> str | None:
    """The newest CUDA version that the driver serves, such as ``13.0``; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"
