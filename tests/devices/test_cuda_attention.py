"""The attention of a GPU without one: how it is bound, in which strides it reads and leaves values, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attention_layers import attention_on_the_cpu
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.ops import Attention
from tamis.devices.base import BoundShape
from tamis.devices.cuda import attention
from tamis.devices.cuda.strides import natural_strides, reads_strided
from tamis.devices.strides import dense_strides
from tamis.engine.plan import Format, Step
from tamis.errors import DeviceError
from tamis.formats.dtype import DType

BATCH, HEADS, LENGTH, DEPTH = 2, 3, 5, 8
SHAPE = (BATCH, HEADS, LENGTH, DEPTH)
BY_TOKEN = (HEADS * LENGTH * DEPTH, DEPTH, HEADS * DEPTH, 1)
PACKED = (3 * HEADS * LENGTH * DEPTH, DEPTH, 3 * HEADS * DEPTH, 1)
BF16 = Format(DType.BFLOAT16)


def step(
    backend: str = "cudnn", *, mask: bool = False, kernel: str = "cudnn.attention",
    precision: DType = DType.BFLOAT16, **attributes: Any,
) -> Step:  # fmt: skip
    names = ("q", "k", "v", "m")[: 3 + mask]
    told = {"scale": 0.25, "mask": mask, "arguments": [f"in{i}" for i in range(len(names))], "backend": backend}
    return Step("attend", kernel, names, ("y",), (), told | attributes, ("attend",), precision)


def bound(found: Step, tensors: list[torch.Tensor], *, given: bool = False) -> tuple[Callable[..., None], list[Any]]:
    """The runner and its slots: the inputs and the output, which ``given`` allocates."""
    inputs = [BoundShape(i, tuple(t.shape), BF16) for i, t in enumerate(tensors)]
    output = BoundShape(len(tensors), tuple(tensors[0].shape), BF16, given)
    slots = [*tensors, torch.full(output.shape, float("nan"), dtype=torch.bfloat16) if given else None]
    return attention.bind(found, {}, inputs, [output]), slots


def heads(seed: int) -> torch.Tensor:
    """Heads [B, H, S, D] that lie as [B, S, H, D]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, LENGTH, HEADS, DEPTH, generator=generator).bfloat16().transpose(1, 2)


def exact(tensors: list[torch.Tensor]) -> np.ndarray:
    result: np.ndarray = evaluate(Attention(0.25, len(tensors) == 4), [t.double().numpy() for t in tensors])[0]
    return result


@pytest.mark.parametrize(
    ("backend", "mask"), [("cudnn", None), ("flash", None), ("cudnn", (5,)), ("cudnn", (2, 1, 1, 5))]
)
@pytest.mark.parametrize("how", ["dense", "strided", "given"])
def test_results_are_right_and_lie_as_promised(backend: str, mask: tuple[int, ...] | None, how: str) -> None:
    tensors = [heads(seed) for seed in range(3)]
    if mask:
        tensors.append(torch.linspace(-2, 1, int(np.prod(mask))).reshape(mask).bfloat16())
    found = step(backend, mask=mask is not None, **({"strided": True} if how == "strided" else {}))
    with torch.inference_mode(), attention_on_the_cpu() as called:
        run, slots = bound(found, tensors, given=how == "given")
        place = slots[-1]
        run(slots)
    result = slots[-1]
    assert called.backends == [backend] and (place is None or result is place)
    assert result.stride() == (BY_TOKEN if how == "strided" else dense_strides(SHAPE))
    np.testing.assert_allclose(result.double().numpy(), exact(tensors), rtol=0.02, atol=0.02)


