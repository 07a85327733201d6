"""Measuring a crossover map: the order of the grid, the layers, a small real run, and runs that end early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tamis.compiler.crossover as measuring
from fragile_device import SYMPTOM, FragileDevice
from tamis.compiler import CrossoverConfig, measure_crossover
from tamis.compiler.config import BuildConfig
from tamis.compiler.crossover import grid_order, layer_graph, layer_outline, levels
from tamis.compiler.ir.verify import verify
from tamis.compiler.tactics import tactics_of
from tamis.compiler.tactics.base import Layer, layer_of
from tamis.compiler.tuner.cache import Measurement, TimingCache
from tamis.compiler.tuner.race import LayerRace, Prepared
from tamis.devices.cpu import CpuDevice
from tamis.engine import LAYER_KINDS, Cell, CrossoverMap, DeviceInfo, crossover_from_json, crossover_json
from tamis.errors import ConfigError, DeviceError, DeviceLost
from tamis.formats import TWO_FOUR
from tamis.formats.dtype import DType
from tamis.formats.nm import is_nm

SMALL = CrossoverConfig(kinds=("linear",), sizes=(64, 128), batches=(2,), threads=1)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[CrossoverMap, CrossoverMap]:
    """A small map, and the same again from its timing cache."""
    config = replace(SMALL, timing_cache=tmp_path_factory.mktemp("crossover") / "times.json")
    return measure_crossover(config), measure_crossover(config)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (0,)), (2, (0, 0)), (3, (0, 1, 0)), (4, (0, 1, 2, 0)), (6, (0, 2, 1, 2, 3, 0))],
)
def test_a_line_is_halved_until_all_points_are_reached(count: int, expected: tuple[int, ...]) -> None:
    assert levels(count) == expected


def test_the_grid_is_measured_coarse_to_fine() -> None:
    order = grid_order(CrossoverConfig(kinds=("linear", "conv1x1"), sizes=(64, 128, 256), batches=(1, 8)))
    assert len(order) == len(set(order)) == 2 * 2 * 9
    corners, between = order[:16], order[16:]
    assert all({cell.c_in, cell.c_out} <= {64, 256} for cell in corners)
    assert {(cell.kind, cell.batch) for cell in corners} == {(k, b) for k in ("linear", "conv1x1") for b in (1, 8)}
    assert all(128 in (cell.c_in, cell.c_out) for cell in between)
    for part in (corners, between):
        assert (part[0].kind, part[0].batch) == ("linear", 1)
        assert (part[-1].kind, part[-1].batch) == ("conv1x1", 8)  # the dearest last


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_a_layer_is_what_its_outline_says(kind: str) -> None:
    config = CrossoverConfig(map_size=5)
    cell = Cell(kind, 3, 16, 24)  # type: ignore[arg-type]
    graph = layer_graph(cell, config)
    verify(graph)
    layer, outline = layer_of(graph, graph.nodes[0]), layer_outline(cell, config)
    weight = graph.constants["weight"]
    assert weight.shape == {"linear": (24, 16), "conv1x1": (24, 16, 1, 1), "conv3x3": (24, 16, 3, 3)}[kind]
    assert is_nm(weight, TWO_FOUR, 1) and np.count_nonzero(weight) == weight.size // 2
    assert graph.types["y"].shape == ((3, 24) if kind == "linear" else (3, 24, 5, 5))
    assert layer.eligible and outline.eligible
    assert layer.node == outline.node and dict(layer.types) == dict(outline.types)
    info, build = CpuDevice(1).info(), BuildConfig(precisions=(DType.BFLOAT16,))
    for tactic in tactics_of("cpu"):
        assert tactic.refuses(layer, info, build) == tactic.refuses(outline, info, build)
        if tactic.refuses(layer, info, build) is None:
            assert list(tactic.choices(layer, info, build)) == list(tactic.choices(outline, info, build))


def test_all_cells_of_a_small_grid(measured: tuple[CrossoverMap, CrossoverMap]) -> None:
    first, _ = measured
    assert first.sizes == (64, 128) and first.batches == (2,) and first.cold
    assert first.threads == 1 and first.precision == DType.BFLOAT16 and first.device.kind == "cpu"
    assert len(first.cells) == 4
    for cell in first.cells:
        assert cell.left_out == "" and cell.reasons == ()
        assert cell.dense is not None and cell.sparse is not None and cell.ratio is not None
        assert cell.sparse.tactic == "tamis.linear"
        assert cell.dense.timing.n == cell.sparse.timing.n >= 9  # both sides of the last meeting
        assert cell.ratio == pytest.approx(cell.dense.timing.median_us / cell.sparse.timing.median_us)
        assert not cell.pays or cell.ratio > 1
    assert "onednn" in first.dense_only and "tamis.linear" not in first.dense_only
    assert crossover_from_json(crossover_json(first)) == first


def test_with_the_timing_cache_nothing_is_measured_again(measured: tuple[CrossoverMap, CrossoverMap]) -> None:
    first, second = measured
    assert first.cells == second.cells and first.dense_only == second.dense_only


def test_measured_cells_of_an_earlier_map_are_taken_over(
    measured: tuple[CrossoverMap, CrossoverMap], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured[0]
    earlier = replace(whole, cells=(*whole.cells[:2], *(replace(c, left_out="no time") for c in whole.cells[2:])))
    race, raced = measuring.race_layer, []

    def counted(layer: Layer, *rest: object) -> object:
        raced.append(layer.types["weight"].shape)
        return race(layer, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "race_layer", counted)
    wider = measure_crossover(replace(SMALL, batches=(1, 2)), earlier=earlier)
    missing = [(cell.c_out, cell.c_in) for cell in whole.cells[2:]]
    assert len(raced) == 6 and sorted(raced) == sorted([(o, i) for o in (64, 128) for i in (64, 128)] + missing)
    assert all(cell in wider.cells for cell in whole.cells[:2]) and not any(cell.left_out for cell in wider.cells)
    assert wider.batches == (1, 2) and wider.seconds > earlier.seconds


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"tamis": "0.0.1"}, "by another version of Tamis"),
        ({"device": DeviceInfo("cpu", "another", "x", 1, (), {})}, "on another device, or with other libraries"),
        ({"precision": DType.FLOAT16}, "in another precision"),
        ({"map_size": 15}, "with another size of images"),
        ({"threads": 3}, "with another number of threads"),
    ],
)
def test_an_earlier_map_must_have_been_measured_alike(
    measured: tuple[CrossoverMap, CrossoverMap], changes: dict[str, object], difference: str
) -> None:
    with pytest.raises(ConfigError, match=difference):
        measure_crossover(SMALL, earlier=replace(measured[0], **changes))  # type: ignore[arg-type]


def test_kernels_of_several_cells_are_compiled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit, or one where nothing is compiled; what there was no time for comes in front of each cell's race."""
    together: list[int] = []
    late: frozenset[object] = frozenset()

    def noted(layers: list[Layer], *rest: object) -> Prepared:
        together.append(len(layers))
        return Prepared((), late)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "prepare", noted)
    monkeypatch.setattr(measuring, "race_layer", lambda layer, *rest: LayerRace(layer, (), ()))
    monkeypatch.setattr(measuring, "_WEIGHTS_TOGETHER", 64 * 64 + 2 * 64 * 128)
    measure_crossover(SMALL)
    assert together == [1, 1, 1, 1]
    together.clear()
    monkeypatch.setattr(measuring, "Compiles", object)
    measure_crossover(SMALL)
    assert together == [3, 1]
    together.clear()
    late = frozenset({"a kernel"})
    measure_crossover(SMALL)
    assert together == [3, 1, 1, 1, 1, 1]


