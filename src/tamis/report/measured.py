"""Benchmarks and profiles: text for people, data for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from tamis.report.scatter import profile_scatter
from tamis.report.tables import table
from tamis.report.units import amount, counted, microseconds, spread

if TYPE_CHECKING:  # they come with PyTorch, which nobody needs for reading an engine
    from tamis.runtime.benchmark import BenchResult
    from tamis.runtime.profiler import Profile, StepTime
    from tamis.runtime.sparse_proof import StepKernels

PERCENTILES = (90.0, 95.0, 99.0)


def bench_lines(result: BenchResult) -> list[str]:
    """The summary that trtexec prints, as far as it applies to a device without transfers."""
    runs = result.latencies_ms
    percentiles = ", ".join(f"percentile({p:g}%) = {result.percentile(p):.4f} ms" for p in PERCENTILES)
    return [
        f"Warmup completed {result.warmup_runs} queries over {result.warmup_ms:.0f} ms",
        f"Timing trace has {len(runs)} queries over {result.wall_seconds:.5f} s",
        "",
        "=== Performance summary ===",
        f"Throughput: {result.throughput:.3f} qps",
        f"Latency: min = {min(runs):.4f} ms, max = {max(runs):.4f} ms, mean = {result.mean:.4f} ms, "
        f"median = {result.median:.4f} ms, {percentiles}",
        f"Total Host Walltime: {result.wall_seconds:.5f} s",
    ]


def bench_data(result: BenchResult) -> dict[str, Any]:
    """The same as data; times in milliseconds."""
    runs = result.latencies_ms
    return {
        "throughput_qps": result.throughput,
        "latency_ms": {
            "min": min(runs),
            "max": max(runs),
            "mean": result.mean,
            "median": result.median,
            **{f"p{p:g}": result.percentile(p) for p in PERCENTILES},
        },
        "queries": len(runs),
        "wall_seconds": result.wall_seconds,
        "warmup_queries": result.warmup_runs,
        "threads": result.threads,
    }


def profile_table(profile: Profile, *, top: int | None = None) -> RenderableType:
    """Each step's time and rates, slowest first when only the ``top`` ones are shown, and the sum."""
    steps = list(profile.steps)
    if top is not None:
        steps = sorted(steps, key=lambda step: -step.timing.median_us)[:top]
    rows = [_profile_row(profile, step) for step in steps]
    difference, whole = profile.difference_us, profile.whole
    closing = [
        f"Sum of the steps: {microseconds(profile.steps_us)}",
        f"Whole run: {spread(whole)}, {whole.n} runs on {counted(profile.threads, 'thread')}",
        f"Difference: {difference:+.1f} us; steps that are timed one by one also pay for the clock",
        *profile_scatter(profile),
    ]
    columns = "step", "kernel", "precision", "sparsity", ">median (p10 - p90)", ">share", ">rate", ">traffic"
    return Group(table(columns, rows), Text(), *(Text(line) for line in closing))


def profile_data(profile: Profile) -> dict[str, Any]:
    """The same as data, all steps in the order in which they run; times in microseconds."""
    return {
        "steps": [
            {
                "name": step.step.name,
                "kernel": step.step.kernel,
                "layers": list(step.step.layers),
                "precision": str(step.step.precision),
                "sparsity": step.step.sparsity,
                "share": profile.share(step),
                "flops": step.step.flops,
                "moved_bytes": step.step.moved_bytes,
                **asdict(step.timing),
            }
            for step in profile.steps
        ],
        "whole": asdict(profile.whole),
        "steps_us": profile.steps_us,
        "difference_us": profile.difference_us,
        "threads": profile.threads,
    }


def _profile_row(profile: Profile, timed: StepTime) -> tuple[str, ...]:
    step, seconds = timed.step, timed.timing.median_us / 1e6
    rates = ("", "")
    if seconds > 0:
        rates = f"{amount(step.flops / seconds)}/s", f"{step.moved_bytes / seconds / 1e9:.1f} GB/s"
    share = f"{profile.share(timed):.1%}"
    return step.name, step.kernel, str(step.precision), step.sparsity, spread(timed.timing), share, *rates


def kernels_table(steps: Sequence[StepKernels]) -> RenderableType:
    """The kernels that each step launches, and whether the sparse ones are sparse."""
    rows = [(each.step.name, each.step.sparsity, _proof(each), "\n".join(each.kernels)) for each in steps]
    sparse = [each for each in steps if each.step.sparsity != "dense"]
    doubtful = [each for each in steps if each.in_doubt]
    closing = [f"{len(sparse) - len(doubtful)} of {len(sparse)} sparse steps run a sparse kernel"]
    closing += [f"{each.step.name} is said to be sparse, but no kernel's name says so" for each in doubtful]
    return Group(table(("step", "sparsity", "proven", "kernels"), rows), Text(), *(Text(line) for line in closing))


def kernels_data(steps: Sequence[StepKernels]) -> dict[str, Any]:
    """The same as data."""
    return {
        "steps": [
            {
                "name": each.step.name,
                "layers": list(each.step.layers),
                "sparsity": each.step.sparsity,
                "kernels": list(each.kernels),
                "runs_sparse": each.runs_sparse,
            }
            for each in steps
        ],
        "unproven": [each.step.name for each in steps if each.in_doubt],
    }


def _proof(each: StepKernels) -> str:
    if each.step.sparsity == "dense":
        return ""
    return "yes" if each.runs_sparse else "NO"
