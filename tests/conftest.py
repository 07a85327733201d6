"""Makes the helpers in this folder importable from all tests, and fixtures that many of them share."""

from __future__ import annotations

import os

import pytest

# What the tests compile is compiled, whatever lies in the cache of who runs them.
os.environ.setdefault("TAMIS_KERNEL_CACHE", "off")


@pytest.fixture
def no_cuda_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without NVRTC and nvcc: what libraries leave of an epilogue falls to PyTorch."""
    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compiler_name", lambda: None)
