"""Measuring on the CPU: the monotonic clock around a call, with cold caches where a model does not fit into them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

# What a cold stopwatch streams through before each call: more than the second-level caches of all cores and than
# most third-level caches; where the third level is larger, our share of it on a server rarely is.
FLUSH_BYTES = 64 << 20
# OpenMP workers spin for up to about 15 ms after their last task before they sleep.
_SETTLE_SECONDS = 0.02
# After that pause the first runs pay for waking threads and cores, which a service under load does not. A thread that
# was woken on its waker's core also needs some milliseconds to be moved to a free one.
_WARM_NS = 10_000_000
# Runs of a small engine are timed together until this much time has passed.
_BURST_NS = 1_000_000


class CpuStopwatch:
    """Times calls; owns the buffer that evicts the caches.

    Args:
        cold: evict the caches before every call, then touch the warm tensors again.
    """

    def __init__(self, *, cold: bool) -> None:
        self._flush = torch.ones(FLUSH_BYTES // 4) if cold else None

    def time_us(
        self, call: Callable[[], object], warm: Sequence[torch.Tensor] = (), *, alone: bool = False, warmups: int = 0
    ) -> float:
        """Microseconds of one call.

        ``alone`` waits until PyTorch's threads, which keep spinning for some milliseconds after their last work, have
        gone to sleep, then calls until the engine is warm, and gives the mean of a short burst. That is right for a
        whole engine, which may bring threads of its own, and wrong for a part of one, which does run beside those
        threads.
        """
        if self._flush is not None:
            self._flush.mul_(1.0)
            for tensor in warm:
                tensor.max()
        if alone:
            time.sleep(_SETTLE_SECONDS)
            _burst(call, _WARM_NS)
            return _burst(call, _BURST_NS)
        for _ in range(warmups):
            call()
        return _burst(call, 0)


def _burst(call: Callable[[], object], least_ns: int) -> float:
    """Mean microseconds of calls one after the other, until ``least_ns`` nanoseconds have passed; one at least."""
    calls, start = 0, time.perf_counter_ns()
    while True:
        call()
        calls += 1
        passed = time.perf_counter_ns() - start
        if passed >= least_ns:
            return passed / calls / 1e3
