"""Attention on the GPU by each library: against float64, from packed projections, in the strides of the forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_capture import capture

from attention_layers import attention_layer
from tamis.compiler.config import BuildConfig
from tamis.compiler.tactics.aten import Aten
from tamis.compiler.tactics.attention import CudnnAttention
from tamis.compiler.tactics.base import Choice
from tamis.devices.base import BoundShape
from tamis.devices.cuda.device import CudaDevice
from tamis.devices.cuda.info import cuda_info
from tamis.engine.plan import Format, Step
from tamis.errors import DeviceError
from tamis.formats.dtype import DType

TORCH = {DType.FLOAT32: torch.float32, DType.FLOAT16: torch.float16, DType.BFLOAT16: torch.bfloat16}
# Largest error over the largest value: of the weights of the softmax, which are rounded to 16 bits, and of the result.
TOLERANCE = {DType.FLOAT32: 1e-5, DType.FLOAT16: 2e-3, DType.BFLOAT16: 1.5e-2}
BATCH, HEADS, SCALE = 2, 3, 0.25
SIXTEEN = (DType.FLOAT16, DType.BFLOAT16)
MASKS: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "no mask": lambda queries, keys: (),
    "keys": lambda queries, keys: (keys,),
    "keys of each image": lambda queries, keys: (BATCH, 1, 1, keys),
    "all but heads": lambda queries, keys: (BATCH, 1, queries, keys),
    "all": lambda queries, keys: (BATCH, HEADS, queries, keys),
}


def heads(length: int, depth: int, dtype: DType, seed: int, order: str) -> torch.Tensor:
    """Random heads [B, H, S, D]: dense, in the order of tokens, or cut out of a packed projection."""
    generator = torch.Generator("cuda").manual_seed(seed)
    width = HEADS * depth

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").to(TORCH[dtype])

    if order == "dense":
        return random(BATCH, HEADS, length, depth)
    joined = (
        random(BATCH, length, 3 * width)[..., width : 2 * width] if order == "packed" else random(BATCH, length, width)
    )
    return joined.unflatten(-1, (HEADS, depth)).transpose(1, 2)


def random_mask(shape: tuple[int, ...], dtype: DType, seed: int = 9) -> torch.Tensor:
    """Random scores to add, a third of them so low that they leave nothing."""
    generator = torch.Generator("cuda").manual_seed(seed)
    scores = torch.randn(shape, generator=generator, device="cuda")
    return torch.where(scores < -0.5, -3e4, scores).to(TORCH[dtype])


def exact(tensors: list[torch.Tensor]) -> torch.Tensor:
    q, k, v, *mask = (t.double() for t in tensors)
    scores = SCALE * q @ k.mT
    return torch.softmax(scores + mask[0] if mask else scores, -1) @ v


def steps(tensors: list[torch.Tensor], dtype: DType) -> list[tuple[Choice, Step]]:
    """What the tactic offers for these operands."""
    layer = attention_layer(*(tuple(t.shape) for t in tensors))
    config, tactic = BuildConfig(device="cuda", precisions=(dtype,)), CudnnAttention()
    assert tactic.refuses(layer, cuda_info(), config) is None
    return [(c, tactic.lower(layer, c).steps[0]) for c in tactic.choices(layer, cuda_info(), config)]


def bound(step: Step, tensors: list[torch.Tensor], dtype: DType, **marks: bool) -> tuple[Callable[[], None], list[Any]]:
    """A call of the step, and its slots, the result last."""
    inputs = [BoundShape(i, tuple(t.shape), Format(dtype)) for i, t in enumerate(tensors)]
    output = BoundShape(len(tensors), tuple(tensors[0].shape), Format(dtype))
    slots: list[Any] = [*tensors, None]
    marked = Step(step.name, step.kernel, step.inputs, step.outputs, (), {**step.attributes, **marks}, (), dtype)
    runner = CudaDevice().bind(marked, {}, inputs, [output])

    def run() -> None:
        with torch.inference_mode():
            runner(slots)

    return run, slots


def check(result: torch.Tensor, expected: torch.Tensor, dtype: DType, what: str) -> None:
    error = float((result.double() - expected).abs().max() / expected.abs().max())
    assert error <= TOLERANCE[dtype], f"{what}: error {error:.2e}"


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
@pytest.mark.parametrize("depth", [64, 128])
@pytest.mark.parametrize("lengths", [(384, 384), (77, 77), (129, 51), (1, 65)], ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("order", ["dense", "tokens", "packed"])
def test_every_choice_against_float64(
    mask: str, lengths: tuple[int, int], depth: int, order: str, dtype: DType
) -> None:
    queries, keys = lengths
    tensors = [heads(n, depth, dtype, seed, order) for seed, n in enumerate((queries, keys, keys))]
    if MASKS[mask](queries, keys):
        tensors.append(random_mask(MASKS[mask](queries, keys), dtype))
    refused = []
    for choice, step in steps(tensors, dtype):
        run, slots = bound(step, tensors, dtype)
        try:
            run()
        except DeviceError as error:
            # The race leaves out what a library version refuses; the plain case of the models must run.
            assert lengths != (384, 384), f"{choice.key()}: {error}"
            refused.append(str(error))
            continue
        torch.cuda.synchronize()
        assert slots[-1].is_contiguous()
        check(slots[-1], exact(tensors), dtype, choice.key())
    if refused:
        pytest.skip("; ".join(refused))


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
@pytest.mark.parametrize("mask", ["no mask", "all but heads"])
@pytest.mark.parametrize("order", ["dense", "tokens", "packed"])
def test_results_lie_as_forecast(order: str, mask: str, dtype: DType) -> None:
    tensors = [heads(384, 64, dtype, seed, order) for seed in range(3)]
    if MASKS[mask](384, 384):
        tensors.append(random_mask(MASKS[mask](384, 384), dtype))
    device, shapes = CudaDevice(), [t.shape for t in tensors]
    for choice, step in steps(tensors, dtype):
        assert all(device.reads_strided(step, i, t.shape, t.stride()) for i, t in enumerate(tensors[:3]))
        run, slots = bound(step, tensors, dtype, strided=True)
        run()
        assert slots[-1].stride() == device.natural_strides(step, shapes, [t.stride() for t in tensors]), choice.key()
        check(slots[-1], exact(tensors), dtype, choice.key())


@pytest.mark.parametrize("dtype", [DType.FLOAT32, *SIXTEEN], ids=str)
@pytest.mark.parametrize("mask", ["no mask", "all but heads"])
def test_pytorch_leaves_results_in_the_order_of_tokens(mask: str, dtype: DType) -> None:
    """Queries in that order, as models have them: then a transpose behind an attention moves nothing."""
    tensors = [heads(384, 64, dtype, seed, "packed") for seed in range(3)]
    if MASKS[mask](384, 384):
        tensors.append(random_mask(MASKS[mask](384, 384), dtype))
    layer = attention_layer(*(tuple(t.shape) for t in tensors))
    config = BuildConfig(device="cuda", precisions=(dtype,))
    choice = next(c for c in Aten().choices(layer, cuda_info(), config) if c.precision == dtype)
    (step,) = Aten().lower(layer, choice).steps
    run, slots = bound(step, tensors, dtype, strided=True)
    run()
    by_token = (HEADS * 384 * 64, 64, HEADS * 64, 1)
    assert slots[-1].stride() == by_token
    assert CudaDevice().natural_strides(step, [t.shape for t in tensors], [t.stride() for t in tensors]) == by_token
    check(slots[-1], exact(tensors), dtype, "aten")


@pytest.mark.parametrize("mask", ["no mask", "all but heads"])
def test_a_captured_graph_reads_what_its_inputs_hold_then(mask: str) -> None:
    dtype = DType.FLOAT16
    tensors = [heads(96, 64, dtype, seed, "packed") for seed in range(3)]
    if MASKS[mask](96, 96):
        tensors.append(random_mask(MASKS[mask](96, 96), dtype))
    for choice, step in steps(tensors, dtype):
        run, slots = bound(step, tensors, dtype, strided=True)
        graph = capture(run)
        for round_ in range(3):
            for index, tensor in enumerate(tensors[:3]):
                tensor.copy_(heads(96, 64, dtype, 10 * round_ + index, "dense"))
            if len(tensors) == 4:
                tensors[3].copy_(random_mask(tuple(tensors[3].shape), dtype, round_))
            with torch.inference_mode():
                slots[-1].fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            check(slots[-1], exact(tensors), dtype, f"{choice.key()}, replay {round_}")


def test_rows_that_are_not_aligned_do_not_stop_the_gpu() -> None:
    wide = torch.randn(BATCH, 40, 3 * HEADS * 64 + 1, device="cuda").half()
    width = HEADS * 64
    tensors = [
        wide[..., 1 + i * width : 1 + (i + 1) * width].unflatten(-1, (HEADS, 64)).transpose(1, 2) for i in range(3)
    ]
    for choice, step in steps(tensors, DType.FLOAT16):
        run, slots = bound(step, tensors, DType.FLOAT16)
        run()
        torch.cuda.synchronize()
        check(slots[-1], exact(tensors), DType.FLOAT16, choice.key())
