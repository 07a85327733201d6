"""Kernels are compiled before the races: in which order, until when, and what becomes of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from conv_layers import RELU, SILU, conv, conv_layer
from paper_gpu import H200
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Node, TensorType
from tamis.compiler.ir.ops import Conv, Linear
from tamis.compiler.tactics import ahead, tactics_of
from tamis.compiler.tactics.ahead import PlanUnit, Unit, compile_ahead, in_order, lowerings, unit_of, units_of
from tamis.compiler.tactics.aten import Aten
from tamis.compiler.tactics.base import Choice, Layer, Tactic
from tamis.compiler.tactics.cudnn import COMPILED_RANKS, CudnnConv
from tamis.engine.plan import Format
from tamis.errors import BuildError
from tamis.formats.dtype import DType
from tamis.kernels.cuda import compile as toolchain

CONFIG = BuildConfig(device="cuda", precisions=(DType.FLOAT16, DType.BFLOAT16))


class Ranked(Aten):
    """Choices that name their kernels."""

    def __init__(self, name: str) -> None:
        self.name = name

    def units(self, layer: Layer, choice: Choice) -> Iterable[Unit]:
        return [unit(name) for name in choice.parameters["kernels"]]


def unit(name: str) -> Unit:
    return Unit(f"{name}.cu", (), "sm_90")


def offer(tactic: Tactic, *kernels: str, precision: DType = DType.FLOAT16, layout: str = "row_major") -> tuple:
    formats = (Format(precision, layout),)  # type: ignore[arg-type]
    return tactic, Choice(tactic.name, precision, formats, formats, parameters={"kernels": kernels})


def layer_with(rows: int) -> Layer:
    node = Node(f"fc{rows}", Linear(), ("x", "w"), ("y",))
    types = {"x": TensorType((rows, 8)), "w": TensorType((8, 8)), "y": TensorType((rows, 8))}
    return Layer(node, types, {"w": np.zeros((8, 8), np.float32)})


def test_every_layers_best_comes_before_any_layers_second() -> None:
    dense, sparse, silent = Ranked("dense"), Ranked("sparse"), Aten()
    small = [
        offer(silent), offer(dense, "a1"), offer(dense, "a2"), offer(dense, "a3"), offer(sparse, "b1"),
        offer(sparse, "shared"),
    ]  # fmt: skip
    large = [
        offer(dense, "c1"), offer(dense, "c1", layout="channels_last"), offer(dense, "shared", "c2"),
        offer(dense, "d1", precision=DType.BFLOAT16), offer(dense, "d2", precision=DType.BFLOAT16),
    ]  # fmt: skip
    found = [unit.source.removesuffix(".cu") for unit in in_order([(layer_with(4), small), (layer_with(64), large)])]
    assert found == ["c1", "d1", "a1", "b1", "shared", "c2", "d2", "a2", "a3"]
    assert in_order([]) == []


def test_of_slow_precisions_only_the_best_is_compiled_ahead() -> None:
    layer, _ = conv_layer(conv(SILU), (1, 16, 8, 8), (16, 16, 3, 3))
    tactic, config = CudnnConv(), BuildConfig(device="cuda", precisions=(DType.FLOAT16,))
    gpu = replace(H200, libraries={"cudnn": "9.19.0", "cudnn_frontend": "1.32.0"})
    offers = [(tactic, choice) for choice in tactic.choices(layer, gpu, config)]
    units = in_order([(layer, offers)], frozenset({DType.FLOAT32}))
    ranks = {(unit.problem.precision, unit.rank) for unit in units if isinstance(unit, PlanUnit)}
    assert ranks == {(DType.FLOAT32, 0), *((DType.FLOAT16, rank) for rank in range(COMPILED_RANKS))}
    assert len(in_order([(layer, offers)])) == 2 * COMPILED_RANKS


def test_the_tiles_of_real_layers_are_told_as_they_are_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled ahead is what lowering asks for, in the order in which tiles are predicted to be fast."""
    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compiler_name", lambda: "nvrtc 13.0")
    work, asked = [], set()

    def compiled(source: str, defines: dict, architecture: str) -> bytes:
        asked.add(Unit(source, tuple(sorted((name, str(value)) for name, value in defines.items())), architecture))
        return b"cubin"

    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compile_source", compiled)
    for image, weight in (((8, 64, 28, 28), (64, 64, 3, 3)), ((8, 3, 32, 32), (64, 3, 3, 3))):
        layer, _ = conv_layer(conv(pads=(1, 1, 1, 1)), image, weight)
        offers = [
            (tactic, choice)
            for tactic in tactics_of("cuda")
            if tactic.refuses(layer, H200, CONFIG) is None
            for choice in tactic.choices(layer, H200, CONFIG)
            if units_of(tactic, layer, choice)
        ]
        assert offers
        work.append((layer, offers))
        for tactic, choice in offers:
            tactic.lower(layer, choice)
    units = in_order(work)
    assert set(units) == asked and len(units) == len(asked)
    (layer, offers), _ = work
    first = {units_of(tactic, layer, choice)[0] for tactic, choice in offers if choice == offers[0][1]}
    assert first <= set(units[:4]), "the best tile in float16 is among the first of two layers in two precisions"


