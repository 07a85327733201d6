"""Strides: the arithmetic against torch's, and what the kernels are said to do with them against what they do."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from test_aten import Run, kernel_name

from operator_cases import CASES, Case
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.tactics.base import attributes_of
from tamis.devices.aten.strides import READS, VIEWS
from tamis.devices.base import BoundShape
from tamis.devices.cpu import CpuDevice
from tamis.devices.strides import dense_strides, in_order_of, is_dense, reshaped
from tamis.engine.plan import Format, Step
from tamis.formats.dtype import DType

DEVICE = CpuDevice(threads=2)


def random_view(choice: random.Random) -> torch.Tensor:
    """A permuted, cut and possibly broadcast tensor of up to four axes."""
    rank = choice.randint(1, 4)
    shape = [choice.choice([1, 1, 2, 3, 4, 6]) for _ in range(rank)]
    tensor = torch.empty([size * choice.choice([1, 1, 2]) for size in shape])
    for axis, size in enumerate(shape):
        tensor = tensor.narrow(axis, 0, size)
    if choice.random() < 0.2:
        tensor = tensor.narrow(choice.randrange(rank), 0, 1).expand(shape)
    return tensor.permute(choice.sample(range(rank), rank))


def random_shape(choice: random.Random, elements: int) -> list[int]:
    shape = []
    while elements > 1 or choice.random() < 0.3:
        shape.append(choice.choice([size for size in range(1, elements + 1) if elements % size == 0]))
        elements //= shape[-1]
    choice.shuffle(shape)
    return shape


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_axes_is_kept_as_torch_keeps_it(seed: int) -> None:
    choice = random.Random(seed)
    for _ in range(100):
        shape = [choice.choice([2, 3, 4]) for _ in range(choice.randint(1, 4))]
        wide = torch.empty([size + choice.choice([0, 2]) for size in shape])
        for axis, size in enumerate(shape):
            wide = wide.narrow(axis, 0, size)
        tensor = wide.permute(choice.sample(range(len(shape)), len(shape)))
        assert in_order_of(tensor.shape, tensor.stride()) == torch.empty_like(tensor).stride()


@pytest.mark.parametrize("seed", range(20))
def test_reshaped_views_exactly_where_torch_does(seed: int) -> None:
    choice = random.Random(seed)
    views = 0
    for _ in range(200):
        tensor = random_view(choice)
        target = random_shape(choice, tensor.numel())
        assert is_dense(tensor.shape, tensor.stride()) == tensor.is_contiguous()
        found = reshaped(tensor.shape, tensor.stride(), target)
        try:
            expected = tensor.view(target).stride()
        except RuntimeError:
            assert found is None
            continue
        assert found is not None
        views += 1
        assert [s for s, n in zip(found, target, strict=True) if n > 1] == [
            s for s, n in zip(expected, target, strict=True) if n > 1
        ]
    assert 20 < views < 200


def test_no_elements_and_no_axes() -> None:
    assert reshaped((2, 0, 3), (5, 1, 9), (0, 4)) == dense_strides((0, 4))
    assert reshaped((), (), (1, 1)) == (1, 1) and reshaped((1,), (7,), ()) == ()
    assert is_dense((), ()) and is_dense((0, 3), (1, 7)) and not is_dense((2, 2), (1, 2))


MOVERS = [case for case in CASES if kernel_name(case.op) in VIEWS]


@pytest.mark.parametrize("case", MOVERS, ids=[case.name for case in MOVERS])
@pytest.mark.parametrize("permuted", [False, True])
def test_forecast_strides_are_those_of_the_results(case: Case, permuted: bool) -> None:
    (array,) = case.arrays()
    source = torch.from_numpy(array)
    if permuted:
        source = source.permute(*reversed(range(source.dim()))).contiguous().permute(*reversed(range(source.dim())))
    expected = evaluate(case.op, [array])
    attributes = attributes_of(case.op) | {"arguments": ["in0"], "strided": True}
    outputs = tuple(f"out{index}" for index in range(len(expected)))
    step = Step(case.name, kernel_name(case.op), ("x",), outputs, attributes=attributes)
    found = DEVICE.view_strides(step, source.shape, source.stride(), [array.shape for array in expected])
    format = Format(DType.of(array))
    slots: list[Any] = [source, *(None for _ in expected)]
    bound = [BoundShape(index + 1, array.shape, format) for index, array in enumerate(expected)]
    DEVICE.bind(step, {}, [BoundShape(0, array.shape, format)], bound)(slots)
    for index, reference in enumerate(expected):
        result = slots[index + 1]
        np.testing.assert_array_equal(DEVICE.download(result), reference)
        shares = result.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
        assert reference.size == 0 or shares == (found is not None)
        if found is not None:
            pairs = zip(found[index], result.stride(), result.shape, strict=True)
            assert reference.size == 0 or all(a == b for a, b, size in pairs if size > 1)


def strided_copies(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The same values in other strides: columns first, with the first axes swapped, cut out of wider rows."""
    found = []
    if tensor.dim() > 1:
        found.append(tensor.mT.contiguous().mT)
        found.append(torch.cat([torch.full_like(tensor, 7), tensor], -1).narrow(-1, tensor.shape[-1], tensor.shape[-1]))
    if tensor.dim() > 2:
        found.append(tensor.transpose(-2, -3).contiguous().transpose(-2, -3))
        found.append(tensor.transpose(0, 1).contiguous().transpose(0, 1))
    return found


READERS = [case for case in CASES if kernel_name(case.op) in READS]


