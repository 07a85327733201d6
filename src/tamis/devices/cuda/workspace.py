"""Scratch memory for the libraries' algorithms.

The steps of a session run one after the other, so they can share it. Two sessions may run on two streams at the same
time, so theirs must differ: each ``CudaDevice`` has a workspace of its own, and each session a ``CudaDevice``.
"""

from __future__ import annotations

import torch

from tamis.devices.base import Tensor


class Workspace:
    """Scratch memory that grows with what steps ask for when they are bound; none is taken before.

    A step keeps the block that it was given, and works in it in every run. So a block that has become too small for
    later steps stays valid where its address is known already, in bound steps and in the CUDA graphs that were recorded
    of them, which keep their steps; it is freed with the last of these. Blocks at least double, which bounds what the
    outgrown ones take by the size of the newest.
    """

    def __init__(self, device: torch.device) -> None:
        self._block: Tensor = torch.empty(0, dtype=torch.uint8, device=device)

    def reserve(self, size: int) -> Tensor:
        """A block of at least ``size`` bytes (uint8), for the caller to hold as long as it uses the address."""
        held = self._block.numel()
        if size > held:
            self._block = torch.empty(max(size, 2 * held), dtype=torch.uint8, device=self._block.device)
        return self._block