@pytest.mark.parametrize(("op", "image", "weight"), [
    (conv(SILU), (1, 16, 8, 8), (16, 16, 3, 3)), (conv(SILU, pads=0), (1, 16, 8, 8), (16, 16, 1, 1)),
    (conv(RELU, stride=2), (1, 3, 16, 16), (16, 3, 3, 3)),
])  # fmt: skip
def test_small_kernels_are_compiled_by_lowering_ahead(
    op: Conv, image: tuple, weight: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind libraries' calls and before them: a race that lowers every choice finds all of them compiled."""
    asked: set[tuple] = set()

    def compiled(source: str, defines: dict, architecture: str) -> bytes:
        asked.add((source, tuple(sorted((name, str(value)) for name, value in defines.items())), architecture))
        return b"cubin"

    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compiler_name", lambda: "nvrtc 13.0")
    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compile_source", compiled)
    monkeypatch.setattr(ahead, "compile_source", compiled)
    layer, _ = conv_layer(op, image, weight)
    gpu = replace(H200, libraries={"cudnn": "9.19.0", "cudnn_frontend": "1.32.0", "cublaslt": "13.0"})
    offers = [
        (tactic, choice)
        for tactic in tactics_of("cuda")
        if tactic.refuses(layer, gpu, CONFIG) is None
        for choice in tactic.choices(layer, gpu, CONFIG)
    ]
    work = [(layer, offers)]
    found = lowerings(work)
    assert 0 < len(found) < len(offers) / 3
    assert compile_ahead([*found, *in_order(work)], float("inf"), lambda *_: None) == frozenset()
    ahead_of_time = set(asked)
    for tactic, choice in offers:
        tactic.lower(layer, choice)
    small = {source for source, *_ in ahead_of_time} - {"implicit_gemm_hopper.cu"}
    assert small and asked == ahead_of_time
    assert compile_ahead(found, 0.0, lambda *_: None) == frozenset(), "a race compiles them when there was no time"


def test_all_are_compiled_once_and_those_that_fail_are_left_to_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, lock, told = [], threading.Lock(), []

    def compiled(source: str, defines: dict, architecture: str) -> bytes:
        with lock:
            asked.append((source, defines, architecture))
        if source == "7.cu":
            raise BuildError("no sevens")
        return b"binary"

    monkeypatch.setattr(ahead, "compile_source", compiled)
    units = [Unit(f"{number}.cu", (("N", str(number)),), "sm_90") for number in range(9)]
    assert compile_ahead(units, float("inf"), lambda *what: told.append(what)) == frozenset()
    assert sorted(asked) == [(f"{number}.cu", {"N": str(number)}, "sm_90") for number in range(9)]
    assert [done for done, _, _ in told] == list(range(1, 10))
    assert {total for _, total, _ in told} == {9} and {source for *_, source in told} == {u.source for u in units}


def test_what_has_not_begun_by_the_deadline_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by one second with each kernel; on one core, so that the order is the given one."""
    now, asked = [0.0], []

    def compiled(source: str, *_: object) -> bytes:
        asked.append(source)
        now[0] += 1.0
        return b"binary"

    monkeypatch.setattr(ahead, "compile_source", compiled)
    monkeypatch.setattr(ahead.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: {0})
    units = [unit(str(number)) for number in range(5)]
    assert compile_ahead(units, 2.5, lambda *_: None) == {units[3], units[4]}
    assert asked == ["0.cu", "1.cu", "2.cu"]
    asked.clear()
    assert compile_ahead(units, now[0], lambda *_: None) == set(units) and not asked, "the time is over"


def test_an_interrupt_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compiled(source: str, *_: object) -> bytes:
        asked.append(source)
        return b"binary"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ahead, "compile_source", compiled)
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: {0})
    slow = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(ahead, "compile_source", lambda source, *_: compiled(source) and slow.wait(0.01))
        compile_ahead([unit(str(number)) for number in range(500)], float("inf"), interrupted)
    assert len(asked) < 500


@pytest.mark.skipif(toolchain.compiler_name() is None, reason=toolchain.NO_COMPILER)
def test_a_unit_is_compiled_as_it_would_be_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The race finds what was compiled ahead: both ask for the same text."""
    from tamis.kernels.cuda.rows import softmax

    kernel = softmax(4096, 64, DType.FLOAT16)
    choice = Choice("tamis.cuda", DType.FLOAT16, (), (), parameters={"architecture": "sm_90"})
    assert compile_ahead([unit_of(kernel, choice)], time.monotonic() + 600, lambda *_: None) == frozenset()
    monkeypatch.setattr(toolchain, "load_nvrtc", lambda: pytest.fail("it is compiled a second time"))
    monkeypatch.setattr(toolchain, "_find_nvcc", lambda: pytest.fail("it is compiled a second time"))
    assert toolchain.compile_source("softmax.cu", kernel.defines, "sm_90")[:4] == b"\x7fELF"
