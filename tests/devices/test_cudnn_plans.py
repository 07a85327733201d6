"""The real package and the real cuDNN, planning for an H200 that need not be there.

Skipped where the package or cuDNN is missing. Plans that are compiled at run time need the driver's library, so
without one only the others are counted.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

import pytest

from tamis.devices.cuda.cudnn_graph import BIAS, IMAGE, RESIDUAL, RESULT, WEIGHT, RankedPlans, build_graph, deserialized
from tamis.devices.cuda.cudnn_problem import ConvProblem, Pointwise
from tamis.errors import DeviceError
from tamis.formats.dtype import DType

cudnn = pytest.importorskip("cudnn")
try:
    VERSION = cudnn.backend_version()
except RuntimeError:
    pytest.skip("there is no cuDNN", allow_module_level=True)
if VERSION < 91100:
    pytest.skip(f"cuDNN {VERSION} cannot plan for devices that are not there", allow_module_level=True)

# What cuDNN wants to know of a device; the numbers of an H200 SXM.
H200 = {
    "deviceName": "NVIDIA H200", "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0, "pciDeviceId": 0,
    "multiProcessorCount": 132, "smClockRateKHz": 1980000, "memClockRateKHz": 3201000, "l2CacheSize": 62914560,
    "totalGlobalMem": 150000000000, "warpSize": 32, "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64], "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "maxCtasPerSM": 32,
    "regsPerBlock": 65536, "maxRegistersPerSM": 65536, "maxSharedMemoryPerBlock": 49152,
    "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024, "isTccDriver": 0,
    "supportCoopLaunch": 1,
}  # fmt: skip
RELU, ADD = Pointwise("relu"), Pointwise("add")
PRECISIONS = (DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16)


@pytest.fixture(scope="module")
def target() -> dict[str, Any]:
    return {"device_property": cudnn.create_device_properties(json.dumps(H200))}


def conv(
    *epilogue: Pointwise,
    precision: DType = DType.FLOAT16,
    image: tuple[int, int, int, int] = (1, 64, 56, 56),
    weight: tuple[int, int, int, int] = (64, 64, 3, 3),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    strides: tuple[int, int] = (1, 1),
    groups: int = 1,
    bias: bool = True,
) -> ConvProblem:
    return ConvProblem(image, weight, strides, pads, (1, 1), groups, precision, bias, epilogue)


def can_compile() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def built(plans: RankedPlans, most: int) -> list[str]:
    """Names of the plans of the first ranks; fewer when there are fewer."""
    names = []
    for rank in range(most):
        try:
            names.append(plans.graph.get_plan_name_at_index(plans.index(rank)))
        except DeviceError as error:
            assert "offers only" in str(error)
            break
    return names


def compiled(plans: RankedPlans, index: int) -> bool:
    return cudnn.behavior_note.RUNTIME_COMPILATION in plans.graph.get_behavior_notes_for_plan_at_index(index)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("epilogue", [(), (RELU,), (ADD,), (ADD, RELU)], ids=["bias", "relu", "add", "add-relu"])
@pytest.mark.parametrize("batch", [1, 128])
def test_the_patterns_of_resnet_need_no_compiler(
    precision: DType, epilogue: tuple[Pointwise, ...], batch: int, target: dict[str, Any]
) -> None:
    plans = RankedPlans(cudnn, conv(*epilogue, precision=precision, image=(batch, 64, 56, 56)), target)
    wanted = 3 if precision == DType.FLOAT32 else 8
    indices = [plans.index(rank) for rank in range(wanted)]
    assert indices == sorted(set(indices))
    assert not any(compiled(plans, index) for index in indices)


def test_strict_float32_uses_no_tensor_cores_and_tf32_does(target: dict[str, Any]) -> None:
    strict = built(RankedPlans(cudnn, conv(RELU, precision=DType.FLOAT32), target), 4)
    rounded = built(RankedPlans(cudnn, conv(RELU, precision=DType.TF32), target), 16)
    assert strict
    assert rounded[0] not in strict
    raw = build_graph(cudnn, conv(RELU, precision=DType.FLOAT32), target)
    raw.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    raw.deselect_numeric_notes([cudnn.numerical_note.TENSOR_CORE])
    with pytest.raises(cudnn.cudnnGraphNotSupportedError, match="Deselecting"):
        raw.build_plan_at_index(0)


@pytest.mark.parametrize("rank", [0, 3])
def test_stored_plans_come_back_with_the_same_operands(rank: int, target: dict[str, Any]) -> None:
    plans = RankedPlans(cudnn, conv(ADD, RELU), target)
    index = plans.index(rank)
    plans.index(rank + 1)  # another one is the last that was built
    data = plans.serialize(rank)
    graph = deserialized(cudnn, data, target)
    assert graph.get_workspace_size() == plans.graph.get_workspace_size_plan_at_index(index)
    # Everything up to the launch, which wants a handle and hence a device.
    addresses = {uid: uid << 20 for uid in (IMAGE, WEIGHT, BIAS, RESIDUAL, RESULT)}
    with pytest.raises(RuntimeError, match="get_stream"):
        graph.execute(addresses, 1 << 30)
    with pytest.raises(ValueError, match="missing a buffer"):
        graph.execute({uid: at for uid, at in addresses.items() if uid != RESIDUAL}, 1 << 30)
    with pytest.raises(RuntimeError, match="get_stream"):
        plans.graph.execute_plan_at_index(addresses, 1 << 30, index=index)
    with pytest.raises(DeviceError, match="does not take"):
        deserialized(cudnn, data[: len(data) // 2], target)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("stem", conv(RELU, image=(1, 3, 224, 224), weight=(64, 3, 7, 7), pads=(3,) * 4, strides=(2, 2))),
        ("stem in blocks", conv(RELU, image=(128, 16, 112, 112), weight=(64, 16, 4, 4), pads=(2, 2, 1, 1))),
        ("patches in blocks", conv(image=(128, 768, 14, 14), weight=(768, 768, 1, 1), pads=(0,) * 4)),
        ("padded stem", conv(RELU, image=(1, 8, 224, 224), weight=(64, 8, 7, 7), pads=(3,) * 4, strides=(2, 2))),
        ("uneven padding", conv(RELU, image=(1, 16, 64, 64), weight=(32, 16, 3, 3), pads=(0, 0, 1, 1), strides=(2, 2))),
        ("depthwise", conv(RELU, image=(1, 96, 28, 28), weight=(96, 1, 3, 3), groups=96)),
        ("bare depthwise", conv(image=(1, 96, 28, 28), weight=(96, 1, 3, 3), groups=96, bias=False)),
        ("grouped", conv(RELU, image=(1, 64, 28, 28), weight=(64, 16, 3, 3), groups=4)),
        ("odd channels", conv(RELU, image=(1, 13, 20, 20), weight=(17, 13, 3, 3))),
        ("one pixel", conv(RELU, image=(1, 512, 1, 1), weight=(128, 512, 1, 1), pads=(0,) * 4)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_shapes_have_plans(name: str, problem: ConvProblem, target: dict[str, Any]) -> None:
    assert RankedPlans(cudnn, problem, target).index(0) >= 0


@pytest.mark.parametrize(
    "activation",
    [
        Pointwise("silu"), Pointwise("sigmoid"), Pointwise("tanh"), Pointwise("gelu"), Pointwise("gelu_tanh"),
        Pointwise("leaky_relu", (0.1,)), Pointwise("clip", (0.0, 6.0)), Pointwise("clip", (-0.5, 0.75)),
    ],
    ids=lambda step: f"{step.kind}{step.params or ''}",
)  # fmt: skip
@pytest.mark.parametrize("residual", ["none", "before", "behind"])
def test_activations_are_accepted_and_compiled_where_that_works(
    activation: Pointwise, residual: str, target: dict[str, Any]
) -> None:
    epilogue = {"none": (activation,), "before": (ADD, activation), "behind": (activation, ADD)}[residual]
    build_graph(cudnn, conv(*epilogue), target)
    if not can_compile():
        pytest.skip("the driver's library is missing, so nothing can be compiled")
    plans = RankedPlans(cudnn, conv(*epilogue), target)
    assert compiled(plans, plans.index(0))


def test_what_cannot_be_is_an_error_that_says_so(target: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match="no activation 'mish'"):
        build_graph(cudnn, conv(Pointwise("mish")), target)
    with pytest.raises(DeviceError, match="cuDNN"):
        RankedPlans(cudnn, conv(RELU, image=(1, 64, 2, 2), weight=(64, 64, 7, 7), pads=(0,) * 4), target)
