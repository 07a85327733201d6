"""The binders of cuDNN without a GPU: a fake package computes on the host what the graphs say."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cudnn import FakeCudnn, FakePlan

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
    expected,
)
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Conv, Pointwise
from tamis.compiler.tactics.base import Choice, Layer
from tamis.compiler.tactics.cudnn import CudnnConv
from tamis.devices.base import BoundShape, Runner
from tamis.devices.cuda import cudnn
from tamis.devices.cuda.cudnn_graph import MOST_WORKSPACE, RankedPlans, can_fuse
from tamis.devices.cuda.cudnn_problem import ConvProblem, conv_problem
from tamis.devices.cuda.workspace import Workspace
from tamis.engine.plan import DeviceInfo, Format
from tamis.errors import DeviceError, MissingLibrary
from tamis.formats.dtype import DType
from tamis.kernels import KernelStore

GPU = DeviceInfo("cuda", "GPU", "sm_90", 132, ("tf32", "bf16"), {"cudnn": "9.19.0", "cudnn_frontend": "1.32.0"})
PRECISIONS = (DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16)
STREAM = 4711

CASES: tuple[tuple[str, Conv, tuple[int, ...], tuple[int, ...]], ...] = (
    ("3x3 relu", conv(RELU), (2, 8, 9, 7), (12, 8, 3, 3)),
    ("bare", conv(bias=False), (2, 8, 5, 5), (4, 8, 3, 3)),
    ("bias only, 1x1", conv(pads=0), (2, 16, 4, 3), (8, 16, 1, 1)),
    ("one pixel", conv(RELU, pads=0), (3, 16, 1, 1), (8, 16, 1, 1)),
    ("uneven everything", conv(CLIP, stride=2, pads=(0, 1, 2, 3), dilation=2), (1, 3, 17, 14), (5, 3, 3, 3)),
    ("no bias, relu", conv(RELU, bias=False), (1, 4, 6, 6), (4, 4, 3, 3)),
    ("residual relu", conv(RESIDUAL, RELU), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("residual", conv(RESIDUAL), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("silu residual", conv(SILU, RESIDUAL), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("residual silu", conv(RESIDUAL, SILU), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("relu6", conv(RELU6), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("leaky", conv(LEAKY), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("sigmoid", conv(SIGMOID), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("tanh", conv(TANH), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("gelu", conv(GELU), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("gelu tanh", conv(GELU_TANH), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("depthwise", conv(RELU, groups=8), (1, 8, 6, 6), (8, 1, 3, 3)),
    ("grouped", conv(RELU, groups=2), (1, 8, 6, 6), (6, 4, 3, 3)),
)


def shared_context(fake: FakeCudnn, folder: Path) -> cudnn.Context:
    """A context that has a fake package."""
    made = object.__new__(cudnn.Context)
    made.cudnn, made.store, made.handle = fake, KernelStore(folder), "handle"
    made._ranked, made._plans, made._refused, made.versions = {}, {}, {}, "fake"
    made._lock, made.device = threading.Lock(), 0
    return made


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=STREAM))


def choice_of(layer: Layer, precision: DType, rank: int = 0) -> Choice:
    config = BuildConfig(device="cuda", precisions=(precision,))
    found = CudnnConv().choices(layer, GPU, config)
    return next(c for c in found if c.precision == precision and c.parameters == {"rank": rank})


def laid_out(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(array).to(dtype).contiguous(memory_format=torch.channels_last)


def on_host() -> Workspace:
    return Workspace(torch.device("cpu"))


def bound_step(
    layer: Layer, arrays: dict[str, np.ndarray], choice: Choice, shared: cudnn.Context, workspace: Workspace
) -> tuple[Runner, list[torch.Tensor]]:
    """Lower and bind; the slots end with the result, which is poisoned. Every image is given channels last."""
    lowered = CudnnConv().lower(layer, choice)
    (step,) = lowered.steps
    dtype = {2: {DType.FLOAT16: torch.float16, DType.BFLOAT16: torch.bfloat16}, 4: {}}[choice.precision.size_bytes]
    kind = dtype.get(choice.precision, torch.float32)
    packed = [torch.from_numpy(np.array(a, np.float32)).to(kind) for a in lowered.constants.values()]
    slots = [laid_out(arrays[name], kind) for name in step.inputs]
    shape = layer.types["y"].shape
    slots.append(torch.full(shape, float("nan"), dtype=kind).contiguous(memory_format=torch.channels_last))
    format = Format(choice.precision.storage, "channels_last")
    inputs = [BoundShape(i, tuple(t.shape), format, False) for i, t in enumerate(slots[:-1])]
    output = BoundShape(len(inputs), shape, format, True)
    bias = packed[1] if len(packed) > 1 else None
    return cudnn.bind_conv(step, packed[0], bias, inputs, output, shared, workspace), slots


def run_step(
    layer: Layer,
    arrays: dict[str, np.ndarray],
    choice: Choice,
    shared: cudnn.Context,
    workspace: Workspace | None = None,
) -> torch.Tensor:
    """The result of a bound step."""
    run, slots = bound_step(layer, arrays, choice, shared, workspace or on_host())
    run(slots)
    return slots[-1]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "op", "x", "w"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.usefixtures("stream")
def test_the_graph_says_what_the_layer_means(
    name: str, op: Conv, x: tuple[int, ...], w: tuple[int, ...], precision: DType, tmp_path: Path
) -> None:
    layer, arrays = conv_layer(op, x, w)
    fake = FakeCudnn(FakePlan(workspace=77))
    result = run_step(layer, arrays, choice_of(layer, precision), shared_context(fake, tmp_path))
    digits = {DType.FLOAT16: 4e-3, DType.BFLOAT16: 3e-2}.get(precision, 1e-6)
    np.testing.assert_allclose(result.double().numpy(), expected(layer, arrays), atol=digits * 3, rtol=digits)
    assert fake.streams == [STREAM]
    kinds = {DType.FLOAT16: "HALF", DType.BFLOAT16: "BFLOAT16"}
    assert fake.graphs[0].given["io_data_type"] == kinds.get(precision, "FLOAT")


@pytest.mark.usefixtures("stream")
def test_the_image_may_be_its_own_residual(tmp_path: Path) -> None:
    op = conv(Pointwise("add", operand=0), RELU)
    layer, arrays = conv_layer(conv(), (2, 8, 6, 6), (8, 8, 3, 3))
    layer = replace(layer, node=replace(layer.node, op=op))
    fake = FakeCudnn(FakePlan())
    result = run_step(layer, arrays, choice_of(layer, DType.FLOAT32), shared_context(fake, tmp_path))
    np.testing.assert_allclose(result.numpy(), expected(layer, arrays), atol=1e-5)


def problem(precision: DType = DType.FLOAT16) -> ConvProblem:
    return ConvProblem((1, 8, 4, 4), (8, 8, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, precision, True)


def test_ranks_count_the_plans_that_can_be_built() -> None:
    fake = FakeCudnn(
        FakePlan(works=False),
        FakePlan(),
        FakePlan(("NONDETERMINISTIC",)),
        FakePlan(("TENSOR_CORE",)),
        FakePlan(workspace=MOST_WORKSPACE + 1),
        FakePlan(("DOWN_CONVERT_INPUTS", "TENSOR_CORE")),
        FakePlan(("REDUCED_PRECISION_REDUCTION",)),
        FakePlan(),
    )
    ranked = RankedPlans(fake, problem(), {"handle": "handle"})
    assert [ranked.index(rank) for rank in (0, 1, 2)] == [1, 3, 7]
    assert fake.builds == 3
    assert ranked.index(1) == 3
    assert fake.builds == 3, "a plan was built twice"
    with pytest.raises(DeviceError, match="offers only 3 algorithms"):
        ranked.index(3)
    tf32 = RankedPlans(fake, problem(DType.TF32), {"handle": "handle"})
    assert [tf32.index(rank) for rank in (0, 1, 2)] == [1, 3, 7]
    strict = RankedPlans(fake, problem(DType.FLOAT32), {"handle": "handle"})
    assert [strict.index(rank) for rank in (0, 1)] == [1, 7]  # tensor cores would round to tf32
    with pytest.raises(DeviceError, match="offers only 2 algorithms"):
        strict.index(2)


def test_what_cudnn_refuses_is_an_error_with_its_words(tmp_path: Path) -> None:
    layer, arrays = conv_layer(conv(RELU), (1, 8, 4, 4), (8, 8, 3, 3))
    choice = choice_of(layer, DType.FLOAT16, rank=2)
    cases = {
        "layer 'layer': cuDNN refuses the convolution: the graph is not supported": FakeCudnn(refuses=True),
        "cuDNN has no plan for the convolution: no engine": FakeCudnn(),
        "cuDNN offers only 1 algorithms": FakeCudnn(FakePlan()),
        "offers only 0 algorithms .Deselecting": FakeCudnn(FakePlan(works=False)),
    }
    for words, fake in cases.items():
        with pytest.raises(DeviceError, match=words):
            run_step(layer, arrays, choice, shared_context(fake, tmp_path))


@pytest.mark.usefixtures("stream")
def test_equal_problems_share_a_plan_and_a_second_process_reads_it(tmp_path: Path) -> None:
    layer, arrays = conv_layer(conv(RESIDUAL, RELU), (1, 8, 4, 4), (8, 8, 3, 3))
    fake = FakeCudnn(FakePlan(workspace=9000), FakePlan(workspace=300))
    shared = shared_context(fake, tmp_path)
    first = run_step(layer, arrays, choice_of(layer, DType.FLOAT16), shared)
    again = run_step(layer, arrays, choice_of(layer, DType.FLOAT16), shared)
    assert (len(fake.graphs), fake.builds) == (1, 1)
    assert torch.equal(first, again)
    other = run_step(layer, arrays, choice_of(layer, DType.FLOAT16, rank=1), shared)
    assert torch.equal(first, other)
    assert (len(fake.graphs), fake.builds, fake.executed) == (1, 2, [0, 0, 1])
    assert len(list(tmp_path.glob("*.plan"))) == 2
    reader = shared_context(fake, tmp_path)  # as if in another process: nothing but the folder is shared
    workspace, held = on_host(), []
    for rank in (1, 0):
        assert torch.equal(first, run_step(layer, arrays, choice_of(layer, DType.FLOAT16, rank), reader, workspace))
        held.append(workspace.reserve(0))
    assert (len(fake.graphs), fake.builds, fake.executed) == (1, 2, [0, 0, 1, 1, 0])
    assert [block.numel() for block in held] == [300, 9000], "stored plans know what they need"
    assert fake.workspaces[-2:] == [block.data_ptr() for block in held]
    run_step(layer, arrays, choice_of(layer, DType.BFLOAT16), reader)
    assert (len(fake.graphs), fake.builds) == (2, 3), "a plan of another precision was taken"


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("damage", ["short", "altered", "alien", "gone"])
def test_files_that_are_no_plans_are_written_anew(damage: str, tmp_path: Path) -> None:
    layer, arrays = conv_layer(conv(RELU), (1, 8, 4, 4), (8, 8, 3, 3))
    fake = FakeCudnn(FakePlan())
    run_step(layer, arrays, choice_of(layer, DType.FLOAT16), shared_context(fake, tmp_path))
    (file,) = tmp_path.glob("*.plan")
    whole = file.read_bytes()
    if damage == "alien":
        shared = shared_context(fake, tmp_path)
        key = cudnn.plan_key(shared.versions, _problem_of(layer), 0)
        shared.store.write(key, "plan", b"not a plan")
        assert shared.store.read(key, "plan") == b"not a plan"
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[:40] if damage == "short" else whole[:-1] + b"?")
    result = run_step(layer, arrays, choice_of(layer, DType.FLOAT16), shared_context(fake, tmp_path))
    assert torch.isfinite(result).all()
    assert len(fake.graphs) == 2
    assert file.read_bytes() != whole  # it names the second graph


def _problem_of(layer: Layer) -> ConvProblem:
    step = CudnnConv().lower(layer, choice_of(layer, DType.FLOAT16)).steps[0]
    return conv_problem(step.attributes, (1, 8, 4, 4), (8, 3, 3, 8), DType.FLOAT16, bias=True)


@pytest.mark.usefixtures("stream")
def test_what_a_builder_was_refused_is_not_built_to_find_out(tmp_path: Path) -> None:
    layer, arrays = conv_layer(conv(RELU), (1, 8, 4, 4), (8, 8, 3, 3))
    fake = FakeCudnn(FakePlan(), FakePlan())
    shared = shared_context(fake, tmp_path)
    shared.refuse(_problem_of(layer), 1, "cuDNN offers only 1 algorithms")
    with pytest.raises(DeviceError, match="offers only 1"):
        run_step(layer, arrays, choice_of(layer, DType.FLOAT16, rank=1), shared)
    assert not fake.builds
    run_step(layer, arrays, choice_of(layer, DType.FLOAT16), shared)
    assert fake.builds == 1


@pytest.mark.parametrize("epilogue", [(SILU,), (RESIDUAL, SILU), (SILU, RESIDUAL), (GELU,), (RELU,), (RESIDUAL, RELU)])
@pytest.mark.parametrize("image", [(1, 8, 8, 8), (1, 3, 8, 8)])
def test_what_is_built_ahead_is_what_the_step_asks_for(epilogue: tuple, image: tuple, tmp_path: Path) -> None:
    """For every choice, rearranged images among them: exactly those that cuDNN compiles have a plan to build."""
    op = conv(*epilogue, stride=2)
    layer, _ = conv_layer(op, image, (8, image[1], 3, 3))
    config = BuildConfig(device="cuda", precisions=(DType.FLOAT16, DType.TF32))
    told = 0
    for choice in CudnnConv().choices(layer, GPU, config):
        lowered = CudnnConv().lower(layer, choice)
        step = next(step for step in lowered.steps if step.kernel == "cudnn.conv")
        units = CudnnConv().units(layer, choice)
        kinds = [entry["kind"] for entry in step.attributes["epilogue"]]
        assert len(units) == (kinds not in ([], ["relu"], ["add"], ["add", "relu"]))
        if units:
            told += 1
            inside = lowered.temporaries.get(step.inputs[0])
            shape = inside[0] if inside else image
            weight, bias = lowered.constants[step.constants[0]], len(step.constants) > 1
            problem = conv_problem(step.attributes, shape, weight.shape, step.precision, bias=bias)
            assert (units[0].problem, units[0].rank) == (problem, step.attributes["rank"])
    assert bool(told) == (epilogue[-1] != RELU)


class Afar(FakeCudnn):
    """A package that plans for a GPU by its properties."""

    def create_device_properties(self, of: int | str) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: f"properties of {of}", of=of)


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize(("op", "afar"), [(conv(SILU), True), (conv(RESIDUAL, RELU), False), (conv(RELU6), True)])
def test_plans_that_are_compiled_are_planned_as_builders_plan_them(op: Conv, afar: bool, tmp_path: Path) -> None:
    layer, arrays = conv_layer(op, (1, 8, 6, 6), (8, 8, 3, 3))
    fake = Afar(FakePlan(), FakePlan(workspace=64))
    for rank in (0, 1):
        result = run_step(layer, arrays, choice_of(layer, DType.FLOAT16, rank), shared_context(fake, tmp_path))
        wanted = torch.from_numpy(expected(layer, arrays))
        assert float((result.double() - wanted).abs().max() / wanted.abs().max()) < 5e-3
        given = fake.graphs[-1].given
        assert ("device_property" in given, "handle" in given) == (afar, not afar)
        assert not afar or given["device_property"].of == "properties of 0"
    assert fake.executed == [0, 1]
    stubborn = Afar(FakePlan(), serializes=False)
    if afar:
        with pytest.raises(DeviceError, match="cannot store"):
            run_step(layer, arrays, choice_of(layer, DType.FLOAT16), shared_context(stubborn, tmp_path / "other"))
    else:
        run_step(layer, arrays, choice_of(layer, DType.FLOAT16), shared_context(stubborn, tmp_path / "other"))


@pytest.mark.usefixtures("stream")
def test_plans_that_cannot_be_stored_run_all_the_same(tmp_path: Path) -> None:
    layer, arrays = conv_layer(conv(RELU), (1, 8, 4, 4), (8, 8, 3, 3))
    fake = FakeCudnn(FakePlan(), serializes=False)
    run_step(layer, arrays, choice_of(layer, DType.FLOAT16), shared_context(fake, tmp_path))
    assert fake.executed == [0]
    assert not list(tmp_path.iterdir())
    blocked = tmp_path / "file"
    blocked.write_text("")
    run_step(layer, arrays, choice_of(layer, DType.FLOAT16), shared_context(FakeCudnn(FakePlan()), blocked))
    without, fake = shared_context(fake, blocked), FakeCudnn(FakePlan())
    without.cudnn, without.store = fake, None
    run_step(layer, arrays, choice_of(layer, DType.FLOAT16), without)
    assert fake.executed == [0]


@pytest.mark.usefixtures("stream")
def test_a_step_keeps_the_scratch_memory_that_it_was_given(tmp_path: Path) -> None:
    layer, arrays = conv_layer(conv(RELU), (1, 8, 4, 4), (8, 8, 3, 3))
    fake, workspace = FakeCudnn(FakePlan(workspace=500)), on_host()
    run, slots = bound_step(layer, arrays, choice_of(layer, DType.FLOAT16), shared_context(fake, tmp_path), workspace)
    block = weakref.ref(workspace.reserve(0))
    workspace.reserve(1 << 20)
    gc.collect()
    assert block() is not None
    run(slots)
    assert fake.workspaces == [block().data_ptr()]
    del run
    gc.collect()
    assert block() is None


def test_threads_that_share_a_handle_launch_one_after_the_other(tmp_path: Path) -> None:
    fake = FakeCudnn(FakePlan())
    shared, launched = shared_context(fake, tmp_path), []

    def execute(addresses: Mapping[int, int], workspace: int) -> None:
        stream = fake.streams[-1]
        time.sleep(0.001)  # another thread would come in here
        launched.append((addresses[0], stream, fake.streams[-1]))

    def work(stream: int) -> None:
        for _ in range(20):
            shared.launch(execute, {0: stream}, 0, stream)

    threads = [threading.Thread(target=work, args=(stream,)) for stream in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(launched) == 40
    assert all(own == before == after for own, before, after in launched)


def test_steps_that_contradict_their_shapes(tmp_path: Path) -> None:
    layer, _ = conv_layer(conv(RELU), (1, 8, 4, 4), (8, 8, 3, 3))
    step = CudnnConv().lower(layer, choice_of(layer, DType.FLOAT16)).steps[0]
    format = Format(DType.FLOAT16, "channels_last")
    weight = torch.zeros(8, 3, 3, 8, dtype=torch.float16)
    shared = shared_context(FakeCudnn(FakePlan()), tmp_path)
    image, wrong = BoundShape(0, (1, 8, 4, 4), format), BoundShape(1, (1, 8, 5, 4), format, True)
    with pytest.raises(DeviceError, match="contradicts"):
        cudnn.bind_conv(step, weight, None, [image], wrong, shared, on_host())
    right = BoundShape(1, (1, 8, 4, 4), format, True)
    with pytest.raises(DeviceError, match="contradicts"):
        cudnn.bind_conv(step, weight, None, [image] * 2, right, shared, on_host())


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(cudnn.importlib, "import_module", absent)
    cudnn.frontend.cache_clear()
    with pytest.raises(MissingLibrary, match="pip install --no-deps nvidia-cudnn-frontend"):
        cudnn.frontend()


def test_what_can_be_fused() -> None:
    assert can_fuse("relu", ())
    assert can_fuse("clip", (0.0, 6.0))
    assert not can_fuse("clip", (0.0, float("inf")))
    assert not can_fuse("clip", (0.0,))
    assert not can_fuse("mish", ())


def test_problems_know_their_result_and_have_their_own_keys() -> None:
    found = ConvProblem((2, 3, 17, 14), (5, 3, 3, 3), (2, 1), (0, 1, 2, 3), (2, 1), 1, DType.TF32, False)
    assert found.result == (2, 5, 8, 16)
    keys = {problem(precision).key() for precision in PRECISIONS}
    assert len(keys) == len(PRECISIONS)
