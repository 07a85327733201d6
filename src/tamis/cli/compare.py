"""``tamis compare``: an engine against ONNX Runtime, or against another engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamis.cli.options import EnginePath, Inputs, Json, Seed, Threads, read_inputs
from tamis.cli.output import show, show_json
from tamis.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tamis.engine import Engine, Port


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
    from tamis.report import deviation_data, deviation_table

    if is_engine(model) and engine.is_file() and not is_engine(engine):
        raise EngineError(f"{engine} is not an engine file", remedy="give the model first, then the engine")
    loaded = read(engine)
    if is_engine(model):
        _refuse_options(
            {"--layers": layers or None, "--cosine": cosine, "--relative": relative}
            | {"--threads": threads, "--input": given or None}
        )
        _compare_engines(read(model), loaded, json=json)
        return
    from tamis.cli.comparison import compare_with_onnxruntime, limits

    wanted = limits(loaded, cosine, relative)
    outputs, inner = compare_with_onnxruntime(
        model, loaded, read_inputs(given), layers=layers, limits=wanted, threads=threads, seed=seed
    )
    if json:
        show_json(deviation_data(outputs, inner))
    else:
        show(deviation_table(outputs, inner, loaded.plan, cosine=wanted.cosine, relative=wanted.relative))
    if not all(output.within for output in outputs):
        raise typer.Exit(1)


def _refuse_options(options: Mapping[str, object]) -> None:
    """Raise ``ConfigError`` for an option that has no meaning for two engines, whose results are not computed."""
    useless = [name for name, value in options.items() if value is not None]
    if useless:
        raise ConfigError(
            f"two engines are compared by how their layers run, not by results: {' and '.join(useless)} has no meaning",
            remedy="leave it out, or give the ONNX file in place of the first engine",
        )


def _compare_engines(first: Engine, second: Engine, *, json: bool) -> None:
    from tamis.report import difference_of_engines, differing_layers

    _check_same_model(first, second)
    if json:
        changed = differing_layers(first, second)
        show_json({"layers": [{"name": name, "first": a, "second": b} for name, a, b in changed]})
    else:
        show(difference_of_engines(first, second))


def _check_same_model(first: Engine, second: Engine) -> None:
    """Raise ``ConfigError`` for engines whose inputs or outputs differ."""
    one, two = first.plan, second.plan
    for kind, ours, theirs in (("inputs", one.inputs, two.inputs), ("outputs", one.outputs, two.outputs)):
        if ours != theirs:
            raise ConfigError(
                f"these engines come from different models: the {kind} of the first are {_ports(ours)}, "
                f"of the second {_ports(theirs)}",
                remedy="give two engines of one model, built for the same shapes",
            )


def _ports(ports: Iterable[Port]) -> str:
    from tamis.report import shape

    return ", ".join(f"'{port.name}' {shape(port.shape)} {port.dtype}" for port in ports)
