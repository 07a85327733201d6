"""What the cuDNN tactics refuse, offer and lower to; none of it needs a GPU."""

from __future__ import annotations

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from conv_layers import CLIP, GELU, LEAKY, RELU, RELU6, RESIDUAL, SILU, conv, conv_layer
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import TensorType
from tamis.compiler.ir.ops import Conv, ConvTranspose, Linear, Pointwise
from tamis.compiler.tactics.base import Choice, Layer
from tamis.compiler.tactics.cudnn import (
    BLOCKED_RANKS,
    COMPILED_RANKS,
    PADDED_RANKS,
    READY_RANKS,
    CudnnConv,
    CudnnTorch,
)
from tamis.engine.plan import DeviceInfo, Format
from tamis.formats.dtype import DType
from tamis.kernels.cuda import compiler_name

LIBRARIES = {"torch": "2.11.0", "cudnn": "9.19.0", "cudnn_frontend": "1.32.0"}
GPU = DeviceInfo("cuda", "NVIDIA H200", "sm_90", 132, ("tf32", "bf16", "fp8"), LIBRARIES)
ALL = (DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16)
CONFIG = BuildConfig(device="cuda", precisions=ALL)
IMAGE, WEIGHT = (2, 8, 9, 7), (16, 8, 3, 3)


def choices(op: Conv, image: tuple[int, ...] = IMAGE, weight: tuple[int, ...] = WEIGHT) -> list[Choice]:
    layer, _ = conv_layer(op, image, weight)
    assert CudnnConv().refuses(layer, GPU, CONFIG) is None
    return list(CudnnConv().choices(layer, GPU, CONFIG))


def choice_of(found: list[Choice], precision: DType, **parameters: object) -> Choice:
    return next(c for c in found if c.precision == precision and parameters.items() <= dict(c.parameters).items())


def refusal(layer: Layer, device: DeviceInfo = GPU, tactic: CudnnConv | CudnnTorch | None = None) -> str:
    reason = (tactic or CudnnConv()).refuses(layer, device, CONFIG)
    assert reason is not None
    return reason


def test_devices_that_cannot_run_it() -> None:
    layer, _ = conv_layer(conv(RELU), IMAGE, WEIGHT)
    assert refusal(layer, replace(GPU, kind="cpu")) == "runs on CUDA devices only"
    old = replace(GPU, architecture="sm_75")
    assert refusal(layer, old) == "needs compute capability 8.0 or newer; this is sm_75"
    assert CudnnConv().refuses(layer, replace(GPU, architecture="sm_100"), CONFIG) is None
    assert "no cuDNN" in refusal(layer, replace(GPU, libraries={"torch": "2.11.0"}))
    torch_only = replace(GPU, libraries={"cudnn": "9.19.0"})
    assert "nvidia-cudnn-frontend" in refusal(layer, torch_only)
    assert CudnnTorch().refuses(layer, torch_only, CONFIG) is None


def test_layers_that_it_cannot_run() -> None:
    layer, _ = conv_layer(conv(RELU), IMAGE, WEIGHT)
    transposed = ConvTranspose((2, 2), (0,) * 4, (1, 1), (0, 0))
    assert (
        refusal(replace(layer, node=replace(layer.node, op=transposed))) == "transposed convolutions are left to aten"
    )
    assert "not a convolution" in refusal(replace(layer, node=replace(layer.node, op=Linear())))
    line, _ = conv_layer(Conv((1,), (1, 1), (1,)), (2, 8, 9), (4, 8, 3))
    assert refusal(line) == "1-D convolution; only 2-D is offered"
    volume, _ = conv_layer(Conv((1,) * 3, (1,) * 6, (1,) * 3), (1, 2, 4, 4, 4), (3, 2, 3, 3, 3))
    assert refusal(volume) == "3-D convolution; only 2-D is offered"
    assert "run time" in refusal(conv_layer(conv(), IMAGE, WEIGHT, constant=False)[0])
    assert "run time" in refusal(replace(layer, constants={"w": layer.constants["w"]}))
    integers = {**layer.types, "x": TensorType(IMAGE, DType.INT32)}
    assert "int32" in refusal(replace(layer, types=integers))
    uneven, _ = conv_layer(conv(pads=(0, 0, 1, 1)), IMAGE, WEIGHT)
    assert CudnnConv().refuses(uneven, GPU, CONFIG) is None
    assert "asymmetric" in refusal(uneven, tactic=CudnnTorch())


