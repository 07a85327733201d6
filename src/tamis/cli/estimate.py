"""``tamis estimate``: what 2:4 would bring a model on this machine, before anybody trains it."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.options import (
    ExcludedTactics,
    Inputs,
    Json,
    ModelPath,
    Precisions,
    RacingBudget,
    SearchLevel,
    Shapes,
    Threads,
    TimingCachePath,
    input_files,
    read_inputs,
    read_precisions,
    read_shapes,
)
from tamis.cli.output import progress_bar, show, show_json


def command(
    model: ModelPath,
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda", help="Where to measure.")] = "cpu",
    precision: Precisions = "fp32",
    pattern: Annotated[
        str, typer.Option("--pattern", metavar="N:M", help="How weights would be pruned: 2:4, or a part of it as 1:4.")
    ] = "2:4",
    shape: Shapes = None,
    threads: Threads = None,
    timing_cache: TimingCachePath = None,
    budget: RacingBudget = 120.0,
    level: SearchLevel = 3,
    exclude_tactic: ExcludedTactics = None,
    given: Inputs = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.json", help="Write the estimate as JSON.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Say what 2:4 would bring a model on this machine, before anybody trains it.

    All weights that can be are pruned by magnitude, and the best engine with them runs against the best dense one, in
    turns. No engine is written: its results would be wrong. The exit code is 0 whether there is a gain or not.
    """
    from tamis.compiler import BuildConfig, estimate_sparsity
    from tamis.engine import check_output, estimate_data, estimate_json
    from tamis.files import replaced_file
    from tamis.onnx_files import files_of
    from tamis.report import estimate_report

    if output is not None:
        others = (*input_files(given), *((timing_cache,) if timing_cache else ()))
        check_output(output, chain(others, files_of(model)))
    config = BuildConfig(
        device=device,  # type: ignore[arg-type]
        precisions=read_precisions(precision),  # type: ignore[arg-type]
        shapes=read_shapes(shape),
        threads=threads,
        timing_cache=timing_cache,
        budget_seconds=budget,
        optimization_level=level,
        exclude_tactics=tuple(exclude_tactic or ()),
        samples=read_inputs(given) or None,
        seed=seed,
    )
    with progress_bar(not json) as progress:
        measured = estimate_sparsity(model, config, pattern, progress)
    if output is not None:
        with replaced_file(output) as file:
            file.write(estimate_json(measured).encode())
    if json:
        show_json(estimate_data(measured))
    else:
        show(estimate_report(measured))
