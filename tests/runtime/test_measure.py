from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from sample_engines import FakeDevice, make_engine, make_plan
from tamis.devices.base import Runner, Slots
from tamis.engine import Engine, Port, Step
from tamis.errors import InputError
from tamis.formats.dtype import DType
from tamis.runtime import Session, bench, percentile, profile, random_inputs, timing_of


class SleepyDevice(FakeDevice):
    """Each step takes as many milliseconds as its attribute says."""

    def bind(self, step: Step, *rest: object) -> Runner:  # type: ignore[override]
        runner = super().bind(step, *rest)  # type: ignore[arg-type]
        seconds = step.attributes.get("milliseconds", 0) / 1e3

        def run(slots: Slots) -> None:
            time.sleep(seconds)
            runner(slots)

        return run


@pytest.fixture
def session() -> Session:
    plan = make_plan()
    steps = tuple(replace(s, attributes={"milliseconds": m}) for s, m in zip(plan.steps, (1, 4, 2), strict=True))
    return Session(Engine(replace(plan, steps=steps), make_engine().tensors), device=SleepyDevice())


def test_percentiles_are_those_of_trtexec() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 90) == 90.0
    assert percentile(values, 99) == 99.0
    assert percentile(values, 50) == 50.0
    assert percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0], 0) == 1.0


def test_bench_measures_what_the_steps_take(session: Session) -> None:
    result = bench(session, random_inputs(session.plan.inputs), warmup_ms=10, duration_s=0.2, iterations=5)
    assert len(result.latencies_ms) >= 5
    assert 7.0 <= result.median < 30.0
    assert min(result.latencies_ms) <= result.median <= result.percentile(99)
    assert result.throughput == pytest.approx(1e3 / result.mean, rel=0.01)
    assert result.warmup_runs >= 1
    assert sum(result.latencies_ms) / 1e3 == pytest.approx(result.wall_seconds, rel=1e-3)


def test_bench_runs_the_iterations_it_was_asked_for(session: Session) -> None:
    result = bench(session, random_inputs(session.plan.inputs), warmup_ms=0, duration_s=0, iterations=3)
    assert len(result.latencies_ms) == 3


def test_profile_gives_each_step_its_time(session: Session) -> None:
    result = profile(session, random_inputs(session.plan.inputs), runs=5, warmup_ms=0)
    medians = [step.timing.median_us for step in result.steps]
    assert [step.step.name for step in result.steps] == ["scale", "double", "add"]
    assert medians[1] == max(medians) and medians[0] == min(medians)
    assert 4000 <= medians[1] < 20000
    assert sum(result.share(step) for step in result.steps) == pytest.approx(1.0)
    assert abs(result.difference_us) < 0.3 * result.whole.median_us
    assert result.whole.n == 5


def test_timing_of_an_even_number() -> None:
    timing = timing_of([1.0, 2.0, 3.0, 4.0])
    assert (timing.median_us, timing.n) == (2.5, 4)
    assert timing.p10_us == pytest.approx(1.3) and timing.p90_us == pytest.approx(3.7)


PORTS = (
    Port("image", (2, 3), DType.FLOAT32),
    Port("half", (4,), DType.BFLOAT16),
    Port("tokens", (50,), DType.INT64),
    Port("mask", (50,), DType.BOOL),
)


def test_random_inputs_have_the_right_types_and_repeat() -> None:
    drawn = random_inputs(PORTS, seed=3)
    for port in PORTS:
        assert drawn[port.name].shape == port.shape
        assert drawn[port.name].dtype == port.dtype.numpy
    assert np.all(drawn["image"] != 0)
    assert set(drawn["tokens"].tolist()) == {0, 1}
    again = random_inputs(PORTS, seed=3)
    assert all(drawn[name].tobytes() == again[name].tobytes() for name in drawn)
    assert random_inputs(PORTS, seed=4)["image"].tobytes() != drawn["image"].tobytes()


def test_random_inputs_can_be_replaced_one_by_one() -> None:
    tokens = np.arange(50)
    drawn = random_inputs(PORTS, given={"tokens": tokens})
    assert drawn["tokens"] is tokens
    assert drawn["image"].tobytes() == random_inputs(PORTS)["image"].tobytes()
    with pytest.raises(InputError, match="no input 'token'"):
        random_inputs(PORTS, given={"token": tokens})
    with pytest.raises(InputError, match=r"input 'tokens' is int32 \[50\], expected int64 \[50\]"):
        random_inputs(PORTS, given={"tokens": tokens.astype(np.int32)})


def test_a_step_costs_the_loop_well_under_a_microsecond() -> None:
    """What Python itself adds to each step; the figure in the documentation comes from bench_runtime.py."""
    plan = make_plan()
    steps = tuple(Step(f"noop{n}", "fake.noop", ("x",), ("out",)) for n in range(1000))
    session = Session(Engine(replace(plan, steps=steps), {}), device=FakeDevice())
    launch = session.bind(random_inputs(plan.inputs))
    best = min(_timed(launch) for _ in range(50))
    assert best / 1000 < 1e-6


def _timed(call: object) -> float:
    start = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - start
