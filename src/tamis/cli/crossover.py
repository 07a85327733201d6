"""``tamis crossover``: from which layer size 2:4 pays on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tamis.cli.options import Json, Threads, TimingCachePath, read_list, read_precisions, read_written
from tamis.cli.output import progress_bar, show, show_json
from tamis.errors import ConfigError


def command(
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda", help="Where to measure.")] = "cpu",
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="NAME", help="fp32, tf32, bf16 or fp16; fp32 candidates race as well."),
    ] = "bf16",
    kinds: Annotated[
        str, typer.Option("--kinds", metavar="LIST", help="Layers to measure.")
    ] = "linear,conv1x1,conv3x3",
    sizes: Annotated[
        str,
        typer.Option("--sizes", metavar="LIST", help="Numbers of inputs and of outputs; every pair is measured."),
    ] = "64,128,256,512,1024,2048",
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="LIST",
            help="Rows of linear layers and images of convolutions; 1,16 on the CPU and 1,32,128 on CUDA if not given.",
            show_default=False,
        ),
    ] = None,
    map_size: Annotated[
        int, typer.Option("--map", metavar="N", help="Height and width of the images of convolutions.")
    ] = 14,
    budget: Annotated[
        float,
        typer.Option("--budget", metavar="SECONDS", help="Time that measuring may take; corners are measured first."),
    ] = 300.0,
    threads: Threads = None,
    timing_cache: TimingCachePath = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.json", help="Write the map as JSON.", show_default=False),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE.png",
            help="Draw the map (also .svg, .pdf; needs matplotlib).",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FILE.json",
            help="Take over the cells that were measured there, and measure the others.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE.json",
            help="Show a map that was written with -o; measure nothing.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure dense against 2:4 over a grid of layer sizes: from which size does 2:4 pay on this machine?

    Every cell is a layer with random 2:4 weights. All tactics race for it as in a build, with cold caches, since
    inside a network the other layers evict a layer's weights.
    """
    from tamis.engine import crossover_data, crossover_json
    from tamis.files import replaced_file
    from tamis.report import check_picture, crossover_report, draw_crossover

    for path in (output, picture):
        _check_writable(path)
    if picture is not None:
        check_picture(picture)
    if source is not None and resume is not None:
        raise ConfigError("--from measures nothing and --resume goes on measuring", remedy="give one of the two")
    if source is not None:
        measured = _read(source)
    else:
        measured = _measure(
            not json,
            None if resume is None else _read(resume),
            device=device,
            precision=_one_precision(precision),
            kinds=tuple(read_list(kinds)),
            sizes=_numbers("sizes", sizes),
            batches=None if batch is None else _numbers("batch", batch),
            map_size=map_size,
            budget_seconds=budget,
            threads=threads,
            timing_cache=timing_cache,
        )
    if output is not None:
        with replaced_file(output) as file:
            file.write(crossover_json(measured).encode())
    if picture is not None:
        draw_crossover(measured, picture)
    if json:
        show_json(crossover_data(measured))
    else:
        show(crossover_report(measured))
    if measured.interrupted and source is None:
        raise KeyboardInterrupt


def _read(path: Path) -> Any:
    from tamis.engine import crossover_from_json

    return crossover_from_json(read_written(path), str(path))


def _measure(watched: bool, earlier: Any, **options: Any) -> Any:
    from tamis.compiler import CrossoverConfig, measure_crossover

    config = CrossoverConfig(**options)
    with progress_bar(watched) as progress:
        return measure_crossover(config, progress, earlier=earlier)


def _one_precision(text: str) -> Any:
    from tamis.formats import DType

    names = read_precisions(text)
    if len(names) != 1:
        raise ConfigError(f"'{text}' is not one precision", remedy="choose one of fp32, tf32, bf16 and fp16")
    return DType(names[0])


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = read_list(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--{option} '{text}' is not a list of numbers", remedy=f"write it as --{option} 64,256,1024")
    return tuple(map(int, parts))


def _check_writable(path: Path | None) -> None:
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ConfigError(f"{path} cannot be written", remedy="give the path of a file in an existing folder")
