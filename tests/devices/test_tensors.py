"""Memory of the CPU device: types, layouts, alignment."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tamis.devices.cpu import CpuDevice
from tamis.devices.cpu.info import usable_cores
from tamis.devices.cpu.isa import KNOWN_FEATURES
from tamis.engine.plan import Format, Step
from tamis.errors import DeviceError
from tamis.formats.dtype import DType

DEVICE = CpuDevice()


@pytest.mark.parametrize("dtype", list(DType), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4), (2, 3, 4, 5)])
def test_upload_and_download_are_inverse(dtype: DType, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).random(shape) * 100).astype(dtype.numpy)
    tensor = DEVICE.upload(array)
    assert tuple(tensor.shape) == shape
    assert tensor.data_ptr() % 64 == 0
    back = DEVICE.download(tensor)
    assert back.dtype == dtype.numpy
    assert back.tobytes() == array.tobytes()


def test_upload_copies_and_takes_any_strides() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = DEVICE.upload(array.T)
    np.testing.assert_array_equal(DEVICE.download(tensor), array.T)
    assert tensor.is_contiguous()
    array[:] = 0
    assert float(tensor.sum()) == 66
    read_only = np.arange(3)
    read_only.flags.writeable = False
    assert DEVICE.upload(read_only).tolist() == [0, 1, 2]


def test_download_copies() -> None:
    tensor = torch.zeros(3)
    array = DEVICE.download(tensor)
    tensor += 1
    assert array.tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 6), (2, 3), (7,)])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_channels_last(shape: tuple[int, ...], dtype: DType) -> None:
    format = Format(dtype, "channels_last")
    tensor = DEVICE.empty(shape, format)
    tensor.copy_(torch.arange(tensor.numel()).reshape(shape))
    inside = DEVICE.view(DEVICE.arena(1 << 16), 128, shape, format)
    assert inside.stride() == tensor.stride()
    inside.copy_(tensor)
    assert torch.equal(inside, tensor)
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format)
    assert tensor.is_contiguous(memory_format=order)


def test_views_share_their_arena() -> None:
    arena = DEVICE.arena(1024)
    assert arena.data_ptr() % 64 == 0
    first = DEVICE.view(arena, 0, (4, 4), Format())
    again = DEVICE.view(arena, 0, (16,), Format())
    other = DEVICE.view(arena, 64, (2, 8), Format(DType.INT64))
    first.fill_(1)
    other.fill_(7)
    assert again.tolist() == [1.0] * 16
    assert other.data_ptr() == arena.data_ptr() + 64


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DeviceError, match="does not fit"):
        DEVICE.view(DEVICE.arena(64), 0, (17,), Format())
    with pytest.raises(DeviceError, match="rank 3"):
        DEVICE.empty((2, 3, 4), Format(layout="channels_last"))


def test_info() -> None:
    info = DEVICE.info()
    assert info.kind == "cpu"
    assert info.cores == usable_cores() >= 1
    assert info.name
    assert list(info.features) == sorted(set(info.features) & set(KNOWN_FEATURES))
    assert info.libraries["torch"] == torch.__version__
    assert set(info.libraries) <= {"torch", "tamis", "openvino"}


def test_threads() -> None:
    before = torch.get_num_threads()
    device = CpuDevice(threads=1)
    assert torch.get_num_threads() == 1
    device.set_threads(before)
    assert torch.get_num_threads() == before
    with pytest.raises(DeviceError, match="0 threads"):
        device.set_threads(0)


def test_what_steps_write_and_share() -> None:
    def step(kernel: str, **attributes: object) -> Step:
        return Step("s", kernel, ("x",), ("y",), attributes=attributes)

    assert DEVICE.writes_into_memory(step("aten.concat", axis=0))
    assert DEVICE.writes_into_memory(step("openvino.region"))
    assert not DEVICE.writes_into_memory(step("aten.pool"))
    assert not DEVICE.writes_into_memory(step("onednn.conv"))
    assert DEVICE.may_alias(step("aten.reshape"))
    assert not DEVICE.may_alias(step("aten.conv"))
    assert not DEVICE.may_alias(step("openvino.region"))
