"""Kernels that start while the one in front still runs: the same bits as one after the other, and edges that say so.

The network is one of all our kernels over three buffers in turn: what a kernel writes, the last but one has read. Long
kernels stand in front of short ones, so that one that does not wait finds what was there before: NaN.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from cuda_layers import upload
from tamis.compiler.tactics.base import Choice
from tamis.compiler.tactics.cuda_steps import kernel_step
from tamis.devices.base import BoundShape, Runner
from tamis.devices.cuda import kernels, streams
from tamis.devices.cuda.graph import record
from tamis.devices.cuda.info import cuda_info
from tamis.devices.cuda.overlap import OVERLAP, can_overlap
from tamis.devices.cuda.stopwatch import CudaStopwatch
from tamis.engine.plan import Format, Step
from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.ampere import pack_ampere
from tamis.formats.dtype import DType
from tamis.formats.hopper import pack_hopper
from tamis.kernels.cuda.implicit_gemm import TILES, Convolution, Epilogue, deepest, implicit_gemm_hopper
from tamis.kernels.cuda.implicit_gemm_ampere import AMPERE_TILES, deepest_ampere, implicit_gemm_ampere
from tamis.kernels.cuda.movement import concat, convert
from tamis.kernels.cuda.pointwise import Operand, PointwiseStep, pointwise
from tamis.kernels.cuda.pool import pool, reduce_pixels
from tamis.kernels.cuda.rows import layer_norm, softmax
from tamis.kernels.cuda.specification import Argument, Kernel

HALF = DType.FLOAT16
SHAPE, PIXELS = (2, 512, 14, 14), 2 * 14 * 14
ROUNDS = 200


@pytest.fixture(autouse=True)
def needs_overlap() -> None:
    if not can_overlap(torch.cuda.current_device()):
        pytest.skip("the GPU is older than sm_90")
    if not OVERLAP.on:
        pytest.skip(f"switched off: {OVERLAP.reason}")


@dataclass
class Network:
    """Steps over slots: the input, three buffers of its size, two halves, another for the means, and an aside one."""

    slots: list[torch.Tensor] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    runners: list[Runner] = field(default_factory=list)

    def __post_init__(self) -> None:
        sizes = [(PIXELS, 512)] * 4 + [(PIXELS, 256)] * 2 + [(2, 512)] + [(PIXELS, 512)] * 2
        self.slots = [torch.full(size, float("nan"), device="cuda", dtype=torch.float16) for size in sizes]

    def add(
        self, kernel: Kernel, ins: Sequence[int], outs: Sequence[int], constants: Sequence[np.ndarray] = (),
        architecture: str = "", **order: object,
    ) -> None:  # fmt: skip
        choice = Choice("tamis", HALF, (), (), parameters={"architecture": architecture or cuda_info().architecture})
        named = {f"c{number}": array for number, array in enumerate(constants)}
        step, packed = kernel_step(
            kernel, choice, name=f"step{len(self.steps)}", layers=(), inputs=tuple(map(str, ins)),
            outputs=tuple(map(str, outs)), constants=named, moved_bytes=0,
        )  # fmt: skip
        step = replace(step, **order)  # type: ignore[arg-type]
        given = [BoundShape(slot, (), Format()) for slot in ins]
        made = [BoundShape(slot, (), Format(), preallocated=True) for slot in outs]
        tensors = {name: upload(array, "cuda") for name, array in packed.items()}
        self.steps.append(step)
        self.runners.append(kernels.bind(step, tensors, given, made))

    def convolution(self, number: int, ins: Sequence[int], out: int, *, sparse: bool, **order: object) -> None:
        """3x3, with the residual that is the second of ``ins``; tiles and packing change with the number."""
        shape = Convolution(2, 14, 14, 512, 512, (3, 3), pads=(1, 1, 1, 1))
        generator = np.random.default_rng(number)
        weight = (generator.standard_normal((512, 9, 512)) / np.sqrt(9 * 512)).astype(np.float16)
        if sparse:
            weight = np.where(magnitude_mask(weight.astype(np.float32), TWO_FOUR), weight, np.float16(0))
        bias = generator.standard_normal(512).astype(np.float32)
        residual = len(ins) > 1
        steps = (*([PointwiseStep("add", operand=0)] if residual else []), PointwiseStep("relu"))
        epilogue = Epilogue(steps, bias=True, residual=residual)
        if cuda_info().architecture == "sm_90":
            tile = deepest(*TILES[5 * number % len(TILES)], sparse=sparse)
            kernel = implicit_gemm_hopper(shape, tile, HALF, cuda_info().cores, epilogue, sparse=sparse)
            packed = pack_hopper(weight, tile.filters // 64, sparse=sparse).data
            self.add(kernel, ins, [out], [packed, bias], "sm_90a", **order)
        else:
            other = deepest_ampere(*AMPERE_TILES[5 * number % len(AMPERE_TILES)], sparse=sparse)
            kernel = implicit_gemm_ampere(shape, other, HALF, epilogue, sparse=sparse)
            packed = pack_ampere(weight, other.filters // 16, sparse=sparse).data
            self.add(kernel, ins, [out], [packed, bias], **order)

    def norm(self, source: int, target: int, **order: object) -> None:
        scale = np.random.default_rng(7).standard_normal(512).astype(np.float32)
        kernel = layer_norm(PIXELS, 512, HALF, 1e-5, scale=Argument("const", 0), bias=Argument("const", 1))
        self.add(kernel, [source], [target], [scale, scale[::-1].copy()], **order)

    def run(self) -> None:
        for runner in self.runners:
            runner(self.slots)

    def poison(self) -> None:
        for slot in self.slots[1:]:
            slot.fill_(float("nan"))


def images(index: int) -> Operand:
    return Operand(SHAPE, HALF, True, Argument("in", index))


def whole(rounds: int = 4) -> tuple[Network, int]:
    """The network, and the slot of its result."""
    net, halves, means = Network(), (4, 5), 6
    place = 0  # of the last result; 0 is the input

    def rotated() -> int:
        nonlocal place
        place = place % 3 + 1
        return place

    pieces = [(2, 256, 14, 14)] * 2
    for number in range(rounds):
        net.convolution(2 * number, [place], rotated(), sparse=False)
        net.norm(place, rotated())
        before = (place + 1) % 3 + 1  # what the last step read
        net.convolution(2 * number + 1, [place, before], rotated(), sparse=True)
        net.norm(place, rotated())
        net.add(pointwise([PointwiseStep("gelu")], [images(0)], SHAPE, HALF, True), [place], [rotated()])
        net.add(convert(SHAPE, (HALF, True), (HALF, False)), [place], [rotated()])
        net.add(convert(SHAPE, (HALF, False), (HALF, True)), [place], [rotated()])
        window = {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
        net.add(pool(SHAPE, SHAPE, HALF, average=False, **window), [place], [rotated()])
        cut, joined = [Argument("out", 0), Argument("out", 1)], [Argument("in", 1), Argument("in", 0)]
        net.add(concat(pieces, 1, HALF, True, Argument("in", 0), cut), [place], halves)
        net.add(concat(pieces, 1, HALF, True, Argument("out", 0), joined), halves, [rotated()])
        net.add(reduce_pixels(SHAPE, HALF, "mean"), [place], [means])
        gate = [PointwiseStep("sigmoid"), PointwiseStep("mul", operand=1)]
        mean = Operand((2, 512, 1, 1), HALF, True, Argument("in", 0))
        net.add(pointwise(gate, [mean, images(1)], SHAPE, HALF, True), [means, place], [rotated()])
        net.norm(place, rotated())
        net.add(softmax(PIXELS, 512, HALF), [place], [rotated()])
        net.norm(place, rotated())
    return net, place


def beside() -> tuple[Network, int]:
    """A branch of two steps on a second stream, and a join."""
    net = Network()
    net.norm(0, 1)
    net.convolution(0, [1], 7, sparse=True, stream=1, waits=(0,))
    net.norm(7, 8, stream=1)
    window = {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    net.add(pool(SHAPE, SHAPE, HALF, average=True, **window), [1], [2])
    net.convolution(1, [2], 3, sparse=False)
    add = [PointwiseStep("add", operand=1)]
    net.add(pointwise(add, [images(0), images(1)], SHAPE, HALF, True), [3, 8], [1], waits=(2,))
    net.norm(1, 2)
    net.runners = streams.ordered(net.steps, net.runners)
    return net, 2


def agrees(net: Network, place: int, run: Callable[[], None], expected: Callable[[], None]) -> None:
    """Both give the same bits, with other inputs in every round; nothing waits for the host in between."""
    torch.manual_seed(0)
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    net.slots[0].normal_()
    expected()
    last, changed = net.slots[place].clone(), torch.ones((), dtype=torch.bool, device="cuda")
    assert bool(last.isfinite().all()) and bool(last.any())
    for _ in range(ROUNDS):
        net.slots[0].normal_()
        net.poison()
        expected()
        result = net.slots[place].clone()
        changed &= (result != last).any()
        last = result
        net.poison()
        run()
        wrong += (net.slots[place] != result).any()
        run()  # directly behind the first
        wrong += (net.slots[place] != result).any()
    torch.cuda.synchronize()
    assert int(wrong) == 0, f"of {2 * ROUNDS} runs"
    assert bool(changed)


@pytest.mark.parametrize("make", [whole, beside])
def test_the_same_bits_in_graphs(make: Callable[[], tuple[Network, int]]) -> None:
    net, place = make()
    with OVERLAP.off():
        plain = record(net.run)
    agrees(net, place, record(net.run), plain)
    assert OVERLAP.on, OVERLAP.reason


@pytest.mark.parametrize("make", [whole, beside])
def test_the_same_bits_step_by_step(make: Callable[[], tuple[Network, int]]) -> None:
    net, place = make()

    def plain() -> None:
        with OVERLAP.off():
            net.run()

    agrees(net, place, net.run, plain)
    assert OVERLAP.on, OVERLAP.reason


def test_sessions_of_two_streams_at_once() -> None:
    """Their blocks wait on the same multiprocessors."""
    made = [whole(2) for _ in range(2)]
    expected, replays = [], []
    for net, place in made:
        net.slots[0].normal_()
        with OVERLAP.off():
            net.run()
        expected.append(net.slots[place].clone())
        replays.append(record(net.run))
    wrong, apart = torch.zeros(2, dtype=torch.int64, device="cuda"), [torch.cuda.Stream() for _ in made]
    torch.cuda.synchronize()
    for _ in range(ROUNDS):
        for index, (net, place) in enumerate(made):
            with torch.cuda.stream(apart[index]):
                net.poison()
                replays[index]()
                wrong[index].add_((net.slots[place] != expected[index]).any())
    torch.cuda.synchronize()
    assert wrong.tolist() == [0, 0]


def edges(run: Callable[[], None]) -> tuple[int, int]:
    """Edges of a recording: those that let the next kernel start early, and all."""
    run()
    torch.cuda.synchronize()
    try:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
    except TypeError:
        pytest.skip("this PyTorch does not show its graphs")
    with torch.cuda.graph(graph):
        run()
    driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_size_t()
    raw = ctypes.c_void_p(graph.raw_cuda_graph())
    assert driver.cuGraphGetEdges_v2(raw, None, None, None, ctypes.byref(count)) == 0
    ends = [(ctypes.c_void_p * count.value)() for _ in range(2)]
    about = (ctypes.c_ubyte * (8 * count.value))()  # from_port, to_port, type, five more
    assert driver.cuGraphGetEdges_v2(raw, *ends, about, ctypes.byref(count)) == 0
    kinds = [(about[8 * edge], about[8 * edge + 2]) for edge in range(count.value)]
    assert set(kinds) <= {(0, 0), (1, 1)}
    return kinds.count((1, 1)), count.value


def test_recordings_have_such_edges() -> None:
    net, _ = whole(1)
    assert edges(net.run) == (len(net.steps) - 1, len(net.steps) - 1)
    with OVERLAP.off():
        assert edges(net.run) == (0, len(net.steps) - 1)
    branched, _ = beside()
    # Two of seven kernels are behind an event, and plain; one is the first.
    early, _ = edges(branched.run)
    assert early == 4


def test_behind_what_is_no_kernel() -> None:
    """A copy and a fill between our kernels are nodes of other kinds."""
    net, place = whole(1)

    def run() -> None:
        for runner in net.runners[:2]:
            runner(net.slots)
        net.slots[8].copy_(net.slots[2])  # a memcpy node
        net.slots[7].zero_()
        for runner in net.runners[2:]:
            runner(net.slots)

    with OVERLAP.off():
        plain = record(run)
    agrees(net, place, record(run), plain)
    assert OVERLAP.on, OVERLAP.reason


def test_the_race_measures_kernels_alone() -> None:
    """Behind the stopwatch's event a kernel takes as long with as without."""
    net, _ = whole(1)
    watch = CudaStopwatch(cold=True)

    def once(runner: Runner) -> float:
        return watch.time_us(lambda: runner(net.slots), warmups=1)

    for runner in (net.runners[0], net.runners[1], net.runners[4]):
        early, plain = [], []
        for _ in range(30):
            early.append(once(runner))
            with OVERLAP.off():
                plain.append(once(runner))
        difference = statistics.median(early) - statistics.median(plain)
        assert abs(difference) < 0.7 + 0.03 * statistics.median(plain), difference
