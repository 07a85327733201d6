"""``tamis sensitivity``: what pruning each layer costs and saves, and which ones to prune."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.cli.options import (
    Json,
    ModelPath,
    RacingBudget,
    SearchLevel,
    Seed,
    Shapes,
    Threads,
    TimingCachePath,
    read_list,
    read_precisions,
    read_samples,
    read_shapes,
    read_written,
)
from tamis.cli.output import progress_bar, show, show_json
from tamis.errors import ConfigError, SparsityError

if TYPE_CHECKING:
    from tamis.engine import Estimate
    from tamis.sparsity import PrunePlan, SensitivityReport


def command(
    model: ModelPath,
    samples: Annotated[
        Path | None,
        typer.Option(
            "--samples",
            metavar="FILE.npz",
            help="Inputs by name to run the model on, one batch or several; random ones if not given.",
            show_default=False,
        ),
    ] = None,
    pattern: Annotated[
        str, typer.Option("--pattern", metavar="LIST", help="Patterns to try on each layer, such as 2:4,1:4.")
    ] = "2:4",
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda", help="Where to run and to measure.")] = "cpu",
    precision: Annotated[
        str, typer.Option("--precision", metavar="LIST", help="Precisions that layers may run in when they are timed.")
    ] = "fp32",
    shape: Shapes = None,
    threads: Threads = None,
    timing_cache: TimingCachePath = None,
    budget: RacingBudget = 120.0,
    level: SearchLevel = 3,
    estimate: Annotated[
        Path | None,
        typer.Option(
            "--estimate",
            metavar="FILE.json",
            help="Take the times from a file that 'tamis estimate -o' wrote, perhaps on another machine.",
            show_default=False,
        ),
    ] = None,
    no_times: Annotated[bool, typer.Option("--no-times", help="Measure losses only.")] = False,
    max_loss: Annotated[
        float | None,
        typer.Option(
            "--max-loss",
            metavar="X",
            help="Plan: save most time while the error's power is at most X of that of the outputs (0.01 is 20 dB).",
            show_default=False,
        ),
    ] = None,
    target_ms: Annotated[
        float | None,
        typer.Option("--target-ms", metavar="MS", help="Plan: lose least for this time.", show_default=False),
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option("--speedup", metavar="X", help="Plan: lose least for this speed over dense.", show_default=False),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan", metavar="FILE.json", help="Write the plan, for tamis.sparsity.prune.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.json", help="Write the report as JSON.", show_default=False),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE.png",
            help="Draw loss against time saved (also .svg, .pdf; needs matplotlib).",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure what pruning each layer costs and what it saves, and plan which ones to prune.

    One layer is pruned at a time, and the outputs are compared with those of the dense model. The exit code is 1 when
    the layers of a plan, pruned together, lose more than the budget.
    """
    from tamis.compiler import BuildConfig, Goal, measure_sensitivity
    from tamis.engine import check_output
    from tamis.onnx_files import files_of
    from tamis.report import check_picture

    goals = {"max_loss": max_loss, "target_us": target_ms and target_ms * 1e3, "speedup": speedup}
    goal = Goal(**goals) if any(value is not None for value in goals.values()) else None
    if plan is not None and goal is None:
        raise ConfigError("there is no goal to plan for", remedy="give --max-loss, --target-ms or --speedup")
    if estimate is not None and no_times:
        raise ConfigError("--estimate and --no-times are both given", remedy="leave one out")
    if no_times and (target_ms is not None or speedup is not None):
        raise ConfigError("a goal of time needs times", remedy="leave out --no-times")
    others = [path for path in (samples, estimate, timing_cache) if path is not None]
    for path in (plan, output, picture):
        if path is not None:
            check_output(path, chain(others, files_of(model)))
    if picture is not None:
        check_picture(picture)
    config = BuildConfig(
        device=device,  # type: ignore[arg-type]
        precisions=read_precisions(precision),  # type: ignore[arg-type]
        shapes=read_shapes(shape),
        threads=threads,
        timing_cache=timing_cache,
        budget_seconds=budget,
        optimization_level=level,
        samples=read_samples(samples) if samples is not None else None,
        seed=seed,
    )
    patterns = tuple(read_list(pattern))
    times: Any = None if no_times else "measure" if estimate is None else _read(estimate)
    kept: list[SensitivityReport] = []
    try:
        with progress_bar(not json) as progress:
            report, made = measure_sensitivity(
                model, config, patterns, times=times, goal=goal, progress=progress, measured=kept.append
            )
    except SparsityError:
        if kept:  # nothing reaches the goal, but measuring may have taken long
            _give(kept[0], None, output, None, picture, json)
        raise
    _give(report, made, output, plan, picture, json)
    if made is not None and not made.holds:
        raise typer.Exit(1)


def _give(
    report: SensitivityReport,
    made: PrunePlan | None,
    output: Path | None,
    plan: Path | None,
    picture: Path | None,
    json: bool,
) -> None:
    """Write and show what was measured and planned."""
    from tamis.files import replaced_file
    from tamis.report import draw_sensitivity, sensitivity_report
    from tamis.sparsity import plan_data, plan_json, report_data, report_json

    for path, text in ((output, report_json(report)), (plan, plan_json(made) if made else "")):
        if path is not None:
            with replaced_file(path) as file:
                file.write(text.encode())
    if picture is not None:
        draw_sensitivity(report, picture, made)
    if json:
        show_json({"report": report_data(report), "plan": plan_data(made) if made else None})
    else:
        show(sensitivity_report(report, made))


def _read(path: Path) -> Estimate:
    from tamis.engine import estimate_from_json

    return estimate_from_json(read_written(path), str(path))
