"""Measuring on a GPU: two events around the work, in a stream that the host has filled beforehand.

Before the first event the GPU is kept waiting, so that the host has given it all of the call's work when the clock
starts: what is measured is the GPU's time, as in a replayed graph, and not that of launching. Events resolve about half
a microsecond. A graph of many repetitions resolves more, but finds its weights in the L2 cache; so events it is, for
cold and for warm measurements alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

# How long the GPU waits for the host, in its own cycles: about 100 us at 2 GHz, enough to launch a few dozen kernels.
_HEAD_START_CYCLES = 200_000
# What is written to evict the L2 cache, in multiples of its size.
_FLUSHES = 2


class CudaStopwatch:
    """Times calls on the current stream; owns the buffer that evicts the L2 cache.

    Args:
        cold: evict the L2 cache before every call, then touch the warm tensors again.
    """

    def __init__(self, *, cold: bool) -> None:
        self._start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._l2_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        size = _FLUSHES * self._l2_bytes // 4
        self._flush = torch.ones(size, device="cuda") if cold else None

    def time_us(
        self, call: Callable[[], object], warm: Sequence[torch.Tensor] = (), *, alone: bool = False, warmups: int = 0
    ) -> float:
        """Microseconds of one call. ``alone`` changes nothing: the GPU does nothing else in either case."""
        for _ in range(warmups):
            call()
        if self._flush is not None:
            self._flush.mul_(1.0)
            for tensor in warm:
                if tensor.nbytes <= self._l2_bytes // 2:
                    tensor.sum()
        torch.cuda._sleep(_HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
        self._start.record()
        call()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) * 1e3