@pytest.mark.parametrize("precision", [DType.FLOAT32, DType.BFLOAT16])
@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("case", READERS, ids=[case.name for case in READERS])
def test_readers_of_strided_values_give_the_same_dense_results(case: Case, into: bool, precision: DType) -> None:
    if precision == DType.BFLOAT16 and not any(array.dtype == np.float32 for array in case.arrays()):
        pytest.skip("no floating point")
    run = Run(case, precision, into=into)
    for index, bound in enumerate(run.inputs):
        dense = run.sources[index]
        for strided in strided_copies(dense):
            if not DEVICE.reads_strided(run.step, index, strided.shape, strided.stride()):
                continue
            slots: list[Any] = list(run.sources[: len(run.inputs)])
            slots[index] = strided
            given = [torch.full_like(r, float("nan") if r.is_floating_point() else 1) for r in run.results]
            slots += given if into else [None for _ in given]
            with torch.inference_mode():
                DEVICE.bind(run.step, run.constants, run.inputs, run.outputs)(slots)
            for output, expected in zip(run.outputs, run.results, strict=True):
                result = slots[output.slot]
                assert result.is_contiguous() and bound.slot == index
                tolerance = 0.03 if precision == DType.BFLOAT16 else 2e-5
                torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def step_of(case_name: str, **attributes: Any) -> Step:
    case = next(case for case in CASES if case.name == case_name)
    names = [f"in{index}" for index in range(len(case.inputs))]
    all_attributes = attributes_of(case.op) | {"arguments": names} | attributes
    return Step("step", kernel_name(case.op), tuple(names), ("out",), attributes=all_attributes)


def attention(*arguments: str) -> Step:
    names = tuple(dict.fromkeys(arguments))
    return Step("a", "aten.attention", names, ("y",), attributes={"scale": 0.5, "arguments": [*arguments]})


HEADS, HEADS_STRIDES = (2, 3, 5, 8), (120, 8, 24, 1)  # [B, H, S, D] in the order of [B, S, H, D]


def test_attention_reads_heads_in_place_but_not_columns() -> None:
    step = attention("in0", "in1", "in2")
    for index in range(3):
        assert DEVICE.reads_strided(step, index, HEADS, HEADS_STRIDES)
        assert not DEVICE.reads_strided(step, index, HEADS, (120, 40, 1, 5))
        assert not DEVICE.reads_strided(step, index, HEADS[1:], HEADS_STRIDES[1:])
    assert not DEVICE.reads_strided(attention("in0", "in1", "in2", "in3"), 3, (2, 1, 5, 5), (50, 50, 10, 1))
    # One value in two places must be welcome in both.
    assert DEVICE.reads_strided(attention("in0", "in0", "in0"), 0, HEADS, HEADS_STRIDES)
    assert not DEVICE.reads_strided(attention("in0", "in1", "in2", "in0"), 0, HEADS, HEADS_STRIDES)


def test_matrices_are_read_by_rows_or_columns() -> None:
    product = Step("m", "aten.mat_mul", ("a", "b"), ("y",), attributes={"arguments": ["in0", "in1"]})
    assert DEVICE.reads_strided(product, 1, (4, 6), (1, 4))
    assert DEVICE.reads_strided(product, 0, (3, 4, 6), (24, 1, 4))
    assert not DEVICE.reads_strided(product, 0, (3, 4, 6), (1, 18, 3))
    assert not DEVICE.reads_strided(product, 0, HEADS, HEADS_STRIDES)  # batch and heads do not merge
    linear = Step("l", "aten.linear", ("x",), ("y",), ("w",), attributes={"arguments": ["in0", "const0"]})
    assert DEVICE.reads_strided(linear, 0, (2, 5, 8), (120, 24, 1))
    assert not DEVICE.reads_strided(linear, 0, (2, 5, 8), (40, 1, 5))
    assert not DEVICE.reads_strided(linear, 0, (2, 5, 8), (8, 16, 1))


@pytest.mark.parametrize("kernel", ["onednn.linear", "openvino.region", "tamis.chain", "aten.softmax", "aten.conv"])
def test_other_kernels_want_dense_values(kernel: str) -> None:
    assert not DEVICE.reads_strided(Step("s", kernel, ("x",), ("y",)), 0, (4, 6), (12, 1))
    assert DEVICE.view_strides(Step("s", kernel, ("x",), ("y",)), (4, 6), (6, 1), [(4, 6)]) is None
    assert DEVICE.natural_strides(Step("s", kernel, ("x",), ("y",)), [(4, 6)], [(6, 1)]) is None


def forecast(step: Step, shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    return DEVICE.natural_strides(step, shapes, [dense_strides(shape) for shape in shapes])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_leaves_its_result_as_forecast(dtype: torch.dtype, masked: bool) -> None:
    q, k, v = (torch.randn(2, 5, 3, 8).to(dtype).permute(0, 2, 1, 3) for _ in range(3))
    mask = torch.zeros(2, 1, 5, 5).to(dtype) if masked else None
    result = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    assert forecast(attention("in0", "in1", "in2"), [HEADS] * 3) == result.stride() == HEADS_STRIDES


def test_no_forecast_for_attention_that_is_not_plain() -> None:
    step = attention("in0", "in1", "in2")
    assert forecast(step, [(3, 5, 8)] * 3) is None
    assert forecast(step, [HEADS, (2, 1, 5, 8), (2, 1, 5, 8)]) is None
    assert forecast(step, [HEADS, HEADS, (2, 3, 5, 16)]) is None
    assert forecast(attention("in0", "in0", "in0"), [HEADS]) == HEADS_STRIDES
