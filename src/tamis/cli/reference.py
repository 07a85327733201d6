"""Write the help of all commands as a page of the documentation: ``python -m tamis.cli.reference FILE``."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from tamis.cli.main import COMMANDS, application

_INTRODUCTION = """\
# The command line

This page is the output of `--help`, written by `make docs`; a test keeps it up to date.
See also [exit codes](exit-codes.md).
"""
_WIDTH = 100


def reference() -> str:
    """The page as Markdown."""
    group = typer.main.get_command(application())
    context = group.make_context("tamis", [], resilient_parsing=True, terminal_width=_WIDTH)
    parts = [_INTRODUCTION, _section("tamis", context.get_help())]
    for name, _ in COMMANDS:
        command = group.get_command(context, name)  # type: ignore[attr-defined]
        inner = command.make_context(name, [], parent=context, resilient_parsing=True, terminal_width=_WIDTH)
        parts.append(_section(f"tamis {name}", inner.get_help()))
    return "\n".join(parts)


def _section(title: str, text: str) -> str:
    body = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"## {title}\n\n```text\n{body}\n```\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference())