def test_layers_without_a_sparse_tactic_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("a race was begun")

    monkeypatch.setattr(measuring, "race_layer", never)
    result = measure_crossover(replace(SMALL, kinds=("conv3x3",)))
    assert all(cell.dense is None and cell.left_out == "" and not cell.pays for cell in result.cells)
    assert all(("tamis.linear", "a 3x3 convolution is not a matrix product") in _pairs(cell) for cell in result.cells)


def test_a_spent_budget_leaves_cells_out_and_says_so() -> None:
    nothing = measure_crossover(replace(SMALL, budget_seconds=1e-9))
    assert {cell.left_out for cell in nothing.cells} == {"the time budget was spent"}
    assert not nothing.interrupted
    big = replace(SMALL, sizes=(8192,), batches=(2048,), budget_seconds=20.0)
    dear = measure_crossover(big, device=_Idle(1))
    assert [cell.left_out for cell in dear.cells] == ["it would have taken more than what was left of the time budget"]


def test_a_candidate_that_breaks_the_gpu_is_named_and_left_out_next_time(tmp_path: Path) -> None:
    config = replace(SMALL, sizes=(64,), timing_cache=tmp_path / "times.json")
    with pytest.raises(DeviceLost, match=r"linear 64x64, batch 2': onednn.* broke the GPU.*same timing cache"):
        measure_crossover(config, device=FragileDevice("onednn", 2))
    (cell,) = measure_crossover(config, device=FragileDevice()).cells
    assert cell.dense is not None and cell.sparse is not None and cell.left_out == ""
    notes = (tmp_path / "times.json").read_text()
    assert notes.count(f"failed: broke the GPU: {SYMPTOM}") == 1


