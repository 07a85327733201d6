"""cuDNN's convolutions on a GPU: every rank of every choice against float64, captured graphs, and stored plans."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from conv_layers import (
    CLIP,
    GELU,
    GELU_TANH,
    LEAKY,
    RELU,
    RELU6,
    RESIDUAL,
    SIGMOID,
    SILU,
    TANH,
    conv,
    conv_layer,
)
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Conv
from tamis.compiler.tactics.base import Choice, Layer, Lowered, Tactic
from tamis.compiler.tactics.cudnn import CudnnConv, CudnnTorch
from tamis.devices.aten import kernels as aten
from tamis.devices.base import BoundShape, Runner
from tamis.devices.cuda import cudnn, cudnn_builders, cudnn_torch, kernels
from tamis.devices.cuda.info import cuda_info
from tamis.devices.cuda.workspace import Workspace
from tamis.devices.tensors import torch_dtype, upload
from tamis.engine.plan import DeviceInfo, Format
from tamis.errors import DeviceError
from tamis.formats.dtype import DType
from tamis.kernels import KernelStore

PRECISIONS = (DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16)
CONFIG = BuildConfig(device="cuda", precisions=PRECISIONS, optimization_level=5)
LIBRARIES = {"cudnn": "9.19.0", "cudnn_frontend": "1.32.0"}
# Largest error over the largest value of the float64 result of inputs rounded to the precision's type in memory.
# float32 must do better than tf32 can.
LARGEST_ERROR = {DType.FLOAT32: 5e-5, DType.TF32: 3e-3, DType.BFLOAT16: 2e-2, DType.FLOAT16: 2.5e-3}

CASES: tuple[tuple[str, Conv, tuple[int, ...], tuple[int, ...]], ...] = (
    ("resnet stem", conv(RELU, stride=2, pads=3), (2, 3, 224, 224), (64, 3, 7, 7)),
    ("resnet 3x3", conv(RELU), (1, 64, 56, 56), (64, 64, 3, 3)),
    ("resnet 3x3, batch 16", conv(RELU), (16, 256, 14, 14), (256, 256, 3, 3)),
    ("resnet down", conv(RELU, stride=2), (2, 128, 28, 28), (256, 128, 3, 3)),
    ("resnet shortcut", conv(stride=2, pads=0), (2, 256, 28, 28), (512, 256, 1, 1)),
    ("resnet expand", conv(RESIDUAL, RELU, pads=0), (4, 64, 28, 28), (256, 64, 1, 1)),
    ("resnet34 block", conv(RESIDUAL, RELU), (4, 64, 28, 28), (64, 64, 3, 3)),
    ("detector stem", conv(SILU, stride=2), (1, 3, 160, 160), (32, 3, 3, 3)),
    ("detector stem 6x6", conv(SILU, stride=2, pads=2), (2, 3, 160, 160), (32, 3, 6, 6)),
    ("patch embedding", conv(stride=16, pads=0), (2, 3, 224, 224), (192, 3, 16, 16)),
    ("stem of odd sizes", conv(RELU, stride=3, pads=(1, 2, 0, 1)), (2, 3, 50, 61), (24, 3, 5, 7)),
    ("stem of a gray image", conv(RELU, stride=2), (2, 1, 29, 33), (16, 1, 5, 5)),
    ("detector 3x3", conv(SILU), (2, 64, 40, 40), (64, 64, 3, 3)),
    ("detector shortcut", conv(SILU, RESIDUAL), (1, 32, 40, 40), (32, 32, 3, 3)),
    ("detector head", conv(pads=0), (1, 256, 20, 20), (255, 256, 1, 1)),
    ("mobilenet depthwise", conv(RELU6, groups=96), (2, 96, 28, 28), (96, 1, 3, 3)),
    ("mobilenet depthwise down", conv(RELU6, stride=2, groups=144), (1, 144, 27, 27), (144, 1, 3, 3)),
    ("mobilenet project", conv(RESIDUAL, pads=0), (2, 144, 14, 14), (24, 144, 1, 1)),
    ("grouped", conv(RELU, groups=4), (2, 64, 14, 14), (128, 16, 3, 3)),
    ("odd channels", conv(RELU), (3, 13, 11, 9), (17, 13, 3, 3)),
    ("one channel", conv(RELU), (1, 1, 28, 28), (8, 1, 5, 5)),
    ("one pixel", conv(RELU, pads=0), (5, 96, 1, 1), (40, 96, 1, 1)),
    ("uneven padding", conv(RELU, stride=2, pads=(0, 0, 1, 1)), (1, 16, 33, 30), (24, 16, 3, 3)),
    ("dilated", conv(RELU, pads=2, dilation=2), (1, 32, 19, 23), (32, 32, 3, 3)),
    ("bare", conv(bias=False), (1, 32, 19, 23), (48, 32, 3, 3)),
    ("no bias, relu", conv(RELU, bias=False), (1, 32, 19, 23), (48, 32, 3, 3)),
)
ACTIVATIONS = (CLIP, GELU, GELU_TANH, LEAKY, RELU6, SIGMOID, SILU, TANH)


@functools.cache
def gpu() -> DeviceInfo:
    """This GPU, with all libraries: one that is missing fails the tests, which would be skipped otherwise."""
    return replace(cuda_info(), libraries=LIBRARIES)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> cudnn.Context:
    return cudnn.Context(torch.cuda.current_device(), KernelStore(tmp_path_factory.mktemp("plans")))


@dataclass
class Bound:
    """Steps over their slots; slot numbers of the values by name; the scratch memory of the steps."""

    runners: list[Runner]
    slots: list[torch.Tensor]
    where: dict[str, BoundShape]
    workspace: Workspace

    def run(self) -> torch.Tensor:
        for runner in self.runners:
            runner(self.slots)
        return self.slots[self.where["y"].slot]


def laid_out(shape: tuple[int, ...], format: Format) -> torch.Tensor:
    order = torch.channels_last if format.layout == "channels_last" and len(shape) == 4 else torch.contiguous_format
    made = torch.empty(shape, dtype=torch_dtype(format.dtype), device="cuda", memory_format=order)
    return made.fill_(float("nan"))


def bound(
    lowered: Lowered, layer: Layer, arrays: dict[str, np.ndarray], choice: Choice, shared: cudnn.Context
) -> Bound:
    slots: list[torch.Tensor] = []
    where: dict[str, BoundShape] = {}

    def place(name: str, shape: tuple[int, ...], format: Format, *, given: bool) -> None:
        where[name] = BoundShape(len(slots), tuple(shape), format, given)
        slots.append(laid_out(tuple(shape), format))

    for name, format in zip(layer.values, choice.inputs, strict=True):
        place(name, arrays[name].shape, format, given=False)
        slots[-1].copy_(torch.from_numpy(arrays[name]))
    for name, (shape, format) in lowered.temporaries.items():
        place(name, shape, format, given=True)
    place("y", layer.types["y"].shape, choice.outputs[0], given=True)
    constants = {name: upload(array).cuda() for name, array in lowered.constants.items()}
    runners, workspace = [], Workspace(torch.device("cuda"))
    for step in lowered.steps:
        inputs, outputs = [where[v] for v in step.inputs], [where[v] for v in step.outputs]
        mine = {name: constants[name] for name in step.constants}
        if step.kernel.startswith("cuda."):
            runners.append(kernels.bind(step, mine, inputs, outputs))
        elif step.kernel.startswith("aten."):
            runners.append(aten.bind(step, mine, inputs, outputs))
        else:
            weight, bias = mine[step.constants[0]], mine[step.constants[1]] if len(mine) > 1 else None
            if step.kernel == "cudnn.torch_conv":
                runners.append(cudnn_torch.bind_conv(step, weight, bias, inputs, outputs[0]))
            else:
                runners.append(cudnn.bind_conv(step, weight, bias, inputs, outputs[0], shared, workspace))
    return Bound(runners, slots, where, workspace)


def reference(layer: Layer, arrays: dict[str, np.ndarray], precision: DType) -> torch.Tensor:
    """The layer in float64, of inputs rounded to the type in memory."""
    kind = torch_dtype(precision.storage)
    values = [torch.from_numpy(arrays[name]).cuda().to(kind).double() for name in layer.node.inputs]
    op: Conv = layer.op
    top, left, bottom, right = op.pads
    image = functional.pad(values[0], (left, right, top, bottom))
    bias = values[2] if op.bias else None
    value = functional.conv2d(image, values[1], bias, op.strides, 0, op.dilations, op.groups)
    functions: dict[str, Callable[..., torch.Tensor]] = {
        "relu": functional.relu, "clip": torch.clamp, "silu": functional.silu, "sigmoid": torch.sigmoid,
        "tanh": torch.tanh, "gelu": functional.gelu, "leaky_relu": functional.leaky_relu,
        "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
    }  # fmt: skip
    for step in op.epilogue:
        value = value + values[step.operand] if step.operand is not None else functions[step.kind](value, *step.params)
    return value


def error_of(result: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest error over the largest wanted value; infinite when something was not written."""
    if not bool(torch.isfinite(result).all()):
        return float("inf")
    return float((result.double() - wanted).abs().max() / wanted.abs().max())


