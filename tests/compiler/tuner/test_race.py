"""The race for one layer: wrong results are disqualified, failures and refusals keep their reasons."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from tamis.compiler import tuner
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.ops import Linear
from tamis.compiler.passes.note_sparsity import note_sparsity
from tamis.compiler.tactics import CPU_TACTICS, ahead
from tamis.compiler.tactics.ahead import Unit
from tamis.compiler.tactics.aten import Aten
from tamis.compiler.tactics.base import Choice, Layer, Lowered, layer_of
from tamis.compiler.tuner import open_track, race_all
from tamis.compiler.tuner.prior import Roof
from tamis.compiler.tuner.race import LayerRace, Track, prepare, race_layer, share_of
from tamis.compiler.tuner.timing import Clock, Contender
from tamis.devices.cpu.device import CpuDevice
from tamis.engine.plan import DeviceInfo, Format, Timing
from tamis.errors import DeviceError, OutputError
from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.dtype import DType


class Spoiled(Aten):
    """A fast tactic whose weights are off by a little."""

    name = "spoiled"
    factor = 1.01

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        for choice in super().choices(layer, device, config):
            yield dataclasses.replace(choice, tactic=self.name)

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        lowered = super().lower(layer, choice)
        constants = {name: array * np.float32(self.factor) for name, array in lowered.constants.items()}
        return dataclasses.replace(lowered, constants=constants)


class Right(Spoiled):
    name = "right"
    factor = 1.0


class Same(Right):
    name = "same"


class GivesNaN(Spoiled):
    name = "nan"
    factor = float("nan")


class Breaks(Spoiled):
    name = "breaks"

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        raise DeviceError("the library said no")


class Hungry(Spoiled):
    """Finds too little memory on its first try."""

    name = "hungry"
    factor = 1.0
    satisfied = False

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        if not Hungry.satisfied:
            Hungry.satisfied = True
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 34 GiB")
        return super().lower(layer, choice)


class Compiled(Aten):
    """Needs one kernel for each of its choices."""

    name = "compiled"

    def units(self, layer: Layer, choice: Choice) -> tuple[Unit, ...]:
        return (Unit(f"{choice.precision}.cu", (), "sm_90"),)


class Picky(Aten):
    """Offers the first of its choices only."""

    name = "picky"

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        yield next(super().choices(layer, device, config))

    def left_out(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        return f"the others, at level {config.optimization_level}"


class Coarse(Right):
    """Says that it computes in bfloat16, in the formats of the others."""

    name = "coarse"

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        for choice in super().choices(layer, device, config):
            yield dataclasses.replace(choice, precision=DType.BFLOAT16)


class Shy(Aten):
    name = "shy"

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        return "only on Sundays"


def linear_graph(n: int = 64, k: int = 32, rows: int = 4, *, sparse: bool = True) -> Graph:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((n, k)).astype(np.float32)
    if sparse:
        weight *= magnitude_mask(weight, TWO_FOUR, 1)
    types = {"x": TensorType((rows, k)), "w": TensorType((n, k)), "y": TensorType((rows, n))}
    node = Node("fc", Linear(), ("x", "w"), ("y",))
    return note_sparsity(Graph("g", ("x",), ("y",), (node,), types, {"w": weight}))


def race(graph: Graph, tactics: tuple[Aten, ...], **options: object) -> LayerRace:
    config = BuildConfig(repetitions=3, **options)  # type: ignore[arg-type]
    track = open_track(graph, CpuDevice(2), config)
    result = race_layer(layer_of(graph, graph.nodes[0]), tactics, track)
    track.cache.save()
    return result


@pytest.mark.parametrize(
    ("float32_rate", "skipped"),
    [
        pytest.param(1e9, {"coarse"}, id="a bound that nobody beats"),
        pytest.param(1e-6, set(), id="measured while the machine was busy"),
    ],
)
def test_a_roof_rules_out_until_it_is_beaten(float32_rate: float, skipped: set[str]) -> None:
    graph = linear_graph(sparse=False)
    track = open_track(graph, CpuDevice(2), BuildConfig(repetitions=3))
    roof = Roof({DType.FLOAT32: float32_rate, DType.BFLOAT16: 1e-6}, 1e9)
    result = race_layer(
        layer_of(graph, graph.nodes[0]), (Aten(), Same(), Coarse()), dataclasses.replace(track, roof=roof)
    )
    assert {entry.choice.tactic for entry in result.entries if "roofline" in entry.reason} == skipped


@pytest.mark.parametrize("tactic", [Spoiled(), GivesNaN()])
def test_a_wrong_result_is_disqualified_and_says_so(tactic: Aten) -> None:
    result = race(linear_graph(), (Aten(), tactic))
    wrong = [e for e in result.entries if e.choice.tactic == tactic.name]
    assert wrong
    assert all(e.disqualified and "wrong" in e.reason for e in wrong)
    assert {e.choice.tactic for e in result.finishers} == {"aten"}


def test_a_failure_keeps_its_reason() -> None:
    result = race(linear_graph(), (Aten(), Breaks()))
    (broken,) = [e for e in result.entries if e.choice.tactic == "breaks"]
    assert broken.timing is None
    assert broken.disqualified
    assert "the library said no" in broken.reason


def prepared_race(cache: Path, seconds: float) -> LayerRace:
    """A race whose kernels are compiled ahead."""
    graph, tactics = linear_graph(), (Aten(), Compiled())
    config = BuildConfig(repetitions=3, timing_cache=cache, budget_seconds=seconds)
    track = open_track(graph, CpuDevice(2), config)
    layer = layer_of(graph, graph.nodes[0])
    result = race_layer(layer, tactics, track, prepare([layer], tactics, track).late)
    track.cache.save()
    return result


def test_kernels_are_compiled_once_and_only_for_what_will_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ahead, "compile_source", lambda source, *_: asked.append(source))
    for _ in range(2):
        result = prepared_race(tmp_path / "cache", 600.0)
        assert asked == ["float32.cu"]
        assert {e.choice.tactic for e in result.finishers} == {"aten", "compiled"}


def test_a_candidate_whose_kernel_comes_too_late_says_so_and_races_when_there_is_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "compile_source", lambda *_: pytest.fail("there is no time"))
    for _ in range(2):  # the same wish gives the same answer, without another look
        result = prepared_race(tmp_path / "cache", 0.0)
        late = [e for e in result.entries if e.choice.tactic == "compiled"]
        assert {e.reason for e in late} == {"skipped: the time budget of 0 s was spent before its kernel was compiled"}
        assert not any(e.disqualified for e in late)
        assert {e.choice.tactic for e in result.finishers} == {"aten"}
    monkeypatch.setattr(ahead, "compile_source", lambda *_: b"")
    result = prepared_race(tmp_path / "cache", 600.0)
    assert {e.choice.tactic for e in result.finishers} == {"aten", "compiled"}


def test_what_a_tactic_leaves_out_is_recorded_where_it_races() -> None:
    result = race(linear_graph(), (Aten(), Picky()), optimization_level=1)
    assert result.left_out == (("picky", "the others, at level 1"),)
    assert race(linear_graph(), (Aten(), Picky()), exclude_tactics=("picky",)).left_out == ()


def test_refusals_are_recorded() -> None:
    result = race(linear_graph(), (Aten(), Shy()))
    assert result.refusals == (("shy", "only on Sundays"),)


def test_excluded_tactics_do_not_race_but_the_reference_does() -> None:
    result = race(linear_graph(), CPU_TACTICS, exclude_tactics=("onednn", "tamis", "aten"))
    assert {e.choice.tactic for e in result.entries} == {"aten"}
    assert dict(result.refusals) == {"onednn": "excluded by the user", "tamis.linear": "excluded by the user"}


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_tactics_race_exactly_where_the_weight_is_eligible(sparse: bool) -> None:
    result = race(linear_graph(sparse=sparse), CPU_TACTICS, precisions=(DType.FLOAT32, DType.BFLOAT16))
    assert ("2:4" in {e.choice.sparsity for e in result.finishers}) is sparse
    assert {e.choice.precision for e in result.finishers} == {DType.FLOAT32, DType.BFLOAT16}
    assert all(e.timing is not None and e.timing.median_us > 0 for e in result.finishers)


def test_all_finishers_are_right_and_the_reference_is_among_them() -> None:
    result = race(linear_graph(), CPU_TACTICS)
    assert result.entries[0].choice.tactic == "aten"
    assert all(e.accuracy is not None and e.accuracy.max_relative_error < 1e-5 for e in result.finishers)


def test_a_second_race_with_the_cache_measures_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "times.json"
    first = race(linear_graph(), CPU_TACTICS, timing_cache=cache)
    again = race(linear_graph(), (*CPU_TACTICS,), timing_cache=cache)
    assert [e.timing for e in first.entries] == [e.timing for e in again.entries]


def test_what_was_left_out_for_want_of_time_is_measured_when_there_is_more(tmp_path: Path) -> None:
    cache = tmp_path / "times.json"

    def left_out(seconds: float) -> int:
        result = race(linear_graph(), CPU_TACTICS, timing_cache=cache, budget_seconds=seconds)
        return sum("budget" in e.reason for e in result.entries)

    assert left_out(0.0) > 0
    assert left_out(0.0) > 0  # the same wish gives the same answer
    assert left_out(60.0) == 0
    assert left_out(0.0) == 0  # known by now


def test_what_one_model_had_no_time_for_races_in_another(tmp_path: Path) -> None:
    """The same model gives the same answer; another one has other layers to share its time with."""
    alone = linear_graph()
    types = alone.types | {"w2": TensorType((8, 64)), "z": TensorType((4, 8))}
    nodes = (*alone.nodes, Node("more", Linear(), ("y", "w2"), ("z",)))
    both = dataclasses.replace(
        alone,
        outputs=("z",),
        nodes=nodes,
        types=types,
        constants=alone.constants | {"w2": np.ones((8, 64), np.float32)},
    )

    def left_out(graph: Graph, *, in_time: bool) -> int:
        config = BuildConfig(repetitions=3, timing_cache=tmp_path / "times.json", budget_seconds=60.0)
        track = open_track(graph, CpuDevice(2), config)
        if not in_time:
            track = dataclasses.replace(track, deadline=time.monotonic())
        result = race_layer(layer_of(graph, graph.nodes[0]), CPU_TACTICS, track)
        track.cache.save()
        return sum("budget" in e.reason for e in result.entries)

    assert left_out(alone, in_time=False) > 0
    assert left_out(alone, in_time=True) > 0
    assert left_out(both, in_time=True) == 0
    assert left_out(alone, in_time=True) == 0  # known by now


def test_what_found_no_memory_is_tried_again_by_the_next_build(tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    Hungry.satisfied = False
    first = race(linear_graph(), (Aten(), Hungry()), timing_cache=cache)
    (starved,) = (e for e in first.entries if e.choice.tactic == "hungry")
    assert starved.disqualified and "out of memory" in starved.reason
    second = race(linear_graph(), (Aten(), Hungry()), timing_cache=cache)
    assert {e.choice.tactic for e in second.finishers} == {"aten", "hungry"}


def test_candidates_share_the_memory_of_inputs_and_results(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    empty = CpuDevice.empty

    def counted(self: CpuDevice, shape: tuple[int, ...], format: Format) -> torch.Tensor:
        made.append(tuple(shape))
        return empty(self, shape, format)

    def allocations(tactics: tuple[Aten, ...]) -> int:
        made.clear()
        assert len(race(linear_graph(n=48, rows=24), tactics).finishers) == len(tactics)
        return made.count((24, 48))

    monkeypatch.setattr(CpuDevice, "empty", counted)
    assert allocations((Aten(),)) == allocations((Aten(), Right(), Same()))


class Several(Right):
    """Offers each of its choices three times, the best one first."""

    name = "several"

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        for choice in super().choices(layer, device, config):
            yield from (
                dataclasses.replace(choice, parameters={**choice.parameters, "rank": rank}) for rank in range(3)
            )

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        parameters = {name: value for name, value in choice.parameters.items() if name != "rank"}
        asked.append((self.name, choice.parameters["rank"]))
        return super().lower(layer, dataclasses.replace(choice, parameters=parameters))


class More(Several):
    name = "more"


asked: list[tuple[str, int]] = []


def test_the_best_of_each_tactic_is_timed_first() -> None:
    asked.clear()
    result = race(linear_graph(), (Aten(), Several(), More()))
    assert asked == [("more", 0), ("several", 0), ("more", 1), ("several", 1), ("more", 2), ("several", 2)]
    assert [e.choice.tactic for e in result.entries] == ["aten", *["several"] * 3, *["more"] * 3]
    spent = race(linear_graph(), (Aten(), Several(), More()), budget_seconds=0.0)
    assert [(e.choice.tactic, e.choice.parameters["rank"]) for e in spent.finishers] == [("more", 0)]


def test_slow_precisions_come_last_and_only_the_reference_of_them_without_time() -> None:
    graph = linear_graph()
    config = BuildConfig(repetitions=3, precisions=(DType.BFLOAT16,), budget_seconds=0)
    layer = layer_of(graph, graph.nodes[0])

    def finishers(bfloat16_rate: float) -> list[tuple[str, DType]]:
        roof = Roof({DType.FLOAT32: 1e9, DType.BFLOAT16: bfloat16_rate}, 1e9)
        track = dataclasses.replace(open_track(graph, CpuDevice(2), config), roof=roof)
        result = race_layer(layer, (Aten(), More()), track)
        return [(e.choice.tactic, e.choice.precision) for e in result.finishers]

    assert finishers(1e9) == [("more", DType.FLOAT32), ("more", DType.BFLOAT16)]
    assert finishers(1e10) == [("aten", DType.FLOAT32), ("more", DType.BFLOAT16)]


def test_a_race_has_twice_its_share_of_the_time_that_is_left() -> None:
    now = time.monotonic()
    for waiting, others, share in ((1, 9, 20.0), (3, 1, 100.0), (5, 0, 100.0), (0, 4, 0.0), (0, 0, 0.0)):
        assert share_of(now + 100.0, waiting, others) - now == pytest.approx(share, abs=0.5)
    assert share_of(now - 1.0, 1, 1) - now == pytest.approx(0.0, abs=0.5)


def test_no_layer_eats_up_the_time_of_those_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four layers of as many candidates, of which two are equal."""
    sizes = (64, 48, 48, 48)
    types = {"x0": TensorType((4, 64))}
    constants, nodes = {}, []
    for index, size in enumerate(sizes):
        columns = types[f"x{index}"].shape[1]
        constants[f"w{index}"] = np.ones((size, columns), np.float32)
        types |= {f"w{index}": TensorType((size, columns)), f"x{index + 1}": TensorType((4, size))}
        nodes.append(Node(f"fc{index}", Linear(), (f"x{index}", f"w{index}"), (f"x{index + 1}",)))
    graph = Graph("g", ("x0",), ("x4",), tuple(nodes), types, constants)
    track = open_track(graph, CpuDevice(2), BuildConfig(repetitions=3, budget_seconds=90.0))
    shares = []

    def noted(layer: Layer, tactics: object, track: Track, late: object) -> LayerRace:
        shares.append(track.deadline - time.monotonic())
        return LayerRace(layer, (), ())

    monkeypatch.setattr(tuner, "race_layer", noted)
    race_all(graph, track, lambda *_: None)
    assert shares == pytest.approx([60.0, 90.0, 90.0], abs=3.0)


