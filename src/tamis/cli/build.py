"""``tamis build``: from an ONNX model to an engine file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.options import (
    ExcludedTactics,
    Inputs,
    Json,
    ModelPath,
    Precisions,
    Shapes,
    Threads,
    TimingCachePath,
    input_files,
    read_inputs,
    read_layer_precisions,
    read_precisions,
    read_shapes,
)
from tamis.cli.output import Stages, progress_bar, show, show_json


def command(
    model: ModelPath,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="ENGINE", help="Engine file to write.", show_default=False),
    ],
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda", help="Where the engine will run.")] = "cpu",
    precision: Precisions = "fp32",
    tf32: Annotated[bool, typer.Option("--tf32", help="Allow tf32 products too (CUDA).")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Allow bfloat16 too.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Allow float16 too (CUDA).")] = False,
    best: Annotated[bool, typer.Option("--best", help="Allow every precision of the device.")] = False,
    layer_precision: Annotated[
        list[str] | None,
        typer.Option(
            "--layer-precision",
            metavar="LAYER=LIST",
            help="Precisions for the layers of a name or pattern, such as 'encoder.*=fp32'. May be repeated.",
            show_default=False,
        ),
    ] = None,
    sparsity: Annotated[
        str,
        typer.Option(
            "--sparsity",
            metavar="off|auto|force",
            help="auto races sparse kernels on weights that are 2:4; force prunes the others first, "
            "to see the speed: the results are then wrong.",
        ),
    ] = "auto",
    shape: Shapes = None,
    threads: Threads = None,
    timing_cache: TimingCachePath = None,
    budget: Annotated[float, typer.Option("--budget", metavar="SECONDS", help="Time that measuring may take.")] = 120.0,
    level: Annotated[
        int, typer.Option("--level", metavar="0..5", help="How hard to search: 0 builds fast, 5 offers everything.")
    ] = 3,
    exclude_tactic: ExcludedTactics = None,
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
    from tamis.engine import check_output
    from tamis.report import build_data, build_summary

    check_output(output, (*input_files(given), *((timing_cache,) if timing_cache else ())))
    start, known = time.monotonic(), _written(timing_cache)
    with progress_bar(not (json or quiet)) as shown:
        stages = Stages(shown)
        engine = tamis.build(
            model,
            output=output,
            progress=stages.tell,
            device=device,
            precisions=_precisions(device, precision, {"tf32": tf32, "bf16": bf16, "fp16": fp16}, best),
            layer_precisions=read_layer_precisions(layer_precision),
            sparsity=sparsity,
            shapes=read_shapes(shape),
            threads=threads,
            timing_cache=timing_cache,
            budget_seconds=budget,
            optimization_level=level,
            exclude_tactics=tuple(exclude_tactic or ()),
            samples=read_inputs(given) or None,
            seed=seed,
            dump=dump,
        )
    seconds, file_bytes = time.monotonic() - start, output.stat().st_size
    measured = known is None or _written(timing_cache) != known
    if json:
        show_json(build_data(engine, seconds, str(output), file_bytes, stages.seconds(), measured=measured))
    elif not quiet:
        show(build_summary(engine, seconds, str(output), file_bytes, stages.seconds(), measured=measured))


def _written(cache: Path | None) -> tuple[int, int] | None:
    """What changes when a timing cache is written; None without a file. Who measures nothing does not write it."""
    if cache is None or not cache.exists():
        return None
    status = cache.stat()
    return status.st_mtime_ns, status.st_ino


def _precisions(device: str, text: str, flags: Mapping[str, bool], best: bool) -> tuple[str, ...]:
    """What ``--precision`` names and the flags add; everything the device has with ``--best``."""
    from tamis.compiler.config import PRECISIONS

    if best and device in PRECISIONS:
        return tuple(map(str, PRECISIONS[device]))
    return read_precisions(",".join((text, *(name for name, wanted in flags.items() if wanted))))