def tried(
    tactic: Tactic, layer: Layer, arrays: dict[str, np.ndarray], shared: cudnn.Context, precision: DType
) -> Iterator[tuple[Choice, Bound]]:
    """The choices of one precision that cuDNN has."""
    exhausted: set[str] = set()
    for choice in tactic.choices(layer, gpu(), replace(CONFIG, precisions=(precision,))):
        if choice.precision != precision:
            continue
        family = str([(k, v) for k, v in choice.parameters.items() if k != "rank"])
        if family in exhausted:
            continue
        try:
            yield choice, bound(tactic.lower(layer, choice), layer, arrays, choice, shared)
        except DeviceError as error:
            assert "cuDNN" in str(error), error
            exhausted.add(family)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "op", "x", "w"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("tactic", [CudnnConv(), CudnnTorch()], ids=lambda tactic: tactic.name)
def test_every_choice_against_float64(
    tactic: Tactic,
    name: str,
    op: Conv,
    x: tuple[int, ...],
    w: tuple[int, ...],
    precision: DType,
    shared: cudnn.Context,
) -> None:
    layer, arrays = conv_layer(op, x, w)
    if tactic.refuses(layer, gpu(), CONFIG) is not None:
        pytest.skip("refused")
    wanted = reference(layer, arrays, precision)
    ran, wrong = 0, []
    for choice, steps in tried(tactic, layer, arrays, shared, precision):
        error = error_of(steps.run(), wanted)
        ran += 1
        if error > LARGEST_ERROR[precision]:
            wrong.append((dict(choice.parameters), error))
    assert ran, "cuDNN has no plan at all"
    assert not wrong


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("op", "x", "w"), [case[1:] for case in CASES if "stem" in case[0] or "patch" in case[0]], ids=str
)
def test_space_to_depth_has_plans(
    op: Conv, x: tuple[int, ...], w: tuple[int, ...], precision: DType, shared: cudnn.Context
) -> None:
    """In the test above a way for which cuDNN has no plan just drops out."""
    layer, arrays = conv_layer(op, x, w)
    ways = [dict(choice.parameters) for choice, _ in tried(CudnnConv(), layer, arrays, shared, precision)]
    assert any(way.get("space_to_depth") == op.strides[0] for way in ways), ways


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda step: f"{step.kind}{step.params or ''}")
@pytest.mark.parametrize("place", ["alone", "residual before", "residual behind"])
def test_every_activation_fused(activation, place: str, shared: cudnn.Context) -> None:  # type: ignore[no-untyped-def]
    steps = {
        "alone": (activation,),
        "residual before": (RESIDUAL, activation),
        "residual behind": (activation, RESIDUAL),
    }
    layer, arrays = conv_layer(conv(*steps[place]), (2, 32, 14, 14), (32, 32, 3, 3))
    choice, run = next(tried(CudnnConv(), layer, arrays, shared, DType.FLOAT16))
    assert dict(choice.parameters) == {"rank": 0}
    assert len(run.runners) == 1
    assert error_of(run.run(), reference(layer, arrays, DType.FLOAT16)) <= LARGEST_ERROR[DType.FLOAT16]


