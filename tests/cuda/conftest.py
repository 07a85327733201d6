"""Every test in this folder needs a GPU: all are marked ``cuda``, and skipped where PyTorch sees none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = None if torch.cuda.is_available() else pytest.mark.skip(reason="PyTorch sees no CUDA device")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cuda)
            if skip is not None:
                item.add_marker(skip)
