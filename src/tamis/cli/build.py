"""``tamis build``: from an ONNX model to an engine file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.options import Inputs, Json, ModelPath, Threads, read_inputs, read_precisions, read_shapes
from tamis.cli.output import progress_bar, show, show_json
from tamis.errors import ConfigError


def command(
    model: ModelPath,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="ENGINE", help="Engine file to write.", show_default=False),
    ],
    precision: Annotated[
        str, typer.Option("--precision", metavar="LIST", help="Precisions that layers may run in.")
    ] = "fp32",
    bf16: Annotated[bool, typer.Option("--bf16", help="Allow bfloat16 too.")] = False,
    best: Annotated[bool, typer.Option("--best", help="Allow every precision of the device.")] = False,
    sparsity: Annotated[
        str,
        typer.Option(
            "--sparsity",
            metavar="off|auto|force",
            help="auto races sparse kernels on weights that are 2:4; force prunes the others first, "
            "to see the speed: the results are then wrong.",
        ),
    ] = "auto",
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="NAME=1x3x224x224",
            help="Shape of an input whose dimensions are symbolic. May be repeated.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", metavar="FILE", help="Measurements to use and to add to.", show_default=False),
    ] = None,
    budget: Annotated[float, typer.Option("--budget", metavar="SECONDS", help="Time that measuring may take.")] = 120.0,
    exclude_tactic: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude-tactic",
            metavar="NAME",
            help="Tactic that must not be used. May be repeated.",
            show_default=False,
        ),
    ] = None,
    given: Inputs = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")] = 0,
    dump: Annotated[
        Path | None,
        typer.Option("--dump", metavar="DIR", help="Write the graph after every pass.", show_default=False),
    ] = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Compile an ONNX model into an engine.

    For each layer all tactics that can run it are timed on this machine, and the fastest one whose result is
    right is kept. Values given with --input are what accuracy is judged on.
    """
    import tamis
    from tamis.report import build_data, build_summary

    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ConfigError(
            f"the engine cannot be written to {output}",
            remedy="give the path of a file in an existing folder",
        )
    start = time.monotonic()
    with progress_bar(not (json or quiet)) as progress:
        engine = tamis.build(
            model,
            output=output,
            progress=progress,
            precisions=read_precisions("fp32,bf16" if bf16 or best else precision),
            sparsity=sparsity,
            shapes=read_shapes(shape),
            threads=threads,
            timing_cache=timing_cache,
            budget_seconds=budget,
            exclude_tactics=tuple(exclude_tactic or ()),
            samples=read_inputs(given) or None,
            seed=seed,
            dump=dump,
        )
    seconds, file_bytes = time.monotonic() - start, output.stat().st_size
    if json:
        show_json(build_data(engine, seconds, str(output), file_bytes))
    elif not quiet:
        show(build_summary(engine, seconds, str(output), file_bytes))