def test_a_timing_cache_that_cannot_be_kept_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "times.json", Path("/proc/times.json")):
        with pytest.raises(OutputError, match="the timing cache is not kept: cannot write"):
            open_track(linear_graph(), CpuDevice(2), BuildConfig(timing_cache=place))
    assert not list(tmp_path.glob("*.json"))
    open_track(linear_graph(), CpuDevice(2), BuildConfig(timing_cache=tmp_path / "new" / "folder" / "times.json"))
    assert not (tmp_path / "new").exists(), "made when there is something to keep"


@pytest.mark.parametrize("right", [True, False])
def test_the_rest_of_a_slow_precision_need_not_run(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless what is faster is wrong."""
    graph = linear_graph()
    config = BuildConfig(repetitions=3, precisions=(DType.FLOAT32, DType.BFLOAT16))
    roof = Roof({DType.FLOAT32: 1e9, DType.BFLOAT16: 1e10}, 1e9)
    track = dataclasses.replace(open_track(graph, CpuDevice(2), config), roof=roof)

    def timed(self: Clock, contenders: Mapping[str, Contender], *_: object) -> dict[str, Timing]:
        found = {}
        for name, contender in contenders.items():
            assert contender.suspect is not None
            us = 10.0 if "bfloat16" in contender.suspect.key else 100.0
            found[name] = Timing(us, us, us, 3)
        return found

    def judged(choice: Choice, *_: object) -> str | None:
        return None if right or choice.precision == DType.FLOAT32 else "wrong"

    monkeypatch.setattr(Clock, "race", timed)
    monkeypatch.setattr("tamis.compiler.tuner.race._objection", judged)
    result = race_layer(layer_of(graph, graph.nodes[0]), (Aten(), Several()), track)
    left = [e for e in result.entries if "the best of float32 took 100.0 us where another" in e.reason]
    assert [(e.choice.tactic, e.choice.precision) for e in left] == [("several", DType.FLOAT32)] * (2 if right else 0)

    again = race_layer(layer_of(graph, graph.nodes[0]), (Aten(), Several()), track)
    assert again.entries == result.entries, "all of it is in the timing cache"
    alone = dataclasses.replace(track, config=dataclasses.replace(config, precisions=(DType.FLOAT32,)))
    entries = race_layer(layer_of(graph, graph.nodes[0]), (Aten(), Several()), alone).entries
    assert all(e.timing is not None for e in entries), "without bfloat16 nobody is too slow"
