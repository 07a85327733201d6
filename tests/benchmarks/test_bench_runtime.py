"""bench_runtime.py on a small file: its idle engine is a whole one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench_runtime import IdleDevice, engine_of, row, timed
from tamis.engine import read, save
from tamis.runtime import Session


def test_the_idle_engine_is_saved_read_and_run(tmp_path: Path) -> None:
    save(engine_of(3, {"w": np.ones(64, np.uint8)}), tmp_path / "idle.tamis")
    engine = read(tmp_path / "idle.tamis")
    assert len(engine.plan.steps) == 3
    session, x = Session(engine, device=IdleDevice()), np.zeros((1, 16), np.float32)
    assert session.run([x])["y"].shape == (1, 16)
    found = row("bound-run", timed(session.bind([x]), 20))
    assert found.n == 20 and 0 < found.median_us < 1e6
