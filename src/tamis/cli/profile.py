"""``tamis profile``: where the time of a run goes."""

from __future__ import annotations

from typing import Annotated

import typer

from tamis.cli.options import EnginePath, Inputs, Json, Nvtx, Seed, Threads, read_inputs
from tamis.cli.output import show, show_json


def command(
    engine: EnginePath,
    runs: Annotated[int, typer.Option("--runs", metavar="N", help="Runs to measure.")] = 50,
    top: Annotated[
        int | None,
        typer.Option("--top", min=1, metavar="N", help="Show only the N slowest steps.", show_default=False),
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Show which kernels each step launches, instead of times.")
    ] = False,
    verify_sparse: Annotated[
        bool,
        typer.Option("--verify-sparse", help="Fail unless every step that is said to be sparse runs a sparse kernel."),
    ] = False,
    nvtx: Nvtx = False,
    threads: Threads = None,
    given: Inputs = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Time every step of an engine, and whole runs in turn with them; or name the kernels that it launches."""
    import tamis
    from tamis.errors import ConfigError
    from tamis.report import kernels_data, kernels_table, profile_data, profile_table
    from tamis.runtime import profile, random_inputs, step_kernels, unproven

    if runs < 1:
        raise ConfigError(f"runs is {runs}", remedy="give at least 1")
    session = tamis.load(engine, threads=threads, nvtx=nvtx)
    inputs = random_inputs(session.plan.inputs, seed, read_inputs(given))
    if kernels or verify_sparse:
        found = step_kernels(session, inputs)
        if json:
            show_json(kernels_data(found))
        else:
            show(kernels_table(found))
        if verify_sparse and unproven(found):
            raise typer.Exit(1)
        return
    result = profile(session, inputs, runs=runs)
    if json:
        show_json(profile_data(result))
    else:
        show(profile_table(result, top=top))
