"""The step that brings a value from one format to another, as the planner inserts them."""

from __future__ import annotations

from math import prod

import numpy as np

from tamis.compiler.tactics.base import Choice
from tamis.compiler.tactics.cuda_steps import compiles_for, kernel_step
from tamis.engine.plan import DeviceInfo, Format, Step
from tamis.kernels.cuda.movement import convert
from tamis.kernels.cuda.specification import ELEMENTS, MOST_ELEMENTS


def conversion_step(
    value: str, target: str, shape: tuple[int, ...], source: Format, wanted: Format, device: DeviceInfo
) -> tuple[Step, dict[str, np.ndarray]]:
    """A step that reads ``value`` and writes ``target``, with its constants: our kernel on a GPU, else PyTorch's."""
    elements = prod(shape)
    moved = elements * (source.dtype.size_bytes + wanted.dtype.size_bytes)
    known = source.dtype in ELEMENTS and wanted.dtype in ELEMENTS and 0 < elements <= MOST_ELEMENTS
    images = "channels_last" not in (source.layout, wanted.layout) or len(shape) == 4
    if device.kind == "cuda" and known and images and compiles_for(device):
        lies, becomes = ((f.dtype, f.layout == "channels_last") for f in (source, wanted))
        choice = Choice(
            "tamis.cuda", wanted.dtype, (source,), (wanted,), parameters={"architecture": device.architecture}
        )
        return kernel_step(
            convert(shape, lies, becomes), choice, name=f"convert {target}", layers=(), inputs=(value,),
            outputs=(target,), constants={}, moved_bytes=moved,
        )  # fmt: skip
    step = Step(
        f"convert {target}", "aten.convert", (value,), (target,), moved_bytes=moved, precision=wanted.dtype,
        attributes={"arguments": ["in0"]},
    )  # fmt: skip
    return step, {}
