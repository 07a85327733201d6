"""Measuring on a GPU: two events around the work, in a stream that the host has filled beforehand.

Before the first event the GPU is kept waiting, so that the host has given it all of the call's work when the clock
starts: what is measured is the GPU's time, as in a replayed graph, and not that of launching. Events resolve about half
a microsecond. A graph of many repetitions resolves more, but finds its weights in the L2 cache; so events it is, for
cold and for warm measurements alike.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import torch

# How long the GPU waits for the host at least, in its own cycles: 100 us at 2 GHz, enough to launch a few kernels.
_HEAD_START_CYCLES = 200_000
_CYCLES_PER_US = 2_000
# A call that takes the host longer than the GPU waits is measured again with a longer wait, so often at most; one that
# waits for the GPU itself is never quick enough.
_TRIES = 4
_LONGEST_CYCLES = 40_000_000
# What is written to evict the L2 cache, in multiples of its size.
_FLUSHES = 2
# A whole engine is run for about so long to warm up and again to be measured, so often at most.
_BURST_US = 2_000.0
_MOST_RUNS = 200


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
        self._head_start = _HEAD_START_CYCLES

    def time_us(
        self, call: Callable[[], object], warm: Sequence[torch.Tensor] = (), *, alone: bool = False, warmups: int = 0
    ) -> float:
        """Microseconds of one call.

        ``alone``: the mean of a burst behind another one. Engines run again and again, and find in the L2 cache what
        their last run has left there, not what an engine that was timed in between has.
        """
        for _ in range(warmups):
            call()
        if alone:
            runs = int(min(max(_BURST_US / max(self._of_one(call, warm), 1.0), 1.0), _MOST_RUNS))
            burst = functools.partial(_repeat, call, runs)
            if runs > 1:
                burst()
            return self._of_one(burst, warm) / runs
        return self._of_one(call, warm)

    def _of_one(self, call: Callable[[], object], warm: Sequence[torch.Tensor]) -> float:
        """Microseconds of a call that the host was quick enough for, if it ever is."""
        for _ in range(_TRIES):
            microseconds, host_us = self._measure(call, warm)
            needed = int(host_us * _CYCLES_PER_US)
            enough = needed <= self._head_start
            # The next call is likely to be one like this, or as quick as those before.
            wanted = max(_HEAD_START_CYCLES, needed + needed // 2, 0 if not enough else self._head_start * 3 // 4)
            self._head_start = min(wanted, _LONGEST_CYCLES)
            if enough:
                break
        return microseconds

    def _measure(self, call: Callable[[], object], warm: Sequence[torch.Tensor]) -> tuple[float, float]:
        """Microseconds of one call on the GPU, and those in which the host had launched it."""
        if self._flush is not None:
            self._flush.mul_(1.0)
            for tensor in warm:
                if tensor.nbytes <= self._l2_bytes // 2:
                    tensor.sum()
        torch.cuda._sleep(self._head_start)  # type: ignore[no-untyped-call]
        begin = time.perf_counter()
        self._start.record()
        call()
        self._end.record()
        host_us = (time.perf_counter() - begin) * 1e6
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) * 1e3, host_us


def _repeat(call: Callable[[], object], runs: int) -> None:
    for _ in range(runs):
        call()
