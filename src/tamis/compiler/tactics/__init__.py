"""What could run a layer, from the simplest to the most special; a tie in a race goes to the earlier one."""

from __future__ import annotations

from tamis.compiler.tactics.aten import Aten
from tamis.compiler.tactics.attention import CudnnAttention
from tamis.compiler.tactics.base import Tactic
from tamis.compiler.tactics.chain import TamisChain
from tamis.compiler.tactics.cublaslt import CublasLt
from tamis.compiler.tactics.cuda_kernels import TamisCuda
from tamis.compiler.tactics.cudnn import CudnnConv, CudnnTorch
from tamis.compiler.tactics.cusparselt import CusparseLt
from tamis.compiler.tactics.generations import AMPERE
from tamis.compiler.tactics.implicit_gemm import ImplicitGemm
from tamis.compiler.tactics.linear import TamisLinear
from tamis.compiler.tactics.onednn import OneDnn
from tamis.compiler.tactics.openvino import OpenVino
from tamis.compiler.tactics.pooled import HopperPooled
from tamis.compiler.tactics.region import RegionTactic
from tamis.compiler.tactics.stem import HopperStem

CPU_TACTICS: tuple[Tactic, ...] = (Aten(), OneDnn(), TamisLinear())
CPU_REGION_TACTICS: tuple[RegionTactic, ...] = (OpenVino(), TamisChain())
CUDA_TACTICS: tuple[Tactic, ...] = (
    Aten(), CudnnTorch(), CudnnConv(), CudnnAttention(), CublasLt(), CusparseLt(), ImplicitGemm(sparse=False),
    ImplicitGemm(sparse=True), HopperStem(), ImplicitGemm(AMPERE, sparse=False), ImplicitGemm(AMPERE, sparse=True),
    TamisCuda(),
)  # fmt: skip
CUDA_REGION_TACTICS: tuple[RegionTactic, ...] = (HopperPooled(),)


def tactics_of(device: str) -> tuple[Tactic, ...]:
    """The tactics that race for single layers on a kind of device."""
    return CPU_TACTICS if device == "cpu" else CUDA_TACTICS


def region_tactics_of(device: str) -> tuple[RegionTactic, ...]:
    """The tactics that race for regions on a kind of device."""
    return CPU_REGION_TACTICS if device == "cpu" else CUDA_REGION_TACTICS