def test_an_interrupt_keeps_what_was_measured() -> None:
    def progress(stage: str, done: int, total: int, detail: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    result = measure_crossover(SMALL, progress)
    assert result.interrupted
    assert [bool(cell.left_out) for cell in result.cells] == [False, True, True, True]
    assert result.cells[-1].left_out == "measuring was interrupted"
    assert len({(cell.c_in, cell.c_out) for cell in result.cells}) == 4


def test_a_cell_that_fails_does_not_end_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    race = measuring.race_layer

    def sometimes(layer, tactics, track):  # type: ignore[no-untyped-def]
        if layer.types["weight"].shape == (64, 128):
            raise RuntimeError("out of memory\nfor some reason")
        return race(layer, tactics, track)

    monkeypatch.setattr(measuring, "race_layer", sometimes)
    result = measure_crossover(SMALL)
    assert {(cell.c_out, cell.c_in): cell.left_out for cell in result.cells if cell.left_out} == {
        (64, 128): "failed: out of memory"
    }


def test_sparse_candidates_that_all_fail_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    race = measuring.race_layer

    def broken(layer, tactics, track):  # type: ignore[no-untyped-def]
        result = race(layer, tactics, track)
        entries = [
            replace(e, timing=None, reason="failed: no kernel", disqualified=True) if e.choice.sparsity == "2:4" else e
            for e in result.entries
        ]
        return replace(result, entries=tuple(entries))

    monkeypatch.setattr(measuring, "race_layer", broken)
    result = measure_crossover(replace(SMALL, sizes=(64,)))
    (cell,) = result.cells
    assert cell.dense is not None and cell.sparse is None and not cell.pays
    assert _pairs(cell) == [("tamis.linear", "failed: no kernel")]


def test_a_timing_cache_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text("no JSON")
    with pytest.raises(ConfigError, match="timing cache"):
        measure_crossover(replace(SMALL, timing_cache=tmp_path / "times.json"))


@pytest.mark.parametrize(
    "options",
    [
        {"device": "tpu"},
        {"precision": DType.FLOAT16},
        {"kinds": ("conv5x5",)},
        {"kinds": ()},
        {"sizes": ()},
        {"sizes": (64, 66)},
        {"sizes": (0,)},
        {"batches": ()},
        {"batches": (0, 1)},
        {"map_size": 0},
        {"budget_seconds": 0.0},
        {"budget_seconds": float("nan")},
        {"threads": 0},
    ],
)
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        CrossoverConfig(**options)  # type: ignore[arg-type]


def test_options_are_put_in_order() -> None:
    config = CrossoverConfig(kinds=("conv3x3", "linear", "linear"), sizes=(128, 64, 64), batches=(16, 1))
    assert (config.kinds, config.sizes, config.batches) == (("linear", "conv3x3"), (64, 128), (1, 16))
    assert CrossoverConfig(device="cuda").batches == (1, 32, 128)


class _Idle(CpuDevice):
    """A device that must not be given any work but the probe of its rates."""

    def bind(self, *arguments: object) -> None:  # type: ignore[override]
        raise DeviceError("nothing may be bound")


def _pairs(cell: Cell) -> list[tuple[str, str]]:
    return [(reason.tactic, reason.text) for reason in cell.reasons]


class _CudaInName(_Idle):
    """Says that it is a GPU; what tactics would offer there can be asked anywhere."""

    def info(self) -> DeviceInfo:
        libraries = dict.fromkeys(("torch", "cudnn", "cublaslt", "cusparselt", "cudnn_frontend", "cuda_core"), "1.0")
        features = ("tf32", "bf16", "sparse_tensor_cores")
        return DeviceInfo("cuda", "NVIDIA A100", "sm_80", 108, features, libraries)


def test_what_a_gpu_refuses_is_known_without_one(tmp_path: Path) -> None:
    device, path = _CudaInName(1), tmp_path / "times.json"
    cache = TimingCache(path, device.info(), 1)
    for name in ("copy", "matrix product in float32", "matrix product in tf32"):
        cache.get(f"roof: {name}")  # a cache without misses is not saved
        cache.put(f"roof: {name}", Measurement(number=1e6))
    cache.save()
    config = CrossoverConfig("cuda", DType.TF32, ("linear",), (64,), (32,), timing_cache=path)
    (cell,) = measure_crossover(config, device=device).cells
    assert cell.left_out == "" and cell.dense is None
    assert ("cusparselt", "2:4 needs 16-bit values; allow float16 or bfloat16") in _pairs(cell)
