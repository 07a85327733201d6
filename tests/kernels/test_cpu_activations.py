"""Activations against float64 over the whole range of float32, at every level, through the real kernel."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_reference import activation

from tamis.formats import DENSE
from tamis.kernels.cpu import Chain, Layer, LinearSpec, Step, pack

STEPS = [
    Step("relu"), Step("clip", -1.5, 3.25), Step("silu"), Step("hardswish"), Step("gelu"), Step("gelu_tanh"),
    Step("sigmoid"), Step("leaky_relu", 0.01), Step("tanh"),
]  # fmt: skip


def _inputs() -> np.ndarray:
    rng = np.random.default_rng(11)
    spread = np.concatenate([rng.uniform(-limit, limit, 3000) for limit in (0.01, 1, 6, 20, 110)])
    sizes = 10.0 ** rng.uniform(-37, 38, 3000) * rng.choice([-1, 1], 3000)
    edges = [
        0.0,
        -0.0,
        0.625,
        -0.625,
        88.7,
        -88.7,
        87.3,
        -87.3,
        104,
        -104,
        14.6,
        -14.6,
        3.4e38,
        -3.4e38,
        1e-45,
    ]
    return np.concatenate([spread, sizes, edges]).astype(np.float32)


def _apply(level, step: Step, values: np.ndarray) -> np.ndarray:
    """Through a layer with the weight 1."""
    library, isa = level
    spec = LinearSpec(1, 1, "float32", DENSE, (step,))
    chain = Chain([Layer(spec, pack(np.ones((1, 1), np.float32), spec))], isa=isa, library=library)
    return chain.apply(values.reshape(-1, 1)).reshape(-1)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.kind)
def test_activation_is_accurate(level, step):
    x = _inputs()
    expected = activation(step, x.astype(np.float64))
    with np.errstate(over="ignore"):
        representable = np.abs(expected.astype(np.float32)) < np.inf
    got = _apply(level, step, x).astype(np.float64)
    # What rounding the input, or the argument of an exponential, makes of the result: |x f'(x)| times 2e-7.
    wide = x.astype(np.float64)
    step_size = 1e-5 * np.abs(wide)
    with np.errstate(all="ignore"):
        change = np.abs(activation(step, wide + step_size) - activation(step, wide - step_size)) / 2e-5
    bound = 1e-6 * np.maximum(np.abs(expected), 1.2e-38) + 2e-7 * np.nan_to_num(change, posinf=0)
    bound += 1.5e-45 * np.minimum(np.abs(wide), 110)  # x times a denormal factor, which is that coarse
    excess = (np.abs(got - expected) / bound)[representable]
    assert (excess < 1).all(), (x[representable][excess.argmax()], excess.max())
    np.testing.assert_array_equal(np.isfinite(got), representable)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.kind)
def test_activation_of_infinity_and_nan(level, step):
    got = _apply(level, step, np.array([np.nan, np.inf, -np.inf], np.float32))
    with np.errstate(invalid="ignore"):
        limits = activation(step, np.array([np.nan, np.inf, -np.inf]))
    np.testing.assert_array_equal(got, limits)