@pytest.mark.parametrize("tactic", [CudnnConv(), CudnnTorch()], ids=lambda tactic: tactic.name)
@pytest.mark.parametrize("precision", [DType.TF32, DType.FLOAT16])
@pytest.mark.parametrize("op", [conv(RELU), conv(RESIDUAL, RELU), conv(SILU)], ids=["relu", "residual", "silu"])
def test_captured_in_a_graph_and_replayed(op: Conv, precision: DType, tactic: Tactic, shared: cudnn.Context) -> None:
    layer, arrays = conv_layer(op, (2, 32, 14, 14), (32, 32, 3, 3))
    for choice, steps in tried(tactic, layer, arrays, shared, precision):
        steps.run()  # modules are loaded when they first run
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = steps.run()
        fresh = {**arrays, "x": np.random.default_rng(1).standard_normal(arrays["x"].shape).astype(np.float32)}
        steps.slots[steps.where["x"].slot].copy_(torch.from_numpy(fresh["x"]))
        result.fill_(float("nan"))
        steps.workspace.reserve(steps.workspace.reserve(0).numel() + 1)  # the graph has the block that it knows
        spoilt = [torch.full((size,), float("nan"), device="cuda") for size in (1 << 8, 1 << 16, 1 << 20) * 8]
        graph.replay()
        torch.cuda.synchronize()
        assert error_of(result, reference(layer, fresh, precision)) <= LARGEST_ERROR[precision], choice
        assert all(bool(block.isnan().all()) for block in spoilt), "the graph wrote into memory that was freed"
        del spoilt


