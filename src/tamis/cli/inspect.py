"""``tamis inspect``: what an engine file holds."""

from __future__ import annotations

from tamis.cli.options import EnginePath, Json
from tamis.cli.output import show, show_json


def command(engine: EnginePath, json: Json = False) -> None:
    """Show what an engine holds: its origin, inputs and outputs, steps and sizes."""
    from tamis.engine import describe, read
    from tamis.report import inspect

    loaded = read(engine)
    if json:
        show_json(describe(loaded))
    else:
        show(inspect(loaded))
