"""Small engines made by hand, and a device of a few lines that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import torch

from tamis.devices.base import BoundShape, Runner, Slots
from tamis.devices.cpu import CpuDevice
from tamis.devices.tensors import torch_dtype
from tamis.engine import (
    PLAN_VERSION,
    Accuracy,
    Buffer,
    Candidate,
    DeviceInfo,
    Engine,
    EngineRecord,
    Format,
    LayerRecord,
    Plan,
    Port,
    RegionRecord,
    Step,
    Timing,
)
from tamis.formats.dtype import DType
from tamis.runtime.tensors import numpy_to_torch

DEVICE = DeviceInfo("cpu", "a fake", "fake64", 4, ("mul", "add"), {"fakelib": "1.0"})
F32 = Format()


class FakeDevice:
    """Runs ``fake.scale``, ``fake.add`` and ``fake.noop`` with torch, in plain eager operations."""

    replays = CpuDevice.replays
    stage = CpuDevice.stage
    record = CpuDevice.record
    part_timer = CpuDevice.part_timer
    stopwatch = CpuDevice.stopwatch
    ranges = CpuDevice.ranges
    state = CpuDevice.state

    def __init__(self, info: DeviceInfo = DEVICE) -> None:
        self._info = info
        self.threads = 0

    def info(self) -> DeviceInfo:
        return self._info

    def upload(self, array: np.ndarray) -> torch.Tensor:
        return numpy_to_torch(array).clone()

    def empty(self, shape: Sequence[int], format: Format) -> torch.Tensor:
        memory_format = torch.channels_last if format.layout == "channels_last" else torch.contiguous_format
        return torch.empty(tuple(shape), dtype=torch_dtype(format.dtype), memory_format=memory_format)

    def arena(self, size_bytes: int) -> torch.Tensor:
        return torch.zeros(size_bytes, dtype=torch.uint8)

    def view(self, arena: torch.Tensor, offset: int, shape: Sequence[int], format: Format) -> torch.Tensor:
        dtype = torch_dtype(format.dtype)
        flat = arena[offset : offset + int(np.prod(shape)) * dtype.itemsize].view(dtype)
        if format.layout == "channels_last":
            n, c, h, w = shape
            return flat.view(n, h, w, c).permute(0, 3, 1, 2)
        return flat.view(tuple(shape))

    def download(self, tensor: torch.Tensor) -> np.ndarray:
        tensor = tensor.contiguous().clone()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def bind(
        self,
        step: Step,
        constants: Mapping[str, Any],
        inputs: Sequence[BoundShape],
        outputs: Sequence[BoundShape],
    ) -> Runner:
        sources = [bound.slot for bound in inputs]
        operands = [constants[name] for name in step.constants]
        kernels: dict[str, Callable[..., torch.Tensor]] = {
            "fake.scale": lambda x, w: x * w,
            "fake.add": lambda a, b: a + b,
            "fake.cast": lambda x: x.to(torch_dtype(step.precision)),
        }
        if step.kernel == "fake.noop":
            return lambda slots: None
        kernel, target = kernels[step.kernel], outputs[0].slot

        def run(slots: Slots) -> None:
            result = kernel(*(slots[slot] for slot in sources), *operands)
            if outputs[0].preallocated:
                slots[target].copy_(result)
            else:
                slots[target] = result

        return run

    def kernel_names(self, steps: Sequence[Step], parts: Sequence[Callable[[], None]]) -> list[tuple[str, ...]]:
        for part in parts:
            part()
        return [(f"run_{step.kernel}",) for step in steps]

    def ordered(self, steps: Sequence[Step], runners: Sequence[Runner]) -> list[Runner]:
        return list(runners)

    def synchronize(self) -> None:
        pass

    def set_threads(self, threads: int) -> None:
        self.threads = threads


def make_plan(**changes: Any) -> Plan:
    """y = x * w (in the arena), z = y + y (given by the library), out = z + x; x and out are [2, 4]."""
    x = Port("x", (2, 4), DType.FLOAT32)
    plan = Plan(
        name="sample",
        version=PLAN_VERSION,
        tamis="0.1.0",
        device=DEVICE,
        threads=2,
        inputs=(x,),
        outputs=(Port("out", (2, 4), DType.FLOAT32),),
        input_values=("x",),
        output_values=("out",),
        buffers=(
            Buffer("x", (2, 4), F32, "input", 0, 2, 32),
            Buffer("y", (2, 4), F32, "arena", 0, 1, 32, offset=64),
            Buffer("z", (2, 4), F32, "device", 1, 2, 32),
            Buffer("out", (2, 4), F32, "arena", 2, 3, 32, offset=0),
        ),
        steps=(
            Step("scale", "fake.scale", ("x",), ("y",), ("w",), layers=("scale",), flops=8, moved_bytes=96),
            Step("double", "fake.add", ("y", "y"), ("z",), layers=("double",), flops=8, moved_bytes=64),
            Step("add", "fake.add", ("z", "x"), ("out",), layers=("add",), flops=8, moved_bytes=96),
        ),
        arena_bytes=128,
        peak_bytes=96,
        layers=(sample_layer(),),
        regions=(
            RegionRecord(
                "openvino",
                DType.FLOAT32,
                ("scale", "double"),
                Timing(9.0, 8.0, 11.0, 15),
                7.5,
                False,
                "slower",
            ),
        ),
        engines=(
            EngineRecord("raced", Timing(12.0, 11.0, 14.0, 15), Accuracy(1e-6, 1.0, 120.0), True, "fastest"),
            EngineRecord("all dense", Timing(15.0, 14.0, 18.0, 15), Accuracy(1e-6, 1.0, 120.0), False, "slower"),
        ),
        config={"sparsity": "auto", "precisions": ["float32"]},
    )
    return replace(plan, **changes)


def sample_layer() -> LayerRecord:
    accuracy = Accuracy(1e-6, 1.0, 120.0)
    return LayerRecord(
        name="scale",
        kind="Linear",
        description="[2,4] x [4,4]",
        origin=("node_1",),
        eligible=True,
        ineligible_reason="",
        zeros=0.5,
        candidates=(
            Candidate("onednn.linear", "lost", timing=Timing(5.0, 4.5, 6.0, 15), accuracy=accuracy, reason="slower"),
            Candidate(
                "stream.linear",
                "won",
                sparsity="2:4",
                timing=Timing(2.5, 2.25, 3.0, 15),
                accuracy=accuracy,
                reason="fastest",
            ),
            Candidate("openvino", "refused", reason="not installed"),
        ),
        step="scale",
        chosen_tactic="stream.linear",
        chosen_precision=DType.FLOAT32,
        chosen_sparsity="2:4",
        why="2.00x faster than the best dense candidate",
    )


def make_engine(**changes: Any) -> Engine:
    """The engine of ``make_plan``, with tensors of several types, sizes and ranks beside its weight."""
    random = np.random.default_rng(0)
    tensors = {
        "w": np.float32([2.0]),
        "matrix": random.standard_normal((16, 8)).astype(np.float32),
        "half": random.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
        "bytes": random.integers(0, 255, 7).astype(np.uint8),
        "scalar": np.array(3, np.int64),
        "none": np.zeros((0, 4), np.float32),
        "flags": np.array([True, False]),
    }
    return Engine(make_plan(**changes), tensors)


def reference(x: np.ndarray) -> np.ndarray:
    """What the sample engine computes."""
    return 4.0 * x + x
