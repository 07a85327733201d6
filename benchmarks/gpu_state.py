"""What the first GPU is and how it is doing, as the benchmarks note it."""

from __future__ import annotations

import re

from tamis.devices.cuda.nvml import name_and_driver, read_state
from tamis.report import state_text


def gpu_state() -> str:
    """Clocks, power and heat now, in a few words; empty where there is no GPU."""
    state = read_state()
    return state_text(state) if state is not None else ""


def about_gpu(name: str) -> dict[str, str]:
    """The GPU and its driver, for the results."""
    return {"gpu": name, "driver": (name_and_driver() or ("", "?"))[1]}


def short_name(name: str) -> str:
    """A name for files: ``NVIDIA H200`` is ``h200``."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower().replace("nvidia", "").replace("geforce", "")).strip("-")
    return words or "gpu"
