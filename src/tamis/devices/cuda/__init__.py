"""NVIDIA GPUs: PyTorch's memory and kernels, NVIDIA's libraries and our own kernels."""

from tamis.devices.cuda.cusparselt_library import advice as cusparselt_advice
from tamis.devices.cuda.info import cuda_info, require_cuda

__all__ = ["cuda_info", "cusparselt_advice", "require_cuda"]
