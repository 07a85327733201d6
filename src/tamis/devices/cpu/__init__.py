"""The CPU: memory, PyTorch's kernels, oneDNN, OpenVINO and our own."""

from tamis.devices.cpu.device import CpuDevice

__all__ = ["CpuDevice"]
