"""Kernels that start early: the switch, recordings that fail with it, and what a launch hands to the driver."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from ctypes import sizeof
from pathlib import Path
from typing import Any

import pytest
import torch
from nvidia_header import find_headers

from tamis.devices.cuda import graph
from tamis.devices.cuda.module import LaunchAttribute, LaunchConfig
from tamis.devices.cuda.overlap import Overlap, from_environment
from tamis.errors import DeviceError
from tamis.kernels.cpu.build import compiler


def test_the_switch() -> None:
    assert from_environment(None).on and from_environment("1").on
    off = from_environment("0")
    assert (off.on, off.reason) == (False, "TAMIS_OVERLAP=0")


@pytest.fixture
def overlap(monkeypatch: pytest.MonkeyPatch) -> Overlap:
    state = Overlap()
    monkeypatch.setattr(graph, "OVERLAP", state)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return state


def captured(monkeypatch: pytest.MonkeyPatch, fails: Callable[[], Exception | None]) -> list[int]:
    """Recordings are played: each is one replay in the list, unless ``fails`` gives an error."""
    replays: list[int] = []

    class Graph:
        def replay(self) -> None:
            replays.append(1)

    def capture(run: Callable[[], None]) -> tuple[Any, Any]:
        error = fails()
        if error is not None:
            raise error
        return Graph(), None

    monkeypatch.setattr(graph, "_capture", capture)
    monkeypatch.setattr(graph, "_free", {0: []})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return replays


@pytest.mark.parametrize("error", [RuntimeError("no such edge\nmore"), DeviceError("no such edge")])
def test_what_records_only_without_is_recorded_without(
    overlap: Overlap, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    replays = captured(monkeypatch, lambda: error if overlap.on else None)
    with pytest.warns(UserWarning, match="without overlap: a recording with it failed: no such edge$"):
        graph.record(lambda: None)()
    assert replays == [1]
    assert not overlap.on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph.record(lambda: None)()


def test_what_cannot_be_recorded_at_all_says_nothing_of_overlap(
    overlap: Overlap, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured(monkeypatch, lambda: RuntimeError("waits for the host"))
    with pytest.warns(UserWarning, match="step by step, not as a CUDA graph: waits for the host"):
        graph.record(lambda: None)
    assert overlap.on
    captured(monkeypatch, lambda: DeviceError("not aligned"))
    with pytest.raises(DeviceError, match="not aligned"):
        graph.record(lambda: None)
    assert overlap.on


def test_launches_have_the_drivers_structures(tmp_path: Path) -> None:
    """Sizes and offsets against NVIDIA's header."""
    headers = find_headers("cuda.h")
    if not headers:
        pytest.skip("there is no header of the CUDA driver")
    checks = {
        "sizeof(CUlaunchConfig)": sizeof(LaunchConfig),
        "sizeof(CUlaunchAttribute)": sizeof(LaunchAttribute),
        "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION": 6,
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": 901,
        "CUDA_ERROR_NO_BINARY_FOR_GPU": 209,
    }
    for theirs, ours in {
        "gridDimX": "grid", "blockDimX": "block", "sharedMemBytes": "shared_bytes", "hStream": "stream",
        "attrs": "attributes", "numAttrs": "count",
    }.items():  # fmt: skip
        checks[f"offsetof(CUlaunchConfig, {theirs})"] = getattr(LaunchConfig, ours).offset
    value = "value.programmaticStreamSerializationAllowed"
    checks |= {f"offsetof(CUlaunchAttribute, {value})": LaunchAttribute.value.offset}
    asserted = "".join(f'static_assert({theirs} == {ours}, "");\n' for theirs, ours in checks.items())
    source = tmp_path / "check.cpp"
    source.write_text(f"#include <cstddef>\n#include <cuda.h>\n{asserted}")
    command = [*compiler(), "-std=c++17", "-fsyntax-only", f"-I{headers[0].parent}", str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[:2000]
