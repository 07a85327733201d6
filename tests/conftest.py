"""Makes the helpers in this folder importable from all tests, and fixtures that many of them share."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_cuda_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without NVRTC and nvcc: what libraries leave of an epilogue falls to PyTorch."""
    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compiler_name", lambda: None)
