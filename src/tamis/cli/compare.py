"""``tamis compare``: an engine against ONNX Runtime, or against another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.options import EnginePath, Inputs, Json, Seed, Threads, read_inputs
from tamis.cli.output import show, show_json
from tamis.errors import EngineError


def command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="ONNX file, or an engine file to compare with.", show_default=False),
    ],
    engine: EnginePath,
    layers: Annotated[
        bool, typer.Option("--layers", help="Compare inner values too, and name the first that deviates.")
    ] = False,
    cosine: Annotated[
        float | None,
        typer.Option(
            "--cosine",
            metavar="MIN",
            help="Least cosine. [default: 0.99999, or 0.999 when layers run in bfloat16]",
            show_default=False,
        ),
    ] = None,
    relative: Annotated[
        float | None,
        typer.Option(
            "--relative",
            metavar="MAX",
            help="Largest error over the largest value. [default: 0.001, or no limit in bfloat16]",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    given: Inputs = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare the results of an engine with those of ONNX Runtime; exit code 1 when they do not agree.

    Given two engines, show which layers run differently.
    """
    from tamis.engine import is_engine, read
    from tamis.report import deviation_data, deviation_table, difference_of_engines, differing_layers

    if is_engine(model) and engine.is_file() and not is_engine(engine):
        raise EngineError(f"{engine} is not an engine file", remedy="give the model first, then the engine")
    loaded = read(engine)
    if is_engine(model):
        other = read(model)
        if json:
            changed = differing_layers(other, loaded)
            show_json({"layers": [{"name": n, "first": a, "second": b} for n, a, b in changed]})
        else:
            show(difference_of_engines(other, loaded))
        return
    from tamis.cli.comparison import compare_with_onnxruntime, limits

    wanted = limits(loaded, cosine, relative)
    outputs, inner = compare_with_onnxruntime(
        model, loaded, read_inputs(given), layers=layers, limits=wanted, threads=threads, seed=seed
    )
    if json:
        show_json(deviation_data(outputs, inner))
    else:
        show(deviation_table(outputs, inner, cosine=wanted.cosine, relative=wanted.relative))
    if not all(output.within for output in outputs):
        raise typer.Exit(1)
