"""Whole engines for a GPU without one: built on paper, run under the played driver, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from played_driver import packed_source

import models
from paper_gpu import H200, PaperGpu, make_up_measurements
from random_joints import Drawn
from random_networks import drawn
from tamis import build
from tamis.compiler.tactics import ahead, cuda_steps
from tamis.compiler.tuner.accuracy import compare
from tamis.devices.cuda import kernels
from tamis.engine import Engine
from tamis.engine.plan import DeviceInfo
from tamis.formats.dtype import DType
from tamis.runtime import Session

LIBRARIES = ("cudnn", "cublaslt", "cusparselt")
FEATURES = ("fp16", "tf32", "bf16", "sparse_tensor_cores")
A100 = replace(H200, name="NVIDIA A100", architecture="sm_80", cores=108, features=FEATURES)


class EmulatedGpu(PaperGpu):
    """Our own kernels run in emulation, PyTorch's on the CPU."""

    def bind(self, step, constants, inputs, outputs):
        if step.kernel.startswith(kernels.PREFIX):
            return kernels.bind(step, constants, inputs, outputs)
        return super().bind(step, constants, inputs, outputs)


@pytest.fixture
def built(driver, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Builds for an emulated GPU: our own kernels and PyTorch's, on made-up times that favour 2:4."""
    make_up_measurements(monkeypatch)
    for module in (ahead, cuda_steps):
        monkeypatch.setattr(module, "compile_source", packed_source)

    def make(path: Path, info: DeviceInfo = H200, precision: DType = DType.FLOAT16) -> Engine:
        monkeypatch.setattr("tamis.compiler.open_device", lambda kind: EmulatedGpu(info))
        return build(
            path, device="cuda", precisions=(precision,), exclude_tactics=LIBRARIES, optimization_level=0
        )  # fmt: skip

    return make


def assert_right(engine: Engine, path: Path, feeds: dict[str, np.ndarray]) -> None:
    """As ONNX Runtime computes it, in memory that is poisoned as well."""
    reference = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    exact = reference.run(None, feeds)
    exactly = "bfloat16" not in engine.plan.config["precisions"]
    for poison in (False, True):
        results = Session(engine, device=EmulatedGpu(engine.plan.device), poison=poison).run(feeds)
        for result, expected in zip(results.values(), exact, strict=True):
            assert compare(result, expected).cosine > (0.9999 if exactly else 0.999)


@pytest.mark.parametrize("seed", [1, 2, 4, 5, 6, 7, 8, 9, 14, 15])
def test_a_random_joint(seed: int, built: Callable[..., Engine], tmp_path: Path):
    """Pieces of a Concat in place, in memory that others use before and after."""
    joint = Drawn(seed)
    path = joint.save(tmp_path / "drawn.onnx")
    engine = built(path)
    writers = [value for step in engine.plan.steps for value in step.outputs]
    assert len(writers) > len(set(writers)), "no piece is in place"
    feeds = {p.name: joint.random.standard_normal(p.shape).astype(np.float32) for p in engine.plan.inputs}
    assert_right(engine, path, feeds)


@pytest.mark.parametrize(
    ("name", "info", "precision"),
    [
        *((name, H200, DType.FLOAT16) for name in ("small-mlp", "small-resnet34", "small-vit", "small-detector")),
        ("small-bert", H200, DType.BFLOAT16), ("small-resnet50", A100, DType.BFLOAT16), ("small-bert", A100, DType.FLOAT16),
    ],
    ids=lambda value: getattr(value, "architecture", str(value)),
)  # fmt: skip
def test_a_network(name: str, info: DeviceInfo, precision: DType, built: Callable[..., Engine], tmp_path: Path):
    """Small ones of the benchmarks' networks, in 2:4: most of their layers run in our kernels."""
    path = tmp_path / "model.onnx"
    models.export(name, path, 1, "2:4", compare=False)
    engine = built(path, info, precision)
    assert any(step.sparsity == "2:4" and "implicit_gemm" in step.kernel for step in engine.plan.steps)
    feeds = {key: value.numpy() for key, value in models.get(name).inputs(1).items()}
    assert_right(engine, path, feeds)


@pytest.mark.parametrize("seed", range(16))
def test_a_random_network(seed: int, built: Callable[..., Engine], tmp_path: Path):
    """On both GPUs, in both types."""
    draw, path = drawn(seed), tmp_path / "drawn.onnx"
    onnx.save(draw.model(), path)
    engine = built(path, (H200, A100)[seed % 2], (DType.FLOAT16, DType.BFLOAT16)[seed // 2 % 2])
    assert_right(engine, path, {"x": draw.numbers.standard_normal(draw.values["x"]).astype(np.float32)})
