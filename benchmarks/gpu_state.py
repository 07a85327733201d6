"""What a GPU is and how it is doing, from nvidia-smi's queries; nothing here changes a setting."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

FIELDS = ("name", "driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


@dataclass(frozen=True)
class GpuState:
    """One reading of the first GPU: clocks in MHz, power in watts, temperature in degrees Celsius."""

    name: str
    driver: str
    sm_mhz: float
    memory_mhz: float
    power_w: float
    temperature_c: float

    def __str__(self) -> str:
        return f"{self.sm_mhz:.0f} MHz, {self.power_w:.0f} W, {self.temperature_c:.0f} C"


def query() -> str:
    """nvidia-smi's line for the first GPU; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def gpu_state(read: Callable[[], str] = query) -> GpuState | None:
    """The state now; None where there is no GPU. Fields that a GPU does not report are 0."""
    fields = [field.strip() for field in read().strip().partition("\n")[0].split(",")]
    if len(fields) != len(FIELDS):
        return None
    numbers = [float(field) if re.fullmatch(r"[\d.]+", field) else 0.0 for field in fields[2:]]
    return GpuState(fields[0], fields[1], *numbers)


def short_name(name: str) -> str:
    """A name for files: ``NVIDIA H200`` is ``h200``."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower().replace("nvidia", "").replace("geforce", "")).strip("-")
    return words or "gpu"
