"""``tamis run``: one run of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.cli.options import EnginePath, Inputs, Json, Seed, Threads, input_files, read_inputs
from tamis.cli.output import complain, show, show_json

if TYPE_CHECKING:
    import numpy as np


def command(
    engine: EnginePath,
    given: Inputs = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.npz", help="Where to keep the outputs.", show_default=False),
    ] = None,
    threads: Threads = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run an engine once and show its outputs.

    Outputs in a type that NumPy does not have (bfloat16) are kept as float32.
    """
    import tamis
    from tamis.engine import check_output
    from tamis.runtime import random_inputs

    if output is not None:
        check_output(output, (engine, *input_files(given)))
    session = tamis.load(engine, threads=threads)
    values = read_inputs(given)
    inputs = random_inputs(session.plan.inputs, seed, values)
    for name in inputs.keys() - values.keys():
        complain(f"note: input '{name}' was not given and is random (seed {seed})")
    outputs = {name: _plain(array) for name, array in session.run(inputs).items()}
    if output is not None:
        _keep(output, outputs)
        complain(f"Wrote {output}")
    data = [_statistics(name, array) for name, array in outputs.items()]
    if json:
        show_json({"outputs": data})
    else:
        from tamis.report import table

        columns = ("output", "shape", "type", ">min", ">max", ">mean")
        show(table(columns, ([str(value) for value in row.values()] for row in data)))


def _plain(array: np.ndarray) -> np.ndarray:
    import numpy as np

    return array if array.dtype.isbuiltin else array.astype(np.float32)


def _keep(path: Path, outputs: Mapping[str, np.ndarray]) -> None:
    import numpy as np

    from tamis.files import replaced_file

    with replaced_file(path) as file:
        np.savez(file, **outputs)  # type: ignore[arg-type]


def _statistics(name: str, array: np.ndarray) -> dict[str, Any]:
    numbers: tuple[float | None, ...] = (None, None, None)
    if array.size:
        numbers = tuple(float(f"{float(f(array)):.6g}") for f in (_minimum, _maximum, _mean))
    low, high, mean = numbers
    return {
        "name": name,
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "min": low,
        "max": high,
        "mean": mean,
    }


def _minimum(array: np.ndarray) -> Any:
    return array.min()


def _maximum(array: np.ndarray) -> Any:
    return array.max()


def _mean(array: np.ndarray) -> Any:
    return array.mean(dtype="float64")
