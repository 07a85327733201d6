"""Our CUDA kernels on the GPU: every layer in every choice, every pointwise kind, large shapes, graphs and threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_capture import capture

from cuda_layers import CASES, TORCH, Case, bound, bound_layer, empty, padding_step, program, step, upload
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.evaluate_pointwise import apply_program
from tamis.compiler.ir.graph import Node, TensorType
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import (
    BINARY_KINDS,
    BOOLEAN_KINDS,
    UNARY_KINDS,
    Elementwise,
    LayerNorm,
    Pointwise,
    Pool,
    Reduce,
    Softmax,
)
from tamis.compiler.tactics.base import Layer
from tamis.compiler.tactics.conversion import conversion_step
from tamis.compiler.tactics.cuda_kernels import TamisCuda
from tamis.devices.cuda.info import architecture_of, cuda_info
from tamis.engine.plan import Format
from tamis.errors import DeviceError
from tamis.formats.dtype import DType

CONFIG = BuildConfig(device="cuda", precisions=(DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16))
# Largest error over the largest value: a few roundings of float32, or one of the output's type.
TOLERANCE = {DType.FLOAT32: 2e-6, DType.FLOAT16: 6e-4, DType.BFLOAT16: 5e-3}
SPECIAL = [0.0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 20, -20, 88, -88, 1e-6, -1e-3]
TACTIC = TamisCuda()


def choices(layer):
    info = cuda_info()
    assert TACTIC.refuses(layer, info, CONFIG) is None
    return list(TACTIC.choices(layer, info, CONFIG))


def rounded(array: np.ndarray, dtype: DType) -> np.ndarray:
    return torch.from_numpy(array).to(TORCH[dtype]).double().numpy()


def close(result: torch.Tensor, exact, dtype: DType, what: str = "") -> None:
    exact = torch.as_tensor(exact, dtype=torch.float64, device=result.device)
    assert result.shape == exact.shape
    error = float((result.double() - exact).abs().max() / exact.abs().max())
    assert error <= TOLERANCE[dtype], f"{what} {dtype}: error {error:.2e}, may be {TOLERANCE[dtype]:.0e}"


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_choice_of_every_layer(case: Case):
    layer, arrays = case.layer()
    for choice in choices(layer):
        run, slots, outputs = bound_layer(layer, choice, TACTIC.lower(layer, choice), arrays, "cuda")
        run(slots)
        torch.cuda.synchronize()
        exact = case.expected([
            a if name in layer.constants else rounded(a, choice.precision)
            for name, a in zip(layer.node.inputs, arrays, strict=True)
        ])  # fmt: skip
        for output, expected in zip(outputs, exact, strict=True):
            close(output, expected, choice.precision, choice.key())


@pytest.mark.parametrize("case", [CASES[1], CASES[9], CASES[14], CASES[16], CASES[18]], ids=lambda case: case.name)
def test_replays_of_a_captured_graph(case: Case):
    layer, arrays = case.layer()
    choice = choices(layer)[-1]
    run, slots, outputs = bound_layer(layer, choice, TACTIC.lower(layer, choice), arrays, "cuda")
    graph = capture(lambda: run(slots))
    for scale in (2.0, -0.5):
        slots[0].copy_(torch.from_numpy(arrays[0] * np.float32(scale)))
        for output in outputs:
            output.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        new = [slots[0].double().cpu().numpy(), *(rounded(a, choice.precision) for a in arrays[1:])]
        new = [a if n in layer.constants else b for n, a, b in zip(layer.node.inputs, arrays, new, strict=True)]
        for output, expected in zip(outputs, case.expected(new), strict=True):
            close(output, expected, choice.precision, f"scale {scale}")


UNARY = [kind for kind in UNARY_KINDS if kind not in BOOLEAN_KINDS]
BINARY = [kind for kind in BINARY_KINDS if kind not in (*BOOLEAN_KINDS, "mod", "fmod")]


@pytest.mark.parametrize("kind", [*UNARY, *BINARY])
def test_pointwise_kinds_hand_nan_and_infinity_on(kind: str):
    """Against NumPy in float64: where it gives NaN or infinity, so does the kernel."""
    values = np.concatenate([SPECIAL, np.random.default_rng(1).standard_normal(301) * 3]).astype(np.float32)
    others = np.roll(np.abs(values) if kind == "pow" else values, 7)
    values = np.abs(values) if kind == "pow" else values
    op = Elementwise((Pointwise(kind, operand=None if kind in UNARY else 1),))
    layer, _ = Case(kind, op, (values.shape,) if kind in UNARY else (values.shape, values.shape)).layer()
    choice = next(c for c in choices(layer) if c.precision == DType.FLOAT32)
    arrays = [values] if kind in UNARY else [values, others]
    run, slots, (output,) = bound_layer(layer, choice, TACTIC.lower(layer, choice), arrays, "cuda")
    run(slots)
    result = output.double().cpu().numpy()
    with np.errstate(all="ignore"):
        exact = apply_program(op.program, arrays[0].astype(np.float64), [a.astype(np.float64) for a in arrays])
        exact = np.where(np.abs(exact) > 3.4028235e38, np.copysign(np.inf, exact), exact)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(exact))
    np.testing.assert_array_equal(np.isinf(result), np.isinf(exact))
    finite = np.isfinite(exact)
    np.testing.assert_allclose(result[finite], exact[finite], rtol=4e-5 if kind in ("pow", "tan") else 2e-5, atol=1e-6)


def on_gpu(constants: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: upload(array, "cuda") for name, array in constants.items()}


def typed_layer(op, shapes) -> Layer:
    """A layer without values, which would take long to make."""
    names = tuple(f"v{index}" for index in range(len(shapes)))
    types = {name: TensorType(shape) for name, shape in zip(names, shapes, strict=True)}
    types["y0"] = infer(op, list(types.values()))[0]
    return Layer(Node("layer", op, names, ("y0",)), types, {})


LARGE = {
    "residual relu": (program(step("add", 1), step("relu")), [(64, 256, 56, 56)] * 2, lambda x, r: F.relu(x + r)),
    "gate": (program(step("sigmoid"), step("mul", 1)), [(32, 96, 1, 1), (32, 96, 56, 56)], lambda g, x: g.sigmoid() * x),
    "gelu": (program(step("gelu")), [(64, 512, 3072)], F.gelu),
    "layer norm": (LayerNorm(-1, 1e-5, False, False), [(128, 128, 768)], lambda x: F.layer_norm(x, (768,))),
    "long rows": (LayerNorm(-1, 1e-5, False, False), [(7, 100_000)], lambda x: F.layer_norm(x, (100_000,))),
    "softmax": (Softmax(-1), [(16, 12, 512, 512)], lambda x: x.softmax(-1)),
    "odd softmax": (Softmax(-1), [(64, 12, 197, 197)], lambda x: x.softmax(-1)),
    "max pool": (Pool("max", (3, 3), (2, 2), (1,) * 4, (1, 1)), [(32, 64, 112, 112)], lambda x: F.max_pool2d(x, 3, 2, 1)),
    "global average": (Reduce("mean", (2, 3), True), [(128, 2048, 7, 7)], lambda x: x.mean((2, 3), keepdim=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_large_shapes(name: str):
    op, shapes, reference = LARGE[name]
    layer = typed_layer(op, shapes)
    for choice in choices(layer):
        torch.manual_seed(3)
        formats = dict(zip(layer.values, choice.inputs, strict=True))
        tensors = [empty(shape, formats[n], "cuda").normal_() for n, shape in zip(layer.values, shapes, strict=True)]
        lowered = TACTIC.lower(layer, choice)
        (made,) = lowered.steps
        order = [layer.values.index(n) for n in made.inputs]
        given = [(tensors[i], choice.inputs[i]) for i in order]
        run, slots = bound(
            made, on_gpu(lowered.constants), given, [(layer.types["y0"].shape, choice.outputs[0])], "cuda"
        )
        run(slots)
        torch.cuda.synchronize()
        close(slots[-1], reference(*(t.double() for t in tensors)), choice.precision, choice.key())


@pytest.mark.parametrize(
    ("source", "target"),
    [(DType.FLOAT32, DType.FLOAT16), (DType.BFLOAT16, DType.BFLOAT16), (DType.FLOAT16, DType.FLOAT32)],
    ids=str,
)
@pytest.mark.parametrize("shape", [(64, 3, 224, 224), (32, 256, 56, 56), (8, 2048, 7, 7), (3, 65, 31, 33)], ids=str)
@pytest.mark.parametrize("to_last", [True, False])
def test_conversions(shape, source, target, to_last):
    layouts = ("row_major", "channels_last") if to_last else ("channels_last", "row_major")
    given, made = (Format(dtype, layout) for dtype, layout in zip((source, target), layouts, strict=True))
    x = empty(shape, given, "cuda").normal_()
    moving, binaries = conversion_step("x", "y", shape, given, made, cuda_info())
    run, slots = bound(moving, on_gpu(binaries), [(x, given)], [(shape, made)], "cuda")
    run(slots)
    assert torch.equal(slots[1], x.to(TORCH[target]))


@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize("layout", ["row_major", "channels_last"])
def test_padding_of_channels(channels, layout):
    given, made = Format(DType.FLOAT32, layout), Format(DType.FLOAT16, "channels_last")
    x, shape = empty((32, 3, 224, 224), given, "cuda").normal_(), (32, channels, 224, 224)
    moving, binaries = padding_step(tuple(x.shape), given, channels, made, cuda_info().architecture)
    run, slots = bound(moving, on_gpu(binaries), [(x, given)], [(shape, made)], "cuda")
    run(slots)
    assert torch.equal(slots[1][:, :3], x.half())
    assert not slots[1][:, 3:].any()


@pytest.mark.parametrize(("block", "channels"), [(2, 16), (4, 48), (16, 768), (14, 592)])
@pytest.mark.parametrize("source", [DType.FLOAT32, DType.FLOAT16], ids=str)
@pytest.mark.parametrize("layout", ["row_major", "channels_last"])
def test_space_to_depth(block, channels, source, layout):
    given, made = Format(source, layout), Format(DType.FLOAT16, "channels_last")
    x = empty((32, 3, 224, 224), given, "cuda").normal_()
    moving, binaries = padding_step(tuple(x.shape), given, channels, made, cuda_info().architecture, block)
    shape = (32, channels, 224 // block, 224 // block)
    run, slots = bound(moving, on_gpu(binaries), [(x, given)], [(shape, made)], "cuda")
    run(slots)
    count = 3 * block * block
    assert torch.equal(slots[1][:, :count], F.pixel_unshuffle(x.half(), block))
    assert not slots[1][:, count:].any()


def bound_relu():
    layer, arrays = CASES[0].layer()
    choice = choices(layer)[0]
    return bound_layer(layer, choice, TACTIC.lower(layer, choice), arrays, "cuda")


def test_another_thread_and_another_stream():
    run, slots, (output,) = bound_relu()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                run(slots)
                torch.cuda.current_stream().synchronize()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures, failures
    assert torch.equal(output, slots[0].relu())


def test_a_binary_for_another_gpu_is_an_error_in_words():
    layer, arrays = CASES[0].layer()
    choice = choices(layer)[0]
    major = torch.cuda.get_device_capability()[0]
    other = architecture_of((8, 0) if major != 8 else (9, 0))
    choice = type(choice)(**{**vars(choice), "parameters": {"architecture": other}})
    with pytest.raises(DeviceError, match=r"layer 'layer': loading a kernel failed: CUDA_ERROR_NO_BINARY_FOR_GPU"):
        bound_layer(layer, choice, TACTIC.lower(layer, choice), arrays, "cuda")


def test_unaligned_memory_is_refused_before_the_launch():
    run, slots, _ = bound_relu()
    slots[0] = torch.randn(211, device="cuda")[1:]
    with pytest.raises(DeviceError, match="not aligned"):
        run(slots)


def test_what_a_launch_costs_the_host():
    """Not a benchmark: a launch that takes the host far longer than PyTorch's own has lost its purpose."""
    run, slots, _ = bound_relu()
    for _ in range(100):
        run(slots)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(1000):
        run(slots)
    cost = (time.perf_counter() - start) * 1e3
    torch.cuda.synchronize()
    assert cost < 50, f"{cost:.1f} us a launch"
