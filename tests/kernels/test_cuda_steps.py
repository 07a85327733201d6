"""From a layer to its numbers without a GPU: lowering, binder and launch are real, the driver is played.

In place of a cubin, lowering packs the source that it would compile; the driver compiles that for the emulation, and
launches with the addresses that it is given, as a GPU's would.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conv_layers import RELU, SILU, conv, conv_layer, expected
from cuda_layers import CASES, Case, bound, bound_layer, bound_steps, empty, padding_step, upload
from gemm_layers import GROUPED, GemmCase, linear_layer
from gemm_layers import SMALL as PLAIN_CASES
from small_models import two_of_four
from stem_layers import SMALL as STEM_CASES
from stem_layers import StemCase, max_pool, pooled_graph
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.ops import Concat
from tamis.compiler.planner.joints import aligned_by_joins, joined_in_place
from tamis.compiler.planner.views import Flow
from tamis.compiler.tactics import cuda_steps
from tamis.compiler.tactics.base import Choice, layer_of
from tamis.compiler.tactics.conversion import conversion_step
from tamis.compiler.tactics.cuda_kernels import TamisCuda
from tamis.compiler.tactics.generations import AMPERE, HOPPER, Generation
from tamis.compiler.tactics.implicit_gemm import ImplicitGemm
from tamis.compiler.tactics.pooled import HopperPooled, pooled_layer
from tamis.compiler.tactics.stem import HopperStem
from tamis.compiler.tuner.accuracy import compare, objection
from tamis.devices.base import BoundShape
from tamis.devices.cuda import kernels, module
from tamis.devices.cuda.overlap import Overlap
from tamis.engine.plan import DeviceInfo, Format, Step
from tamis.errors import DeviceError
from tamis.formats.dtype import DType
from tamis.formats.hopper import pack_hopper
from tamis.kernels.cuda.implicit_gemm import Convolution, Epilogue, deepest, implicit_gemm_hopper
from tamis.kernels.cuda.line_tiles import line_tiles

GEMM_CASES = PLAIN_CASES + GROUPED
H200 = DeviceInfo("cuda", "NVIDIA H200", "sm_90", 132, ("tf32", "bf16", "fp8"), {"torch": "2.11.0"})
CONFIG = BuildConfig(device="cuda", precisions=(DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_layers(driver, case: Case):
    layer, arrays = case.layer()
    tactic, expected = TamisCuda(), case.expected(arrays)
    assert tactic.refuses(layer, H200, CONFIG) is None
    found = list(tactic.choices(layer, H200, CONFIG))
    assert {choice.precision for choice in found} == {DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16}
    for choice in found:
        if choice.precision == DType.BFLOAT16 and case.name != "residual norm":
            continue  # the same code but for the conversions, which other tests cover
        run, slots, outputs = bound_layer(layer, choice, tactic.lower(layer, choice), arrays)
        run(slots)
        for tensor, exact in zip(outputs, expected, strict=True):
            result = tensor.double().numpy()
            assert result.shape == exact.shape
            assert objection(compare(result, exact), choice.precision, cosine=0.999, relative=1e-5) is None, choice


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("case", GEMM_CASES, ids=[case.name for case in GEMM_CASES])
@pytest.mark.parametrize("generation", [HOPPER, AMPERE], ids=lambda generation: generation.name)
def test_layers_on_tensor_cores(driver, generation: Generation, case: GemmCase, sparse: bool):
    layer, arrays = case.layer()
    tactic = ImplicitGemm(generation, sparse=sparse)
    if sparse and layer.note is None:
        pytest.skip("the weight is dense")
    assert tactic.refuses(layer, H200, replace(CONFIG, optimization_level=4)) is None
    offered = list(tactic.choices(layer, H200, CONFIG))
    found = {choice.precision: choice for choice in reversed(offered)}
    assert set(found) == {DType.BFLOAT16, DType.FLOAT16}
    held = [choice for choice in offered if choice.parameters.get("stationary")]
    expected = case.expected(layer, arrays)
    for choice in (*found.values(), *held[-1:]):  # of the smallest tile, and of weights in registers
        lowered = tactic.lower(layer, choice)
        assert lowered.steps[-1].sparsity == choice.sparsity == ("2:4" if sparse else "dense")
        runners, slots, (output,) = bound_steps(layer, choice, lowered, arrays)
        output.fill_(float("nan"))
        for run in runners:
            run(slots)
        result = output.double().numpy()
        assert objection(compare(result, expected), choice.precision, cosine=0.9999, relative=1e-5) is None, choice


@pytest.mark.parametrize("case", STEM_CASES, ids=[case.name for case in STEM_CASES])
def test_first_layers_on_tensor_cores(driver, case: StemCase):
    """Blocks, then windows of them: what the copy engine is told overlaps. Of each kind of tile one, of each source."""
    layer, arrays = case.make()
    tactic, exact = HopperStem(), expected(layer, arrays)
    assert tactic.refuses(layer, H200, CONFIG) is None
    for level in range(6):
        at_level = list(tactic.choices(layer, H200, replace(CONFIG, optimization_level=level)))
        assert at_level and all(tactic.units(layer, choice) for choice in at_level), level
    found = {(c.precision, c.inputs[0], c.parameters["lines"] > 0): c for c in tactic.choices(layer, H200, CONFIG)}
    chosen = list(found.values())
    for choice in chosen[:: max(len(chosen) // 3, 1)]:
        lowered = tactic.lower(layer, choice)
        runners, slots, (output,) = bound_steps(layer, choice, lowered, arrays)
        for run in runners:
            run(slots)
        result = output.double().numpy()
        assert objection(compare(result, exact), choice.precision, cosine=0.9999, relative=1e-5) is None, choice


PAIRS = (
    (conv_layer(conv(RELU, stride=2, pads=3), (2, 3, 30, 27), (24, 3, 7, 7)), max_pool(3, 1)),
    (conv_layer(conv(SILU), (1, 64, 9, 14), (72, 64, 3, 3)), max_pool(2)),
)


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_pooling_behind_convolutions(driver, number: int):
    """One kernel for two layers, from each source, dense and in 2:4: exactly what two kernels give."""
    (layer, arrays), pool = PAIRS[number]
    if layer.type(0).shape[1] % 4 == 0:
        arrays = {**arrays, "w": two_of_four(arrays["w"], 1)}
        layer = replace(layer, constants={**layer.constants, "w": arrays["w"]})
    graph, tactic = pooled_graph(layer, pool), HopperPooled()
    assert [tactic.refuses(graph, node, H200, CONFIG) for node in graph.nodes] == [None, None]
    (region,) = tactic.regions(graph, frozenset(node.name for node in graph.nodes))
    both = pooled_layer(layer, layer_of(graph, graph.nodes[1]))
    exact = evaluate(pool, [expected(layer, arrays)])[0]
    found = tactic.choices(graph, region, H200, CONFIG)
    assert {choice.sparsity for choice in found} == ({"dense", "2:4"} if "2:4" in str(graph.sparsity) else {"dense"})
    for choice in {(c.precision, c.inputs, c.sparsity): c for c in found}.values():
        lowered = tactic.lower(graph, region, choice)
        assert lowered.steps[-1].layers == (layer.name, "pool")
        runners, slots, (output,) = bound_steps(both, choice, lowered, arrays)
        for run in runners:
            run(slots)
        result = output.double().numpy()
        assert objection(compare(result, exact), choice.precision, cosine=0.9999, relative=1e-5) is None, choice


PLAIN, HALF_LAST = Format(DType.FLOAT32), Format(DType.FLOAT16, "channels_last")


def bound_conversion(x: torch.Tensor, wanted: Format):
    """The runner of a conversion from float32, row-major, and its slots."""
    step, binaries = conversion_step("x", "y", tuple(x.shape), PLAIN, wanted, H200)
    return bound(step, uploaded(binaries), [(x, PLAIN)], [(tuple(x.shape), wanted)])


def uploaded(constants):
    return {name: upload(array) for name, array in constants.items()}


def test_conversions_and_padding(driver):
    x = torch.randn(2, 3, 5, 4)
    run, slots = bound_conversion(x, HALF_LAST)
    run(slots)
    assert torch.equal(slots[1], x.half())
    step, binaries = padding_step((2, 3, 5, 4), PLAIN, 8, HALF_LAST, "sm_90")
    run, slots = bound(step, uploaded(binaries), [(x, PLAIN)], [((2, 8, 5, 4), HALF_LAST)])
    run(slots)
    assert torch.equal(slots[1][:, :3], x.half())
    assert torch.equal(slots[1][:, 3:], torch.zeros(2, 5, 5, 4).half())
    x = torch.randn(2, 3, 6, 4)
    step, binaries = padding_step((2, 3, 6, 4), PLAIN, 16, HALF_LAST, "sm_90", block=2)
    run, slots = bound(step, uploaded(binaries), [(x, PLAIN)], [((2, 16, 3, 2), HALF_LAST)])
    run(slots)
    assert torch.equal(slots[1][:, :12], torch.nn.functional.pixel_unshuffle(x.half(), 2))


@pytest.mark.parametrize(
    ("kernel", "lines"), [((1, 1), False), ((3, 3), False), ((3, 3), True)], ids=["product", "convolution", "lines"]
)
def test_tensor_maps_follow_their_tensors(driver, kernel, lines):
    """A map holds an address: it is encoded for the first run, and again when the tensor lies elsewhere."""
    around = kernel[0] // 2
    shape = Convolution(1, 5, 4, 64, 64, kernel, pads=(around,) * 4)
    weight = (np.random.default_rng(0).standard_normal((64, kernel[0] * kernel[1], 64)) / 16).astype(np.float16)
    tile = line_tiles(shape, sparse=False)[0] if lines else deepest(1, 1, 64, sparse=False)
    made = implicit_gemm_hopper(shape, tile, DType.FLOAT16, 2, Epilogue(), sparse=False)
    assert made.shared_bytes > 48 * 1024
    choice = Choice("t", DType.FLOAT16, (HALF_LAST,), (HALF_LAST,), parameters={"architecture": "sm_90"})
    step, packed = cuda_steps.kernel_step(
        made, choice, name="conv", layers=("conv",), inputs=("x",), outputs=("y",),
        constants={"w": pack_hopper(weight, 1, sparse=False).data}, moved_bytes=0,
    )  # fmt: skip
    images = [torch.randn(1, 64, 5, 4).half().contiguous(memory_format=torch.channels_last) for _ in range(2)]
    run, slots = bound(step, uploaded(packed), [(images[0], HALF_LAST)], [((1, 64, 5, 4), HALF_LAST)])
    filters = torch.from_numpy(weight.reshape(64, *kernel, 64)).permute(0, 3, 1, 2).double()
    for index in (0, 0, 1):
        slots[0] = images[index]
        slots[1].fill_(float("nan"))
        run(slots)
        expected = torch.nn.functional.conv2d(images[index].double(), filters, padding=around)
        torch.testing.assert_close(slots[1].double(), expected, rtol=2e-3, atol=2e-3)
    assert driver.encoded == 2


def test_lines_of_a_few_channels_of_each_pixel(driver):
    """A map with an axis within a pixel: bundles of groups that do not fill steps."""
    layer, arrays = GemmCase("lines", lambda: conv_layer(conv(groups=5), (1, 120, 7, 7), (120, 24, 3, 3))).layer()
    tactic = ImplicitGemm(HOPPER, sparse=False)
    choices = tactic.choices(layer, H200, replace(CONFIG, optimization_level=5))
    choice = next(choice for choice in choices if choice.parameters["lines"])
    lowered = tactic.lower(layer, choice)
    (map_,) = lowered.steps[0].attributes["maps"]
    assert (map_["mode"], map_["channels"], map_["windows"]) == ("lines", 48, (120 - 48) // 8 + 1)
    run, slots, (output,) = bound_layer(layer, choice, lowered, [arrays[name] for name in layer.node.inputs])
    run(slots)
    exact = expected(layer, arrays)
    assert objection(compare(output.double().numpy(), exact), choice.precision, cosine=0.9999, relative=1e-5) is None


def test_what_the_binder_refuses(driver):
    x = torch.randn(4, 8)
    bare = Step("step", "cuda.pointwise", ("x",), ("y",))
    with pytest.raises(
        DeviceError, match=r"layer 'step': kernel cuda\.pointwise has no binary\. Build the engine again"
    ):
        bound(bare, {}, [(x, PLAIN)], [((4, 8), PLAIN)])
    step, binaries = conversion_step("x", "y", (4, 8), PLAIN, PLAIN, H200)
    with pytest.raises(DeviceError, match="given memory"):
        kernels.bind(step, uploaded(binaries), [BoundShape(0, (4, 8), PLAIN)], [BoundShape(1, (4, 8), PLAIN)])
    run, slots = bound_conversion(x, PLAIN)
    slots[0] = torch.randn(5, 8).reshape(-1)[1:33]
    with pytest.raises(DeviceError, match="'convert y': a tensor is not aligned"):
        run(slots)


def test_failing_launches_name_the_layer_and_the_reason(driver):
    x = torch.randn(4, 8)
    run, slots = bound_conversion(x, PLAIN)
    driver.failures = [700, 700]
    with pytest.raises(DeviceError, match=r"'convert y': launching the kernel 'pointwise' failed: CUDA_ERROR_ILLEGAL"):
        run(slots)
    before = len(driver.contexts)
    driver.failures = [201]  # this thread has no context yet
    run(slots)
    assert len(driver.contexts) == before + 1
    assert torch.equal(slots[1], x)
    assert len(driver.sources) == 1
    del run
    assert not driver.sources  # the module went with its runner


def test_who_may_start_early(driver, monkeypatch):
    x = torch.randn(4, 8)
    step, binaries = conversion_step("x", "y", (4, 8), PLAIN, PLAIN, H200)
    old = {name: value for name, value in step.attributes.items() if name != "overlaps"}
    bindable = (step, replace(step, waits=(3,)), replace(step, attributes=old))
    runners = [bound(each, uploaded(binaries), [(x, PLAIN)], [((4, 8), PLAIN)]) for each in bindable]
    monkeypatch.setattr(kernels, "can_overlap", lambda device: False)
    runners.append(bound(step, uploaded(binaries), [(x, PLAIN)], [((4, 8), PLAIN)]))
    for run, slots in runners:
        run(slots)
    # Not behind another stream's event, not with a binary that does not wait, not on an older GPU.
    assert driver.early == [True, False, False, False]
    with module.OVERLAP.off():
        runners[0][0](runners[0][1])
    runners[0][0](runners[0][1])
    assert driver.early[4:] == [False, True]


def test_a_driver_that_refuses_early_starts(driver):
    x = torch.randn(4, 8)
    run, slots = bound_conversion(x, PLAIN)
    driver.failures = [801]
    with pytest.warns(UserWarning, match="without overlap: CUDA_ERROR"):
        run(slots)
    assert torch.equal(slots[1], x)
    run(slots)
    assert driver.early == [True, False, False]
    assert not module.OVERLAP.on
    with module.OVERLAP.off():
        pass
    assert not module.OVERLAP.on


def test_a_recording_that_the_refusal_ended(driver):
    run, slots = bound_conversion(torch.randn(4, 8), PLAIN)
    driver.failures = [801, 901]
    with pytest.warns(UserWarning, match="without overlap"), pytest.raises(DeviceError, match="launching"):
        run(slots)
    assert not module.OVERLAP.on
    module.OVERLAP = Overlap()
    driver.failures = [901]  # ended before: by something else
    with pytest.raises(DeviceError, match="launching"):
        run(slots)
    assert module.OVERLAP.on


def test_a_function_that_the_binary_lacks(driver):
    layer, _ = CASES[0].layer()
    choice = next(iter(TamisCuda().choices(layer, H200, CONFIG)))
    lowered = TamisCuda().lower(layer, choice)
    step = Step(**{**vars(lowered.steps[0]), "attributes": {**lowered.steps[0].attributes, "function": "other"}})
    with pytest.raises(DeviceError, match="finding the kernel 'other' failed: CUDA_ERROR_NOT_FOUND"):
        bound(step, uploaded(lowered.constants), [(torch.randn(3, 70), PLAIN)], [((3, 70), PLAIN)])


def run_flow(flow: Flow, shapes, given, constants, result: str) -> np.ndarray:
    """The value ``result`` of a flow, over memory that holds NaN."""
    slots = [empty(shape, format, "cpu") for shape, format in shapes.values()]
    places = {name: BoundShape(i, *shapes[name], preallocated=True) for i, name in enumerate(shapes)}
    for name, place in places.items():
        if name in given:
            slots[place.slot].copy_(torch.from_numpy(given[name]))
        else:
            slots[place.slot].fill_(float("nan"))
    uploaded = {name: upload(array, "cpu") for name, array in constants.items()}
    for step in flow.steps:
        inputs, outputs = ([places[name] for name in names] for names in (step.inputs, step.outputs))
        kernels.bind(step, {name: uploaded[name] for name in step.constants}, inputs, outputs)(slots)
    return slots[places[result].slot].double().numpy()


def test_a_concat_pads_the_rows_behind_it(driver):
    """A linear layer writes into rows of 53, which are 56 long already when the next one reads them."""
    (first, arrays), (second, more) = linear_layer(9, 32, 24, RELU), linear_layer(9, 53, 40)
    random = np.random.default_rng(1)
    beside = random.standard_normal((9, 29), dtype=np.float32)
    half = Format(DType.FLOAT16)
    shapes = {"x": ((9, 32), half), "beside": ((9, 29), half), "made": ((9, 24), half), "rows": ((9, 53), half)}
    steps, constants = [], {}
    for layer, source, target in ((first, "x", "made"), (second, "rows", "y")):
        arrays_of = arrays if layer is first else more
        named = replace(layer, constants={name: arrays_of[name] for name in layer.constants})
        tactic = ImplicitGemm(HOPPER, sparse=False)
        choice = next(c for c in tactic.choices(named, H200, CONFIG) if c.precision == DType.FLOAT16)
        made = tactic.lower(named, choice)
        shapes |= {f"{target}/{name}": place for name, place in made.temporaries.items()}
        for step in made.steps:
            values = {"x": source, "y": target} | {name: f"{target}/{name}" for name in made.temporaries}
            own = {name: f"{target}/{name}" for name in step.constants}
            constants |= {own[name]: made.constants[name] for name in step.constants}
            steps.append(replace(step, inputs=tuple(values[v] for v in step.inputs), constants=tuple(own.values()),
                                 outputs=tuple(values[v] for v in step.outputs)))  # fmt: skip
    shapes["y"] = ((9, 40), half)
    types = {name: TensorType(shapes[name][0]) for name in ("made", "beside", "rows")}
    node = Node("rows", Concat(1), ("made", "beside"), ("rows",))
    join = layer_of(Graph("g", ("made", "beside"), ("rows",), (node,), types, {}), node)
    lowered = TamisCuda().lower(join, next(c for c in TamisCuda().choices(join, H200, CONFIG) if c.outputs == (half,)))
    flow = Flow((steps[0], *lowered.steps, *steps[1:]), {})
    flow = joined_in_place(aligned_by_joins(flow, shapes, ("y",)), shapes, ("y",))
    assert [step.kernel for step in flow.steps] == [
        "cuda.implicit_gemm_hopper", "cuda.concat", "cuda.implicit_gemm_hopper"
    ]  # fmt: skip
    assert flow.steps[0].outputs == flow.steps[1].outputs
    result = run_flow(flow, shapes, {"x": arrays["x"], "beside": beside}, constants | dict(lowered.constants), "y")
    middle = expected(first, arrays)
    exact = expected(second, {**more, "x": np.concatenate([middle, beside], 1)})
    assert objection(compare(result, exact), DType.FLOAT16, cosine=0.9999, relative=1e-5) is None


@pytest.mark.parametrize("generation", [HOPPER, AMPERE], ids=lambda generation: generation.name)
@pytest.mark.parametrize("copied", [True, False], ids=["one is copied", "all in place"])
def test_pieces_of_a_concat_are_written_in_place(driver, copied: bool, generation: Generation):
    """Two convolutions write between each other's channels, and what else is joined is copied there."""
    (left, arrays), (right, more) = (conv_layer(conv(RELU), (2, 16, 5, 6), (filters, 16, 3, 3)) for filters in (24, 72))
    exact = [expected(left, arrays), expected(right, more)]
    pieces = {"left": exact[0], "right": exact[1]}
    if copied:
        pieces = {"left": exact[0], "image": arrays["x"].astype(np.float64), "right": exact[1]}
    half = Format(DType.FLOAT16, "channels_last")
    shapes = {name: (array.shape, half) for name, array in pieces.items()} | {"x": (arrays["x"].shape, half)}
    shapes["joint"] = ((2, sum(array.shape[1] for array in pieces.values()), 5, 6), half)
    steps, constants = [], {}
    for layer, name in ((left, "left"), (right, "right")):
        tactic = ImplicitGemm(generation, sparse=False)
        choice = next(c for c in tactic.choices(layer, H200, CONFIG) if c.precision == DType.FLOAT16)
        made = tactic.lower(layer, choice)
        (step,) = made.steps
        renamed = {constant: f"{name}/{constant}" for constant in step.constants}
        steps.append(replace(step, name=name, outputs=(name,), constants=tuple(renamed.values())))
        constants |= {renamed[constant]: array for constant, array in made.constants.items()}
    types = {name: TensorType(array.shape) for name, array in pieces.items()}
    types["joint"] = TensorType(shapes["joint"][0])
    node = Node("joint", Concat(1), tuple(pieces), ("joint",))
    join = layer_of(Graph("g", tuple(pieces), ("joint",), (node,), types, {}), node)
    choice = next(c for c in TamisCuda().choices(join, H200, CONFIG) if c.outputs == (half,))
    lowered = TamisCuda().lower(join, choice)
    flow = joined_in_place(Flow((*steps, *lowered.steps), {}), shapes, ("joint",))
    assert [step.name for step in flow.steps] == ["left", "right", *["joint"] * copied]
    assert all(step.outputs == ("joint",) for step in flow.steps)

    given = {"x": arrays["x"], "image": arrays["x"]}
    result = run_flow(flow, shapes, given, constants | dict(lowered.constants), "joint")
    whole = np.concatenate(list(pieces.values()), 1)
    assert objection(compare(result, whole), DType.FLOAT16, cosine=0.9999, relative=1e-5) is None
