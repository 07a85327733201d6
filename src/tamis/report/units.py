"""Numbers as people read them."""

from __future__ import annotations

from tamis.engine.plan import Timing


def microseconds(value: float) -> str:
    """A time in microseconds with three significant digits, and in milliseconds from 10 ms on."""
    if value >= 10_000:
        return f"{value / 1e3:,.1f} ms"
    return f"{value:,.0f} us" if value >= 100 else f"{value:.1f} us" if value >= 10 else f"{value:.2f} us"


def spread(timing: Timing) -> str:
    """Median and the range from the tenth to the ninetieth percentile."""
    low, high = microseconds(timing.p10_us), microseconds(timing.p90_us)
    return f"{microseconds(timing.median_us)} ({low} - {high})"


def size(count: int) -> str:
    """A number of bytes in KiB or MiB."""
    if count < 1 << 10:
        return f"{count} B"
    return f"{count / (1 << 10):,.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):,.1f} MiB"


def amount(value: float) -> str:
    """A number of FLOPs with its prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {prefix}FLOP"
    return f"{value:.0f} FLOP"


def shape(extents: tuple[int, ...]) -> str:
    """A shape such as 1x3x224x224; ``scalar`` for none."""
    return "x".join(map(str, extents)) or "scalar"


def counted(count: int, name: str) -> str:
    """``1 step`` or ``2 steps``."""
    return f"{count} {name}{'' if count == 1 else 's'}"


def counts(numbers: dict[str, int]) -> str:
    """How many of each, in words."""
    return ", ".join(f"{count} {name}" for name, count in numbers.items()) or "none"
