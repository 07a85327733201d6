"""Two sessions of one engine on two streams at the same time: each has the results that it has alone.

The engine is a chain of equal layers, in the form that needs the most scratch memory of all that the library offers. Were
the memory shared, sums of one session would end up in the other's results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from conv_layers import RELU, conv, conv_layer
from matrix_layers import Bound, layer_and_arrays, linear
from sample_engines import make_plan
from tamis.compiler.config import BuildConfig
from tamis.compiler.tactics.base import Choice, Layer, Lowered, Tactic
from tamis.compiler.tactics.cublaslt import CublasLt
from tamis.compiler.tactics.cudnn import CudnnConv
from tamis.compiler.tactics.cusparselt import CusparseLt
from tamis.devices.base import Runner
from tamis.devices.cuda import cublaslt, cudnn, cusparselt
from tamis.devices.cuda.info import cuda_info
from tamis.engine import Buffer, Engine, Format, Port
from tamis.errors import DeviceError
from tamis.formats.dtype import DType
from tamis.runtime import Session

CONFIG = BuildConfig(device="cuda", precisions=(DType.FLOAT16,), optimization_level=5)
STEPS, ROUNDS = 16, 300
# Few results of long sums: libraries split the sums among multiprocessors and add up the parts in scratch memory.
ROWS, WIDTH, LONG_WIDTH = 32, 1024, 4096


@dataclass(frozen=True)
class Sample:
    """A layer whose result can be its own input, float32 values of its inputs, and who runs it."""

    tactic: Tactic
    bind: Callable[..., Runner]
    layer: Layer
    values: dict[str, np.ndarray]


def linear_sample(tactic: Tactic, bind: Callable[..., Runner], width: int, *, sparse: bool) -> Sample:
    layer, arrays = layer_and_arrays(linear(RELU), (ROWS, width), (width, width), sparse=sparse)
    scaled = {**layer.constants, "w": layer.constants["w"] / np.float32(math.sqrt(width))}
    return Sample(tactic, bind, replace(layer, constants=scaled), dict(zip(layer.node.inputs, arrays, strict=True)))


SAMPLES: dict[str, Callable[[], Sample]] = {
    "cublaslt": lambda: linear_sample(CublasLt(), cublaslt.bind, LONG_WIDTH, sparse=False),
    "cusparselt": lambda: linear_sample(CusparseLt(), cusparselt.bind, WIDTH, sparse=True),
    "cudnn": lambda: Sample(CudnnConv(), cudnn.bind, *conv_layer(conv(RELU), (1, 512, 7, 7), (512, 512, 3, 3))),
}


def hungriest(sample: Sample) -> tuple[Choice, Lowered]:
    """The float16 choice that needs the most scratch memory, of one step whose results repeat and fit as its input."""
    layer, found = sample.layer, []
    for choice in sample.tactic.choices(layer, cuda_info(), CONFIG):
        if choice.precision is not DType.FLOAT16:  # float32 is always among them
            continue
        lowered = sample.tactic.lower(layer, choice)
        if len(lowered.steps) > 1 or choice.inputs[0] != choice.outputs[0]:
            continue
        try:
            bound = Bound(lowered, choice, layer, sample.values, sample.bind, "cuda")
            results = []
            for _ in range(3):
                bound.run()
                results.append(bound.result())
        except DeviceError:
            continue  # one that the library has not
        if all(np.array_equal(result, results[0]) for result in results):
            found.append((bound.workspace.reserve(0).numel(), choice, lowered))
    size, choice, lowered = max(found, key=lambda each: each[0])
    assert size > 0, f"nothing needs scratch memory, so nothing is tested: {[choice.key() for _, choice, _ in found]}"
    return choice, lowered


def chain(sample: Sample) -> Engine:
    """x -> the layer, ``STEPS`` times -> y, with one weight; x is the layer's input as it lies in memory."""
    choice, lowered = hungriest(sample)
    (step,), layer = lowered.steps, sample.layer
    shape, format = layer.types[layer.node.output].shape, choice.inputs[0]
    assert layer.type(0).shape == shape
    last = format.layout == "channels_last"
    stored = (shape[0], *shape[2:], shape[1]) if last else shape
    size = math.prod(shape) * format.dtype.size_bytes
    apart = -(-size // 256) * 256
    buffers = [
        Buffer("x", stored, Format(format.dtype), "input", 0, 0, size),
        Buffer("v0", shape, format, "alias", 0, 0, size, alias_of="x"),
        *(Buffer(f"v{n + 1}", shape, format, "arena", n, n + 1, size, offset=n * apart) for n in range(STEPS)),
    ]
    plan = make_plan(
        device=cuda_info(),
        threads=1,
        inputs=(Port("x", stored, format.dtype),),
        outputs=(Port("y", shape, format.dtype),),
        input_values=("x",),
        output_values=(f"v{STEPS}",),
        buffers=tuple(buffers),
        steps=tuple(
            replace(step, name=f"{step.name}{n}", inputs=(f"v{n}",), outputs=(f"v{n + 1}",)) for n in range(STEPS)
        ),
        arena_bytes=STEPS * apart,
        peak_bytes=STEPS * apart,
    )
    return Engine(plan, lowered.constants)


@pytest.mark.parametrize("name", SAMPLES)
def test_sessions_on_two_streams_do_not_disturb_each_other(name: str) -> None:
    sample = SAMPLES[name]()
    reason = sample.tactic.refuses(sample.layer, cuda_info(), CONFIG)
    if reason is not None:
        pytest.skip(reason)
    engine = chain(sample)
    port, device = engine.plan.inputs[0], torch.device("cuda")
    sessions, launches, expected = [Session(engine) for _ in range(2)], [], []
    for seed, session in enumerate(sessions):
        torch.manual_seed(seed)
        launches.append(session.bind([torch.randn(port.shape, device=device).half()]))
        results = [launches[-1]()[0].clone() for _ in range(3)]
        assert all(torch.equal(result, results[0]) for result in results), "not the same even when run alone"
        assert bool(results[0].isfinite().all()) and bool(results[0].any())
        expected.append(results[0])
    streams = [torch.cuda.Stream() for _ in sessions]
    wrong = [torch.zeros((), dtype=torch.int64, device=device) for _ in sessions]
    torch.cuda.synchronize()
    for _ in range(ROUNDS):
        for launch, stream, alone, count in zip(launches, streams, expected, wrong, strict=True):
            with torch.cuda.stream(stream):
                count.add_((launch()[0] != alone).any())
    torch.cuda.synchronize()
    assert [int(count) for count in wrong] == [0, 0], f"of {ROUNDS} runs each"
