"""Every test in this folder needs a GPU: all are marked ``cuda``, and skipped where PyTorch sees none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tamis.kernels.cuda import compile as compiler
from tamis.kernels.cuda.unit import translation_unit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = None if torch.cuda.is_available() else pytest.mark.skip(reason="PyTorch sees no CUDA device")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cuda)
            if skip is not None:
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def kernels_for_racecheck() -> Iterator[None]:
    """With ``TAMIS_RACECHECK`` set, kernels in which each thread speaks for its own reads (implicit_gemm_hopper.cu)."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("TAMIS_RACECHECK"):
            every = "#define EVERY_THREAD_GIVES_BACK 1\n"
            patch.setattr(compiler, "translation_unit", lambda *unit: every + translation_unit(*unit))
        yield