def test_every_allowed_precision_with_every_rank() -> None:
    found = choices(conv(RELU))
    assert {c.precision for c in found} == set(ALL)
    for precision in ALL:
        mine = [c for c in found if c.precision == precision]
        assert [dict(c.parameters) for c in mine] == [{"rank": rank} for rank in range(READY_RANKS)]
        assert all(c.inputs == (Format(precision.storage, "channels_last"),) == c.outputs for c in mine)
    assert len({c.key() for c in found}) == len(found)
    ampere_without = replace(GPU, features=())
    layer, _ = conv_layer(conv(RELU), IMAGE, WEIGHT)
    assert {c.precision for c in CudnnConv().choices(layer, ampere_without, CONFIG)} == {DType.FLOAT32, DType.FLOAT16}
    fast = replace(CONFIG, optimization_level=0)
    assert {c.parameters["rank"] for c in CudnnConv().choices(layer, GPU, fast)} == {0}


@pytest.mark.parametrize(
    ("op", "fusions"),
    [
        (conv(), {"all": READY_RANKS}),
        (conv(RELU), {"all": READY_RANKS}),
        (conv(RESIDUAL, RELU), {"all": READY_RANKS}),
        (conv(RESIDUAL), {"all": READY_RANKS}),
        (conv(SILU), {"all": COMPILED_RANKS, "sum": READY_RANKS}),
        (conv(RELU6), {"all": COMPILED_RANKS, "sum": READY_RANKS}),
        (conv(SILU, RESIDUAL), {"all": COMPILED_RANKS, "sum": READY_RANKS}),
        (conv(Pointwise("mish")), {"all": READY_RANKS}),  # nothing of it can be fused
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_compiled_races_in_fewer_ranks_and_with_a_ready_rival(op: Conv, fusions: dict[str, int]) -> None:
    found = [c for c in choices(op, IMAGE, WEIGHT) if c.precision == DType.FLOAT16]
    counted: dict[str, int] = {}
    for choice in found:
        fuse = str(choice.parameters.get("fuse", "all"))
        counted[fuse] = counted.get(fuse, 0) + 1
    assert counted == fusions


def test_grouped_layers_are_also_offered_bare() -> None:
    found = choices(conv(RELU6, groups=8), IMAGE, (8, 1, 3, 3))
    assert {c.parameters.get("fuse", "all") for c in found} == {"all", "sum", "none"}
    unbiased = choices(conv(RELU6, groups=8, bias=False), IMAGE, (8, 1, 3, 3))
    assert {c.parameters.get("fuse", "all") for c in unbiased} == {"all", "sum"}  # a bare sum of nothing is "none"


@pytest.mark.parametrize("precision", ALL)
def test_lowering_packs_the_weight_with_channels_innermost(precision: DType) -> None:
    layer, arrays = conv_layer(conv(RESIDUAL, RELU, stride=2, pads=(0, 1, 2, 3), dilation=2), IMAGE, WEIGHT)
    choice = choice_of(list(CudnnConv().choices(layer, GPU, CONFIG)), precision, rank=3)
    lowered = CudnnConv().lower(layer, choice)
    (step,) = lowered.steps
    assert (step.kernel, step.inputs, step.outputs) == ("cudnn.conv", ("x", "r3"), ("y",))
    assert step.constants == ("layer.weight", "layer.bias") == tuple(lowered.constants)
    weight, bias = (lowered.constants[name] for name in step.constants)
    assert weight.dtype == bias.dtype == precision.numpy
    assert weight.shape == (16, 3, 3, 8)
    assert weight.flags.c_contiguous
    rounded = arrays["w"].astype(precision.numpy)
    np.testing.assert_array_equal(weight.transpose(0, 3, 1, 2).astype(np.float32), rounded.astype(np.float32))
    np.testing.assert_array_equal(bias.astype(np.float32), arrays["b"].astype(precision.numpy).astype(np.float32))
    assert step.attributes == {
        "strides": [2, 2], "pads": [0, 1, 2, 3], "dilations": [2, 2], "groups": 1, "rank": 3,
        "epilogue": [{"kind": "add", "params": []}, {"kind": "relu", "params": []}],
    }  # fmt: skip
    assert json.loads(json.dumps(step.attributes, allow_nan=False)) == step.attributes
    assert step.precision == precision
    assert not lowered.temporaries


def test_an_epilogue_without_a_bias_gets_a_zero_one() -> None:
    layer, _ = conv_layer(conv(RELU, bias=False), IMAGE, WEIGHT)
    tactic = CudnnConv()
    lowered = tactic.lower(layer, next(tactic.choices(layer, GPU, CONFIG)))
    np.testing.assert_array_equal(lowered.constants["layer.bias"], np.zeros(16, np.float32))
    bare, _ = conv_layer(conv(bias=False), IMAGE, WEIGHT)
    assert set(tactic.lower(bare, next(tactic.choices(bare, GPU, CONFIG))).constants) == {"layer.weight"}


@pytest.mark.usefixtures("no_cuda_compiler")
@pytest.mark.parametrize("activation", [CLIP, GELU, LEAKY, SILU], ids=lambda step: step.kind)
def test_activations_are_fused_with_their_parameters_or_follow(activation: Pointwise) -> None:
    layer, _ = conv_layer(conv(RESIDUAL, activation), IMAGE, WEIGHT)
    found = list(CudnnConv().choices(layer, GPU, CONFIG))
    (fused,) = CudnnConv().lower(layer, choice_of(found, DType.FLOAT16)).steps
    last = fused.attributes["epilogue"][-1]
    assert last == {"kind": activation.kind, "params": list(activation.params)}
    split = CudnnConv().lower(layer, choice_of(found, DType.FLOAT16, fuse="sum"))
    conv_step, after = split.steps
    assert [e["kind"] for e in conv_step.attributes["epilogue"]] == ["add"]
    assert conv_step.inputs == ("x", "r3")
    assert (after.inputs, after.outputs) == (conv_step.outputs, ("y",))
    assert [p["kind"] for p in after.attributes["program"]] == [activation.kind]
    half = Format(DType.FLOAT16, "channels_last")
    assert split.temporaries == {conv_step.outputs[0]: (layer.types["y"].shape, half)}


@pytest.mark.usefixtures("no_cuda_compiler")
def test_a_bare_grouped_convolution_leaves_the_bias_to_the_next_step() -> None:
    layer, arrays = conv_layer(conv(RELU6, groups=8), IMAGE, (8, 1, 3, 3))
    choice = choice_of(list(CudnnConv().choices(layer, GPU, CONFIG)), DType.FLOAT16, fuse="none")
    lowered = CudnnConv().lower(layer, choice)
    first, after = lowered.steps
    assert first.constants == ("layer.weight",)
    assert first.attributes["epilogue"] == []
    assert [(p["kind"], p["operand"]) for p in after.attributes["program"]] == [("add", 1), ("clip", None)]
    assert after.attributes["arguments"] == ["in0", "const0"]
    column = lowered.constants[after.constants[0]]
    assert column.shape == (1, 8, 1, 1)
    np.testing.assert_array_equal(column.reshape(-1), arrays["b"].astype(np.float16))


@pytest.mark.usefixtures("no_cuda_compiler")
def test_values_that_are_no_residuals_are_left_to_the_next_step() -> None:
    layer, _ = conv_layer(conv(RESIDUAL, RELU, Pointwise("mul", operand=-1)), IMAGE, WEIGHT)
    lowered = CudnnConv().lower(layer, next(CudnnConv().choices(layer, GPU, CONFIG)))
    assert [step.kernel for step in lowered.steps] == ["cudnn.conv", "aten.elementwise"]
    assert lowered.steps[1].inputs == (lowered.steps[0].outputs[0], "r4")
    column = replace(layer, types={**layer.types, "r3": TensorType((1, 16, 1, 1))})  # broadcast: not a residual
    lowered = CudnnConv().lower(column, next(CudnnConv().choices(column, GPU, CONFIG)))
    assert lowered.steps[0].attributes["epilogue"] == []
    endless = replace(layer.op, epilogue=(Pointwise("clip", (0.0, float("inf"))),))
    open_clip = replace(layer, node=replace(layer.node, op=endless, inputs=("x", "w", "b")))
    lowered = CudnnConv().lower(open_clip, next(CudnnConv().choices(open_clip, GPU, CONFIG)))
    assert lowered.steps[0].attributes["epilogue"] == []


@pytest.mark.skipif(compiler_name() is None, reason="no CUDA compiler (NVRTC or nvcc)")
@pytest.mark.parametrize(("precision", "channels"), [(DType.FLOAT16, 8), (DType.BFLOAT16, 4), (DType.TF32, 4)])
def test_images_of_three_channels_are_padded_by_a_step_in_front(precision: DType, channels: int) -> None:
    layer, arrays = conv_layer(conv(RELU, stride=2, pads=3), (1, 3, 32, 32), (16, 3, 7, 7))
    found = list(CudnnConv().choices(layer, GPU, CONFIG))
    choice = choice_of(found, precision, rank=1, pad_channels=channels)
    lowered = CudnnConv().lower(layer, choice)
    pad, step = lowered.steps
    assert (pad.kernel, pad.inputs) == ("cuda.space_to_depth", ("x",))
    assert lowered.constants[pad.constants[0]][:4].tobytes() == b"\x7fELF"  # its kernel, compiled
    assert step.inputs == pad.outputs
    padded = ((1, channels, 32, 32), Format(precision.storage, "channels_last"))
    assert lowered.temporaries == {pad.outputs[0]: padded}
    weight = lowered.constants["layer.weight"].astype(np.float32)
    assert weight.shape == (16, 7, 7, channels)
    np.testing.assert_array_equal(
        weight[..., :3].transpose(0, 3, 1, 2), arrays["w"].astype(precision.numpy).astype(np.float32)
    )
    assert not weight[..., 3:].any()
    assert (step.attributes["strides"], step.attributes["pads"]) == ([2, 2], [3] * 4)
    sources = {c.inputs[0] for c in found if c.precision == precision and c.parameters.get("pad_channels") == channels}
    assert sources == {Format(DType.FLOAT32), Format(precision.storage), Format(precision.storage, "channels_last")}


@pytest.mark.skipif(compiler_name() is None, reason="no CUDA compiler (NVRTC or nvcc)")
@pytest.mark.parametrize(("precision", "channels"), [(DType.FLOAT16, 16), (DType.BFLOAT16, 16), (DType.TF32, 12)])
def test_strided_images_of_three_channels_become_blocks_by_a_step_in_front(precision: DType, channels: int) -> None:
    layer, arrays = conv_layer(conv(RELU, stride=2, pads=3), (1, 3, 31, 32), (16, 3, 7, 7))
    found = list(CudnnConv().choices(layer, GPU, CONFIG))
    choice = choice_of(found, precision, rank=1, space_to_depth=2)
    lowered = CudnnConv().lower(layer, choice)
    first, step = lowered.steps
    assert (first.kernel, first.inputs, step.inputs) == ("cuda.space_to_depth", ("x",), first.outputs)
    assert lowered.constants[first.constants[0]][:4].tobytes() == b"\x7fELF"
    made = ((1, channels, 16, 16), Format(precision.storage, "channels_last"))
    assert lowered.temporaries == {first.outputs[0]: made}
    assert step.attributes == {
        "strides": [1, 1], "pads": [2, 2, 1, 1], "dilations": [1, 1], "groups": 1, "rank": 1,
        "epilogue": [{"kind": "relu", "params": []}],
    }  # fmt: skip
    weight = lowered.constants["layer.weight"].astype(np.float32)
    assert weight.shape == (16, 4, 4, channels)
    assert not weight[..., 12:].any()
    rounded = arrays["w"].astype(precision.numpy).astype(np.float32)
    # Row r reads r - 3: the first is the second row of block -2, and the last the first row of block 1.
    np.testing.assert_array_equal(weight[:, 0, 0, 3:12:4], rounded[:, :, 0, 0])
    np.testing.assert_array_equal(weight[:, 3, 3, 3:12:4], rounded[:, :, 6, 6])
    assert not weight[:, 0, :, [0, 1, 4, 5, 8, 9]].any()  # what lies above the first row


@pytest.mark.skipif(compiler_name() is None, reason="no CUDA compiler (NVRTC or nvcc)")
def test_blocks_take_their_ranks_from_the_paddings() -> None:
    def counted(stride: int, precision: DType) -> dict[tuple[str, int], int]:
        ranks: dict[tuple[str, int], int] = {}
        for choice in choices(conv(RELU, stride=stride), (1, 3, 9, 9), (8, 3, 3, 3)):
            ways = [(name, choice.parameters.get(name)) for name in ("space_to_depth", "pad_channels")]
            for way in ways if choice.precision == precision else []:
                if way[1] is not None:
                    ranks[way] = ranks.get(way, 0) + 1
        return ranks

    sources = {DType.FLOAT16: 3, DType.TF32: 2}  # float32, the type in memory, and that with the channels last
    for precision, count in sources.items():
        paddings = [("pad_channels", c) for c in (4, 8)[: 2 if precision == DType.FLOAT16 else 1]]
        assert counted(1, precision) == dict.fromkeys(paddings, PADDED_RANKS * count)
        assert counted(2, precision) == dict.fromkeys([("space_to_depth", 2), *paddings], BLOCKED_RANKS * count)


@pytest.mark.skipif(compiler_name() is None, reason="no CUDA compiler (NVRTC or nvcc)")
def test_what_is_left_of_an_epilogue_is_one_kernel_of_ours() -> None:
    layer, _ = conv_layer(conv(RESIDUAL, RELU, Pointwise("mul", operand=-1)), IMAGE, WEIGHT)
    lowered = CudnnConv().lower(layer, next(CudnnConv().choices(layer, GPU, CONFIG)))
    conv_step, after = lowered.steps
    assert after.kernel == "cuda.pointwise"
    assert after.inputs == (conv_step.outputs[0], "r4") and after.outputs == ("y",)
    assert lowered.constants[after.constants[0]][:4].tobytes() == b"\x7fELF"


@pytest.mark.usefixtures("no_cuda_compiler")
def test_without_a_compiler_nothing_is_rearranged() -> None:
    layer, _ = conv_layer(conv(RELU, stride=2), (1, 3, 32, 32), (16, 3, 3, 3))
    assert {tuple(c.parameters) for c in CudnnConv().choices(layer, GPU, CONFIG)} == {("rank",)}


@pytest.mark.skipif(compiler_name() is None, reason="no CUDA compiler (NVRTC or nvcc)")
def test_padding_is_offered_where_it_can_help() -> None:
    def paddings(image: tuple[int, ...], weight: tuple[int, ...], groups: int = 1) -> set[tuple[DType, int]]:
        found = choices(conv(RELU, groups=groups), image, weight)
        return {(c.precision, c.parameters["pad_channels"]) for c in found if "pad_channels" in c.parameters}

    wide = {(DType.FLOAT16, 8), (DType.BFLOAT16, 8)}
    assert paddings((1, 4, 9, 9), (8, 4, 3, 3)) == wide
    assert paddings((1, 1, 9, 9), (8, 1, 3, 3)) == wide | {(p, 4) for p in ALL}
    assert not paddings((1, 5, 9, 9), (8, 5, 3, 3))
    assert not paddings((1, 3, 9, 9), (3, 1, 3, 3), groups=3)


@pytest.mark.usefixtures("no_cuda_compiler")
@pytest.mark.parametrize(
    ("op", "precision", "fused", "steps"),
    [
        (conv(RELU), DType.FLOAT16, "relu", 1),
        (conv(RESIDUAL, RELU), DType.BFLOAT16, "add_relu", 1),
        (conv(RESIDUAL, RELU, bias=False), DType.BFLOAT16, "add_relu", 1),
        (conv(RELU, RELU6), DType.FLOAT16, "relu", 2),
        (conv(SILU), DType.FLOAT16, "none", 2),
        (conv(RESIDUAL), DType.FLOAT16, "none", 2),
        (conv(RELU), DType.FLOAT32, "none", 2),  # PyTorch's fused operators obey its global tf32 switch
        (conv(RELU), DType.TF32, "none", 2),
        (conv(bias=False), DType.TF32, "none", 1),
    ],
    ids=lambda value: str(value)[:60],
)
def test_pytorchs_operators(op: Conv, precision: DType, fused: str, steps: int) -> None:
    layer, _ = conv_layer(op, IMAGE, WEIGHT)
    found = list(CudnnTorch().choices(layer, GPU, CONFIG))
    assert [c.precision for c in found] == list(ALL)
    lowered = CudnnTorch().lower(layer, choice_of(found, precision))
    assert len(lowered.steps) == steps
    step = lowered.steps[0]
    assert (step.kernel, step.attributes["fused"]) == ("cudnn.torch_conv", fused)
    assert len(step.constants) == (1 if fused == "none" else 2)
    assert len(step.inputs) == (2 if fused == "add_relu" else 1)
    assert lowered.constants["layer.weight"].dtype in (precision.numpy, ml_dtypes.bfloat16)
    assert lowered.steps[-1].outputs == ("y",)