@pytest.mark.parametrize("precision", [DType.TF32, DType.FLOAT16])
@pytest.mark.parametrize(("op", "x", "w"), [case[1:] for case in CASES if "detector" in case[0]], ids=str)
def test_plans_built_ahead_by_other_processes_run(
    op: Conv, x: tuple[int, ...], w: tuple[int, ...], precision: DType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They plan for this GPU without seeing it. What they leave is found, right, and of the rank that was asked for."""
    layer, arrays = conv_layer(op, x, w)
    choices = CudnnConv().choices(layer, gpu(), replace(CONFIG, precisions=(precision,)))
    mine = [choice for choice in choices if choice.precision == precision and CudnnConv().units(layer, choice)]
    assert bool(mine) == (SILU in op.epilogue)
    here = cudnn.Context(torch.cuda.current_device(), KernelStore(tmp_path / "built ahead"))
    monkeypatch.setattr(cudnn_builders, "context", lambda device: here)
    with cudnn_builders.plan_builders(2) as builders:
        assert builders is not None, "this cuDNN cannot tell its properties"
        for choice in mine:
            (unit,) = CudnnConv().units(layer, choice)
            builders.build(unit.problem, unit.rank)
    direct = cudnn.Context(torch.cuda.current_device(), None)
    monkeypatch.setattr(here, "_built", lambda problem, rank: pytest.fail("it was not stored"))
    wanted = reference(layer, arrays, precision)
    for choice in mine:
        try:
            plain = bound(CudnnConv().lower(layer, choice), layer, arrays, choice, direct).run().clone()
        except DeviceError:
            with pytest.raises(DeviceError, match="cuDNN"):
                bound(CudnnConv().lower(layer, choice), layer, arrays, choice, here)
            continue
        result = bound(CudnnConv().lower(layer, choice), layer, arrays, choice, here).run()
        assert error_of(result, wanted) <= LARGEST_ERROR[precision], choice
        assert torch.equal(result, plain), f"another plan than the one of this rank: {choice}"


def test_results_are_the_same_each_time(shared: cudnn.Context) -> None:
    layer, arrays = conv_layer(conv(RELU), (4, 256, 14, 14), (256, 256, 3, 3))
    for choice, steps in tried(CudnnConv(), layer, arrays, shared, DType.FLOAT16):
        first = steps.run().clone()
        assert all(torch.equal(first, steps.run()) for _ in range(5)), choice


def test_a_stream_of_the_callers_is_used(shared: cudnn.Context) -> None:
    layer, arrays = conv_layer(conv(RELU), (2, 32, 14, 14), (32, 32, 3, 3))
    _, steps = next(tried(CudnnConv(), layer, arrays, shared, DType.FLOAT16))
    wanted, stream = steps.run().clone(), torch.cuda.Stream()
    steps.slots[steps.where["y"].slot].fill_(float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        result = steps.run()
    assert not stream.query(), "the step did not wait for the stream that it was given"
    stream.synchronize()
    assert torch.equal(result, wanted)


def resnet50() -> Iterator[tuple[Conv, tuple[int, ...], tuple[int, ...]]]:
    """The distinct convolutions of ResNet-50 at batch 1, as they are fused."""
    yield conv(RELU, stride=2, pads=3), (1, 3, 224, 224), (64, 3, 7, 7)
    channels, size = 64, 56
    for stage, inner in enumerate((64, 128, 256, 512)):
        stride, outer = 1 if stage == 0 else 2, 4 * inner
        yield conv(RELU, pads=0), (1, channels, size, size), (inner, channels, 1, 1)
        yield conv(RELU, stride=stride), (1, inner, size, size), (inner, inner, 3, 3)
        yield conv(stride=stride, pads=0), (1, channels, size, size), (outer, channels, 1, 1)
        size //= stride
        yield conv(RESIDUAL, RELU, pads=0), (1, inner, size, size), (outer, inner, 1, 1)
        yield conv(RELU, pads=0), (1, outer, size, size), (inner, outer, 1, 1)
        yield conv(RELU), (1, inner, size, size), (inner, inner, 3, 3)
        channels = outer


@pytest.mark.parametrize("swap", [False, True], ids=["relu", "silu"])
def test_loading_a_network_again_is_quick(swap: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ResNet-50 within two seconds, also with an activation whose plans are compiled; and the results are equal."""
    lowered = []
    for op, x, w in resnet50():
        changed = replace(op, epilogue=tuple(SILU if step == RELU else step for step in op.epilogue)) if swap else op
        layer, arrays = conv_layer(changed, x, w)
        choice = next(
            c
            for c in CudnnConv().choices(layer, gpu(), CONFIG)
            if c.precision == DType.FLOAT16 and not c.parameters["rank"]
        )
        lowered.append((CudnnConv().lower(layer, choice), layer, arrays, choice))
    seconds, results = [], []
    for _ in ("build", "load"):
        start = time.perf_counter()
        fresh = cudnn.Context(torch.cuda.current_device(), KernelStore(tmp_path))
        runs = [bound(*case, fresh) for case in lowered]
        results.append([run.run().clone() for run in runs])
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    with capsys.disabled():
        print(f"\n{len(lowered)} convolutions: built in {seconds[0]:.2f} s, loaded in {seconds[1]:.2f} s")
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert seconds[1] < 2.0
