"""Networks drawn at random, built and run with poisoned memory, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

import tamis
from random_networks import drawn
from tamis.runtime import Session

SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network(seed: int) -> None:
    draw = drawn(seed)
    model = draw.model().SerializeToString()
    engine = tamis.build(model, optimization_level=0, threads=1)
    feeds = {"x": draw.numbers.standard_normal(draw.values["x"]).astype(np.float32)}
    expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    session = Session(engine, poison=True)
    for _ in range(2):  # the second run finds what the first left in memory
        results = session.run(feeds)
        for output, wanted in zip(expected.get_outputs(), expected.run(None, feeds), strict=True):
            scale_of = max(float(np.abs(wanted).max()), 1e-3)
            np.testing.assert_allclose(
                results[output.name] / scale_of, wanted / scale_of, atol=1e-4, err_msg=output.name
            )
