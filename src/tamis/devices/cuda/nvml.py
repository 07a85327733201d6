"""How a GPU is doing, from the driver's management library (NVML); nothing here changes a setting.

The library comes with the driver and needs neither PyTorch nor a CUDA context.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from typing import Any

from tamis.devices.cuda.shared_library import Signature, load_first
from tamis.engine.plan import DeviceState
from tamis.errors import MissingLibrary

NAMES = ("libnvidia-ml.so.1",)
SUCCESS = 0
# nvmlClockType_t and nvmlTemperatureSensors_t.
_SM, _MEMORY, _GPU_SENSOR = 1, 2, 0
# nvmlClocksThrottleReason...: SwPowerCap, HwSlowdown, SwThermalSlowdown, HwThermalSlowdown, HwPowerBrakeSlowdown.
_POWER_CAP, _SLOWDOWN, _HEAT, _GREAT_HEAT, _POWER_BRAKE = 0x04, 0x08, 0x20, 0x40, 0x80
_TEXT_BYTES = 96
_SIGNATURES: tuple[Signature, ...] = (
    ("nvmlInit_v2", c_int, ()),
    ("nvmlSystemGetDriverVersion", c_int, (c_char_p, c_uint)),
    ("nvmlDeviceGetHandleByIndex_v2", c_int, (c_uint, POINTER(c_void_p))),
    ("nvmlDeviceGetHandleByUUID", c_int, (c_char_p, POINTER(c_void_p))),
    ("nvmlDeviceGetName", c_int, (c_void_p, c_char_p, c_uint)),
    ("nvmlDeviceGetClockInfo", c_int, (c_void_p, c_int, POINTER(c_uint))),
    ("nvmlDeviceGetPowerUsage", c_int, (c_void_p, POINTER(c_uint))),
    ("nvmlDeviceGetEnforcedPowerLimit", c_int, (c_void_p, POINTER(c_uint))),
    ("nvmlDeviceGetTemperature", c_int, (c_void_p, c_int, POINTER(c_uint))),
    ("nvmlDeviceGetCurrentClocksThrottleReasons", c_int, (c_void_p, POINTER(c_ulonglong))),
)


@functools.cache
def load_nvml() -> Any | None:
    """The library, initialised; None where there is no driver."""
    try:
        library = load_first("NVML", NAMES, _SIGNATURES, "install NVIDIA's driver")
    except MissingLibrary:
        return None
    return library if library.nvmlInit_v2() == SUCCESS else None


def read_state(uuid: str = "") -> DeviceState | None:
    """The state of the GPU with this UUID, in PyTorch's notation, or of the first one; None where nothing tells it."""
    nvml = load_nvml()
    device = _find(nvml, uuid)
    if device is None:
        return None
    reasons = _number(nvml, "CurrentClocksThrottleReasons", device, kind=c_ulonglong)
    # A slowdown that is not laid to heat is the hardware's answer to too high a draw.
    power = reasons & (_POWER_CAP | _POWER_BRAKE) or (reasons & _SLOWDOWN and not reasons & _GREAT_HEAT)
    return DeviceState(
        sm_mhz=float(_number(nvml, "ClockInfo", device, _SM)),
        memory_mhz=float(_number(nvml, "ClockInfo", device, _MEMORY)),
        power_w=round(_number(nvml, "PowerUsage", device) / 1e3, 1),
        power_limit_w=round(_number(nvml, "EnforcedPowerLimit", device) / 1e3, 1),
        temperature_c=float(_number(nvml, "Temperature", device, _GPU_SENSOR)),
        slowed_by_heat=bool(reasons & (_HEAT | _GREAT_HEAT)),
        slowed_by_power=bool(power),
    )


def name_and_driver() -> tuple[str, str] | None:
    """The name of the first GPU and the driver's version, such as ``580.159.04``; None where there is no GPU."""
    nvml = load_nvml()
    device = _find(nvml, "")
    if nvml is None or device is None:
        return None
    name, driver = (ctypes.create_string_buffer(_TEXT_BYTES) for _ in range(2))
    nvml.nvmlDeviceGetName(device, name, _TEXT_BYTES)
    nvml.nvmlSystemGetDriverVersion(driver, _TEXT_BYTES)
    return name.value.decode(), driver.value.decode()


def _find(nvml: Any | None, uuid: str) -> c_void_p | None:
    if nvml is None:
        return None
    device = c_void_p()
    if uuid:
        status = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(device))
    else:
        status = nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device))
    return device if status == SUCCESS else None


def _number(nvml: Any, what: str, device: c_void_p, *which: int, kind: type[c_uint | c_ulonglong] = c_uint) -> int:
    """What a function of the library tells; 0 where a GPU does not."""
    value = kind()
    status = getattr(nvml, f"nvmlDeviceGet{what}")(device, *which, ctypes.byref(value))
    return int(value.value) if status == SUCCESS else 0
