"""What the tactic of cuDNN's and FlashAttention's attention refuses, offers and lowers to; none of it needs a GPU."""

from __future__ import annotations

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from attention_layers import attention_layer
from matrix_layers import layer_and_arrays, linear
from paper_gpu import H200, T4
from tamis.compiler.config import BuildConfig
from tamis.compiler.tactics import CUDA_TACTICS
from tamis.compiler.tactics.attention import CudnnAttention
from tamis.compiler.tactics.base import Layer
from tamis.engine.plan import DeviceInfo, Format
from tamis.formats.dtype import DType

TACTIC = CudnnAttention()
ALL = BuildConfig(device="cuda", precisions=(DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16))
A10 = replace(H200, name="NVIDIA A10", architecture="sm_86")
HEADS = (2, 3, 5, 64)
PLAIN = attention_layer(HEADS, HEADS, HEADS)


def masked(*shape: int, keys: tuple[int, ...] = HEADS) -> Layer:
    return attention_layer(HEADS, keys, keys, shape)


@pytest.mark.parametrize(
    ("reason", "layer", "device"),
    [
        ("runs on CUDA devices only", PLAIN, replace(H200, kind="cpu")),
        ("Linear is not an attention", layer_and_arrays(linear(), (4, 16), (16, 16))[0], H200),
        ("compute capability 8.0 or newer; this is sm_75", PLAIN, T4),
        ("no cuDNN", PLAIN, replace(H200, libraries={"torch": "2.11.0"})),
        ("not of rank 4", attention_layer((3, 5, 64), (3, 5, 64), (3, 5, 64)), H200),
        ("differ between", attention_layer(HEADS, (2, 1, 5, 64), (2, 1, 5, 64)), H200),
        ("differ between", attention_layer(HEADS, HEADS, (2, 3, 5, 32)), H200),
        ("heads of 60 elements; they must be a multiple of 8", attention_layer(*[(2, 3, 5, 60)] * 3), H200),
        ("heads of 264 elements", attention_layer(*[(2, 3, 5, 264)] * 3), H200),
        ("heads of 136 elements and this mask", attention_layer(*[(2, 3, 5, 136)] * 3, (5, 5)), A10),
        ("this mask", masked(5, 1, keys=(2, 3, 1, 64)), H200),
        ("the mask is bool", attention_layer(HEADS, HEADS, HEADS, (5, 5), mask=DType.BOOL), H200),
        ("its last axis must be the keys", masked(2, 1, 5, 1), H200),
        ("an operand is constant", attention_layer(*[HEADS] * 3, constants={"k": np.zeros(HEADS, np.float32)}), H200),
    ],
)  # fmt: skip
def test_refusals(reason: str, layer: Layer, device: DeviceInfo) -> None:
    assert reason in (TACTIC.refuses(layer, device, ALL) or "nothing")


def test_precisions_that_are_allowed_decide() -> None:
    strict = BuildConfig(device="cuda", precisions=(DType.FLOAT32, DType.TF32))
    assert TACTIC.refuses(PLAIN, H200, strict) == "needs 16-bit values; allow float16 or bfloat16"
    found = list(TACTIC.choices(PLAIN, H200, ALL))
    assert {c.precision for c in found} == {DType.FLOAT16, DType.BFLOAT16}
    assert all({*c.inputs, *c.outputs} == {Format(c.precision)} for c in found)
    assert len({c.key() for c in found}) == len(found)


@pytest.mark.parametrize(
    ("layer", "device", "expected"),
    [
        (PLAIN, H200, ["cudnn", "flash"]),
        (masked(2, 1, 1, 5), H200, ["cudnn"]),
        (masked(5), H200, ["cudnn"]),
        (attention_layer(*[(2, 3, 5, 136)] * 3), H200, ["cudnn", "flash"]),
        (attention_layer(*[(2, 3, 5, 136)] * 3), A10, ["flash"]),
        (attention_layer(HEADS, (2, 3, 1, 64), (2, 3, 1, 64)), H200, ["flash"]),
        (attention_layer((2, 3, 1, 64), HEADS, HEADS), H200, ["cudnn", "flash"]),
    ],
)
def test_who_is_offered(layer: Layer, device: DeviceInfo, expected: list[str]) -> None:
    assert TACTIC.refuses(layer, device, ALL) is None
    choices = [c for c in TACTIC.choices(layer, device, ALL) if c.precision == DType.FLOAT16]
    assert [c.parameters["backend"] for c in choices] == expected


def test_one_step_with_a_constant_mask_in_the_type_of_the_queries() -> None:
    mask = np.array([[0.0, np.finfo(np.float32).min, -np.inf, 1.0, 2.0]], np.float32)
    layer = attention_layer(HEADS, HEADS, HEADS, (1, 5), constants={"m": mask})
    choice = next(c for c in TACTIC.choices(layer, H200, ALL) if c.precision == DType.BFLOAT16)
    lowered = TACTIC.lower(layer, choice)
    (step,) = lowered.steps
    assert (step.kernel, step.inputs, step.outputs, step.constants) == (
        "cudnn.attention",
        ("q", "k", "v"),
        ("y",),
        ("m",),
    )
    assert step.attributes == {
        "scale": 0.25, "mask": True, "backend": "cudnn", "arguments": ["in0", "in1", "in2", "const0"],
    }  # fmt: skip
    assert json.loads(json.dumps(step.attributes)) == step.attributes
    packed = lowered.constants["m"]
    assert packed.dtype == ml_dtypes.bfloat16 and np.isfinite(packed.astype(np.float32)).tolist()[0][1:3] == [
        True,
        False,
    ]
    assert step.flops == 4 * 2 * 3 * 5 * 5 * 64


def test_operands_may_be_one_value() -> None:
    layer = attention_layer(HEADS, HEADS, HEADS)
    same = replace(layer, node=replace(layer.node, inputs=("q", "q", "q")))
    choice = next(iter(TACTIC.choices(same, H200, ALL)))
    (step,) = TACTIC.lower(same, choice).steps
    assert step.inputs == ("q",) and step.attributes["arguments"] == ["in0"] * 3 and len(choice.inputs) == 1


def test_it_races_on_gpus() -> None:
    assert [t.name for t in CUDA_TACTICS].count("cudnn.attention") == 1
