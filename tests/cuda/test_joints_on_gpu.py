"""Random networks around a Concat: whole engines against ONNX Runtime, with memory poisoned too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from random_joints import Drawn
from tamis import build, load
from tamis.compiler.tuner.accuracy import compare
from tamis.formats.dtype import DType
from tamis.runtime import Session

LIBRARIES = ("cudnn", "cublaslt", "cusparselt")  # so that our kernels run, whose results may lie anywhere


@pytest.mark.parametrize("seed", range(16))
def test_a_random_joint(seed: int, tmp_path: Path) -> None:
    drawn = Drawn(seed)
    path = drawn.save(tmp_path / "drawn.onnx")
    engine = build(path, device="cuda", precisions=(DType.FLOAT16,), optimization_level=1, exclude_tactics=LIBRARIES)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for opened in (load(engine), Session(engine, poison=True)):
        feeds = {p.name: drawn.random.standard_normal(p.shape).astype(np.float32) for p in engine.plan.inputs}
        exact = session.run(None, feeds)
        for result, reference in zip(opened.run(feeds).values(), exact, strict=True):
            accuracy = compare(result, reference)
            assert accuracy.cosine > 0.9999 and accuracy.max_relative_error < 1e-2, (seed, accuracy)
