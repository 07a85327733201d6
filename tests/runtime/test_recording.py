"""Devices that record a run and repeat it: fixed addresses for inputs, fresh outputs for users."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sample_engines import FakeDevice, make_engine, reference
from tamis.runtime import Session, profile

X = np.arange(8, dtype=np.float32).reshape(2, 4)


class RecordingDevice(FakeDevice):
    """Runs once when it records, like a warm-up, and afterwards repeats; it notes what was asked of it."""

    replays = True

    def __init__(self) -> None:
        super().__init__()
        self.recordings = 0
        self.staged: list[int] = []

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        run()
        return run

    def stage(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.staged.append(target.data_ptr())
        super().stage(target, source)


@pytest.fixture
def device() -> RecordingDevice:
    return RecordingDevice()


@pytest.fixture
def session(device: RecordingDevice) -> Session:
    return Session(make_engine(), device=device)


def test_runs_are_recorded_once_and_read_fixed_inputs(session: Session, device: RecordingDevice) -> None:
    assert device.recordings == 0  # loading stays quick
    for factor in (1, 2, -3):
        np.testing.assert_array_equal(session.run([factor * X])["out"], reference(factor * X))
    assert device.recordings == 1
    assert len(set(device.staged)) == 1


def test_results_do_not_change_under_the_user(session: Session) -> None:
    first = session.run([X])["out"]
    kept = first.copy()
    session.run([X + 1])
    np.testing.assert_array_equal(first, kept)


def test_a_bound_run_reads_the_users_own_tensors(session: Session, device: RecordingDevice) -> None:
    mine = torch.from_numpy(X.copy())
    launch = session.bind([mine])
    np.testing.assert_array_equal(launch()[0].numpy(), reference(X))
    mine.add_(1)
    np.testing.assert_array_equal(launch()[0].numpy(), reference(X + 1))
    np.testing.assert_array_equal(session.run([X])["out"], reference(X))  # both recordings work side by side
    np.testing.assert_array_equal(launch()[0].numpy(), reference(X + 1))
    assert device.recordings == 2


def test_run_into_and_profile(session: Session) -> None:
    expected = reference(X)
    out = torch.full(expected.shape, torch.nan)
    session.run_into([torch.from_numpy(X)], [out])
    np.testing.assert_array_equal(out.numpy(), expected)
    measured = profile(session, [X], runs=3, warmup_ms=1)
    assert len(measured.steps) == len(session.plan.steps)
    assert all(step.timing.median_us > 0 for step in measured.steps)
