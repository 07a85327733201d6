"""A stand-in for the driver's management library: one GPU, whose figures a test sets."""

from __future__ import annotations

from typing import Any

SUCCESS, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND = 0, 2, 3, 6
UUID = "12345678-0000-0000-0000-123456789abc"


class FakeNvml:
    """Answers like ``libnvidia-ml.so.1``; ``silent`` names the functions that this GPU does not support."""

    def __init__(self, *, reasons: int = 0, silent: tuple[str, ...] = ()) -> None:
        self.numbers = {
            ("ClockInfo", 1): 1980, ("ClockInfo", 2): 2619, ("PowerUsage",): 412_340,
            ("EnforcedPowerLimit",): 700_000, ("Temperature", 0): 45, ("CurrentClocksThrottleReasons",): reasons,
        }  # fmt: skip
        self.silent = silent

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: Any) -> int:
        if index != 0:
            return INVALID_ARGUMENT
        device._obj.value = 77
        return SUCCESS

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, device: Any) -> int:
        if uuid != f"GPU-{UUID}".encode():
            return NOT_FOUND
        device._obj.value = 77
        return SUCCESS

    def nvmlDeviceGetName(self, device: Any, text: Any, size: int) -> int:
        assert device.value == 77 and size >= 96
        text.value = b"NVIDIA H100 80GB HBM3"
        return SUCCESS

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        assert size >= 80
        text.value = b"580.159.04"
        return SUCCESS

    def __getattr__(self, name: str) -> Any:
        what = name.removeprefix("nvmlDeviceGet")

        def number(device: Any, *arguments: Any) -> int:
            *which, target = arguments
            assert device.value == 77
            if what in self.silent:
                target._obj.value = 12345  # what a refusal leaves behind must not be read
                return NOT_SUPPORTED
            target._obj.value = self.numbers[(what, *which)]
            return SUCCESS

        return number
