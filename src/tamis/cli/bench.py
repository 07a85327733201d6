"""``tamis bench``: latency and throughput of an engine."""

from __future__ import annotations

from typing import Annotated

import typer

from tamis.cli.options import EnginePath, Inputs, Json, Nvtx, Seed, Threads, read_inputs
from tamis.cli.output import show_json


def command(
    engine: EnginePath,
    warmup: Annotated[float, typer.Option("--warmup", metavar="MS", help="Milliseconds of warm-up.")] = 200.0,
    duration: Annotated[float, typer.Option("--duration", metavar="SECONDS", help="Least time to measure.")] = 3.0,
    iterations: Annotated[int, typer.Option("--iterations", metavar="N", help="Least number of runs.")] = 10,
    nvtx: Nvtx = False,
    threads: Threads = None,
    given: Inputs = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure latency and throughput, and print the summary that trtexec prints.

    A run is one batch; inputs are ready in memory and outputs stay there.
    """
    import tamis
    from tamis.errors import ConfigError
    from tamis.report import bench_data, bench_lines
    from tamis.runtime import bench, random_inputs

    if iterations < 1:
        raise ConfigError(f"iterations is {iterations}", remedy="give at least 1")
    session = tamis.load(engine, threads=threads, nvtx=nvtx)
    inputs = random_inputs(session.plan.inputs, seed, read_inputs(given))
    result = bench(session, inputs, warmup_ms=warmup, duration_s=duration, iterations=iterations)
    if json:
        show_json(bench_data(result))
    else:
        typer.echo("\n".join(bench_lines(result)))
