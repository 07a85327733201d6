"""Scratch memory: what steps get of it, and that devices, hence sessions, share none."""

from __future__ import annotations

import ctypes
import weakref
from types import SimpleNamespace

import pytest
import torch
from fake_cublaslt import FakeCublasLt

from tamis.devices.base import BoundShape
from tamis.devices.cuda import cublaslt
from tamis.devices.cuda import device as cuda
from tamis.devices.cuda.workspace import Workspace
from tamis.engine.plan import Format, Step
from tamis.runtime.session import open_device


def test_it_grows_and_what_it_gave_before_stays_valid() -> None:
    workspace = Workspace(torch.device("cpu"))
    assert workspace.reserve(0).numel() == 0, "nothing is taken before it is needed"
    first = workspace.reserve(5000)
    assert first.numel() == 5000
    assert workspace.reserve(5000) is workspace.reserve(17) is first
    second = workspace.reserve(5001)
    assert second.numel() == 10000, "blocks double"
    assert workspace.reserve(30000).numel() == 30000
    first.fill_(1)
    second.fill_(2)
    assert bool((first == 1).all()), "blocks overlap"
    gone = weakref.ref(first)
    del first
    assert gone() is None, "an outgrown block is held by its steps only"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeCublasLt:
    """Devices as on a machine with a GPU, except that memory is the host's and cuBLASLt is made of NumPy."""
    fake = FakeCublasLt(8)
    context = cublaslt.Context(fake, ctypes.c_void_p(1))
    properties = SimpleNamespace(L2_cache_size=1, total_memory=1, uuid="")
    monkeypatch.setattr(cublaslt, "context", lambda index: context)
    monkeypatch.setattr(cuda, "require_cuda", lambda: None)
    monkeypatch.setattr(cuda, "cuda_info", lambda index: None)
    monkeypatch.setattr(cuda, "Workspace", lambda device: Workspace(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=77))
    return fake


def test_two_devices_of_one_gpu_have_different_scratch_memory(library: FakeCublasLt) -> None:
    """Every session opens its device with ``open_device``."""
    x, y = BoundShape(0, (2, 16), Format()), BoundShape(1, (2, 8), Format(), True)
    attributes = {"rows": 2, "n": 8, "k": 16, "activation": "none", "residual": False}
    devices, slots = [open_device("cuda"), open_device("cuda")], [torch.ones(2, 16), torch.zeros(2, 8)]
    runners = []
    for rank in (3, 2):
        step = Step("fc", "cublaslt.matmul", ("x",), ("y",), ("w",), attributes | {"rank": rank})
        runners += [device.bind(step, {"w": torch.ones(8, 16)}, [x], [y]) for device in devices]
    for runner in runners:
        runner(slots)
    (first, second), again = [address for address, _ in library.workspaces[:2]], library.workspaces[2:]
    assert first and second and abs(first - second) >= 3000
    assert again == [(first, 2000), (second, 2000)], "steps of one device share"
