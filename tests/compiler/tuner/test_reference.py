"""The float32 reference: which values it holds, and that it is right whatever it holds."""

from __future__ import annotations

import numpy as np
import pytest

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.ops import Linear
from tamis.compiler.tuner import open_track, race_all
from tamis.compiler.tuner.reference import Reference
from tamis.devices.cpu.device import CpuDevice

DEPTH, WIDTH, ROWS = 6, 16, 8


def chain() -> Graph:
    """Linear layers of one shape, one behind the other."""
    generator = np.random.default_rng(0)
    weights = {f"w{i}": generator.standard_normal((WIDTH, WIDTH)).astype(np.float32) for i in range(DEPTH)}
    nodes = tuple(Node(f"layer{i}", Linear(bias=False), (f"v{i}", f"w{i}"), (f"v{i + 1}",)) for i in range(DEPTH))
    types = {f"v{i}": TensorType((ROWS, WIDTH)) for i in range(DEPTH + 1)}
    types |= {name: TensorType(weight.shape) for name, weight in weights.items()}
    return Graph("chain", ("v0",), (f"v{DEPTH}",), nodes, types, weights, {})


def expected(graph: Graph, reference: Reference) -> list[np.ndarray]:
    values = [reference.samples()["v0"].astype(np.float64)]
    for i in range(DEPTH):
        values.append(values[-1] @ graph.constants[f"w{i}"].T.astype(np.float64))
    return values


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each run of the network."""
    counted: list[None] = []
    run = Reference._run

    def counting(self: Reference) -> None:
        counted.append(None)
        run(self)

    monkeypatch.setattr(Reference, "_run", counting)
    return counted


def test_all_values_are_held_where_there_is_room(runs: list[None]) -> None:
    graph = chain()
    reference = Reference(graph, CpuDevice(1), BuildConfig())
    for i, value in enumerate(expected(graph, reference)):
        np.testing.assert_allclose(reference.value(f"v{i}").numpy(), value, rtol=1e-4, atol=1e-4)
    assert len(runs) == 1


def test_where_room_is_short_only_what_was_expected_is_held(runs: list[None]) -> None:
    graph, device = chain(), CpuDevice(1)
    device.memory_bytes = 4 * DEPTH * ROWS * WIDTH * 4 - 1
    reference = Reference(graph, device, BuildConfig())
    reference.expect(("v2",))
    wanted = expected(graph, reference)
    np.testing.assert_allclose(reference.value("v2").numpy(), wanted[2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(reference.outputs()[f"v{DEPTH}"], wanted[DEPTH], rtol=1e-4, atol=1e-4)
    assert len(runs) == 1
    assert set(reference._values) == {"v0", "v2", f"v{DEPTH}"}
    np.testing.assert_allclose(reference.value("v4").numpy(), wanted[4], rtol=1e-4, atol=1e-4)
    assert len(runs) == 2
    assert set(reference._values) == {"v0", "v2", "v4", f"v{DEPTH}"}


def test_the_races_of_a_network_of_equal_layers_need_one_run(runs: list[None]) -> None:
    graph, device = chain(), CpuDevice(1)
    device.memory_bytes = 0
    track = open_track(graph, device, BuildConfig(repetitions=3))
    races = race_all(graph, track, lambda *_: None)
    assert len(races) == DEPTH and all(race.finishers for race in races)
    assert len(runs) == 1
