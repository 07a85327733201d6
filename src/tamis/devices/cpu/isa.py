"""Which instruction set extensions the processor has, as far as kernels care."""

from __future__ import annotations

import platform
from pathlib import Path

# Linux's names. The second group is Arm's.
KNOWN_FEATURES = (
    "amx_bf16", "amx_fp16", "amx_int8", "amx_tile", "avx2", "avx512_bf16", "avx512_fp16", "avx512_vbmi2",
    "avx512_vnni", "avx512bw", "avx512dq", "avx512f", "avx512vl", "avx_vnni", "f16c", "fma",
    "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip

_CPUINFO = Path("/proc/cpuinfo")


def _cpuinfo_field(*keys: str) -> str:
    """The value of the first line of /proc/cpuinfo with one of these keys; empty where there is none."""
    if not _CPUINFO.is_file():
        return ""
    for line in _CPUINFO.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def cpu_name() -> str:
    """The processor's name for people."""
    return _cpuinfo_field("model name", "Hardware") or platform.processor() or platform.machine() or "cpu"


def cpu_features() -> tuple[str, ...]:
    """The known instruction set extensions that the processor and the operating system offer, sorted.

    Empty where the system does not say (kernels then take their portable path).
    """
    present = set(_cpuinfo_field("flags", "Features").split())
    return tuple(sorted(present & set(KNOWN_FEATURES)))
