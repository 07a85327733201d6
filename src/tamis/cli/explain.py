"""``tamis explain``: why each layer runs the way it does."""

from __future__ import annotations

from typing import Annotated

import typer

from tamis.cli.options import EnginePath, Json
from tamis.cli.output import show, show_json


def command(
    engine: EnginePath,
    layer: Annotated[
        str | None,
        typer.Option("--layer", metavar="NAME", help="All candidates of one layer.", show_default=False),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All candidates of every layer.")] = False,
    json: Json = False,
) -> None:
    """Show how the tactics raced for each layer, who won, and why others could not run.

    All of it is recorded in the engine, so this needs neither the model nor the device.
    """
    from tamis.engine import read
    from tamis.report import explain, explain_data

    loaded = read(engine)
    if json:
        show_json(explain_data(loaded, layer=layer))
    else:
        show(explain(loaded, layer=layer, every=every))