def test_rows_that_are_not_aligned_are_copied_first() -> None:
    """The libraries read 16 bytes at a time: an odd offset would stop the GPU."""

    def cut(wide: torch.Tensor, start: int) -> torch.Tensor:
        return wide[..., start : start + HEADS * DEPTH].unflatten(-1, (HEADS, DEPTH)).transpose(1, 2)

    width = 3 * HEADS * DEPTH
    offset = cut(torch.randn(BATCH, LENGTH, width).bfloat16(), 1)
    aligned = cut(torch.randn(BATCH, LENGTH, width).bfloat16(), HEADS * DEPTH)
    rows = cut(torch.randn(BATCH, LENGTH, width + 1).bfloat16(), 0)
    run, slots = bound(step(), [offset, aligned, rows])
    with torch.inference_mode(), attention_on_the_cpu() as called:
        run(slots)
    assert called.operands == [(dense_strides(SHAPE), 0), (PACKED, 0), (dense_strides(SHAPE), 0)]
    np.testing.assert_allclose(slots[-1].double().numpy(), exact([offset, aligned, rows]), rtol=0.02, atol=0.02)


def test_what_the_library_refuses_is_an_error_of_the_layer() -> None:
    run, slots = bound(step(), [heads(seed) for seed in range(3)])
    with pytest.raises(DeviceError, match="layer 'attend': cudnn attention: Could not run"):
        run(slots)  # there is no such operator on a CPU
    with pytest.raises(DeviceError, match="there is no attention 'other'"):
        bound(step("other"), [heads(seed) for seed in range(3)])
    mixed = [BoundShape(i, SHAPE, Format(d)) for i, d in enumerate((DType.FLOAT16, DType.BFLOAT16, DType.FLOAT16))]
    with pytest.raises(DeviceError, match="meet"):
        attention.bind(step(), {}, mixed, [BoundShape(3, SHAPE, BF16)])


def test_which_strides_are_read_in_place() -> None:
    for strides in (dense_strides(SHAPE), BY_TOKEN, PACKED):
        assert all(reads_strided(step(mask=True), index, SHAPE, strides) for index in range(3))
    assert not reads_strided(step(mask=True), 3, (2, 1, 5, 5), (40, 40, 5, 1)), "masks are dense"
    assert not reads_strided(step(), 0, SHAPE, (120, 40, 1, 5)), "columns"
    assert not reads_strided(step(), 0, SHAPE, (123, 8, 24, 1)), "rows that are not aligned"
    assert not reads_strided(step(), 0, SHAPE[1:], BY_TOKEN[1:])
    other = replace(step(), kernel="cublaslt.batched")
    assert not reads_strided(other, 0, SHAPE, BY_TOKEN)
    assert reads_strided(step(kernel="aten.attention"), 0, SHAPE, (123, 8, 24, 1)), "PyTorch sees to it"


@pytest.mark.parametrize(
    ("found", "by_token"),
    [  # in which order the result lies when the queries lie as [B, H, S, D]
        (step(), False),
        (step("flash"), False),
        (step(mask=True), False),
        (step(kernel="aten.attention"), False),
        (step(kernel="aten.attention", mask=True), True),
        (step(kernel="aten.attention", precision=DType.FLOAT32), True),
    ],
)
def test_forecasts_follow_the_queries_or_the_kernel(found: Step, by_token: bool) -> None:
    shapes = [SHAPE, SHAPE, SHAPE, (2, 1, 5, 5)][: len(found.inputs)]
    dense = [dense_strides(shape) for shape in shapes]
    expected = BY_TOKEN if by_token else dense_strides(SHAPE)
    assert natural_strides(found, shapes, dense) == expected
    for strides in (BY_TOKEN, PACKED):
        assert natural_strides(found, shapes, [strides, *dense[1:]]) == BY_TOKEN
        assert natural_strides(found, shapes, [dense[0], strides, *dense[2:]]) == expected


def test_no_forecast_where_the_result_may_be_padded_or_computed_otherwise() -> None:
    def forecast(found: Step, *shapes: tuple[int, ...]) -> object:
        return natural_strides(found, shapes, [dense_strides(shape) for shape in shapes])

    assert forecast(step(kernel="aten.attention"), *[(2, 3, 5, 12)] * 3) is None
    assert forecast(step(kernel="aten.attention"), *[(3, 5, 8)] * 3) is None
    assert forecast(step(), SHAPE, SHAPE, (2, 3, 5, 16)) is None
    assert forecast(step(kernel="aten.softmax"), SHAPE) is None
