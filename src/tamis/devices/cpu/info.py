"""What this CPU is, for the engine and for the key of the timing cache."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib import metadata

import torch

from tamis.devices.cpu.isa import cpu_features, cpu_name
from tamis.engine.plan import DeviceInfo
from tamis.errors import ConfigError


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_cores(device: DeviceInfo, threads: int) -> None:
    """Raise ``ConfigError`` for more threads than a CPU has cores: times of threads that share a core mislead.

    A process may be kept to fewer cores than the machine has; that is no error.
    """
    cores = max(device.cores, os.cpu_count() or 1)
    if device.kind == "cpu" and threads > cores:
        raise ConfigError(f"threads is {threads}, this machine has {cores} cores", remedy="give at most that")


@cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def cpu_info() -> DeviceInfo:
    """The CPU and the libraries whose version its kernels depend on; OpenVINO only where it is installed."""
    libraries = {"torch": str(torch.__version__), "tamis": _version("tamis") or "source"}
    openvino = _version("openvino")
    if openvino is not None:
        libraries["openvino"] = openvino
    return DeviceInfo(
        kind="cpu",
        name=cpu_name(),
        architecture=platform.machine(),
        cores=usable_cores(),
        features=cpu_features(),
        libraries=libraries,
    )
