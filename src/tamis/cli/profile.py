"""``tamis profile``: where the time of a run goes."""

from __future__ import annotations

from typing import Annotated

import typer

from tamis.cli.options import EnginePath, Inputs, Json, Seed, Threads, read_inputs
from tamis.cli.output import show, show_json


def command(
    engine: EnginePath,
    runs: Annotated[int, typer.Option("--runs", metavar="N", help="Runs to measure.")] = 50,
    top: Annotated[
        int | None,
        typer.Option("--top", metavar="N", help="Show only the N slowest steps.", show_default=False),
    ] = None,
    threads: Threads = None,
    given: Inputs = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Time every step of an engine, and whole runs in turn with them."""
    import tamis
    from tamis.errors import ConfigError
    from tamis.report import profile_data, profile_table
    from tamis.runtime import profile, random_inputs

    if runs < 1:
        raise ConfigError(f"runs is {runs}", remedy="give at least 1")
    session = tamis.load(engine, threads=threads)
    inputs = random_inputs(session.plan.inputs, seed, read_inputs(given))
    result = profile(session, inputs, runs=runs)
    if json:
        show_json(profile_data(result))
    else:
        show(profile_table(result, top=top))
