"""The CPU: memory, oneDNN, OpenVINO and our own."""

from tamis.devices.cpu.device import CpuDevice

__all__ = ["CpuDevice"]
