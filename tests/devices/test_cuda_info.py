"""What GPUs can do, by compute capability, and what is said where there is none."""

from __future__ import annotations

import pytest
import torch

from tamis.devices.cuda.info import architecture_of, features_of, require_cuda, visible_from
from tamis.errors import DeviceError, DeviceLost

WITHOUT = {"V100": (7, 0), "Xavier": (7, 2), "T4": (7, 5)}
WITH = {
    "A100": (8, 0), "RTX 3090": (8, 6), "Orin": (8, 7), "L40S": (8, 9), "H200": (9, 0), "B200": (10, 0),
    "RTX 5090": (12, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT)
def test_gpus_without_sparse_tensor_cores(name: str) -> None:
    assert features_of(WITHOUT[name]) == ("fp16",)


@pytest.mark.parametrize("name", WITH)
def test_gpus_with_sparse_tensor_cores(name: str) -> None:
    features = features_of(WITH[name])
    assert "sparse_tensor_cores" in features
    assert ("fp8" in features) == (WITH[name] >= (8, 9))


def test_architectures_have_the_names_of_the_compilers() -> None:
    assert [architecture_of(c) for c in ((8, 0), (9, 0), (12, 0))] == ["sm_80", "sm_90", "sm_120"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_gpu_is_one_clear_error() -> None:
    with pytest.raises(DeviceError, match="no CUDA device") as caught:
        require_cuda()
    assert caught.value.remedy


def test_a_gpu_that_this_process_broke_is_said_to_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal instruction was encountered\nCUDA kernel errors might be late")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(DeviceLost, match=r"broke the GPU: CUDA error: an illegal instruction was encountered. Start"):
        require_cuda()


@pytest.mark.parametrize(
    ("index", "visible", "expected"), [(0, "2,3", ""), (1, "2,3", "3"), (1, "GPU-a, GPU-b", "GPU-b"), (3, None, "3")]
)
def test_a_new_process_sees_the_gpu_of_this_one_first(
    index: int, visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: index)
    environment = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    assert visible_from(environment) == ({"CUDA_VISIBLE_DEVICES": expected} if expected else {})
