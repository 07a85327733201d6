"""One look for all tables, and reports as plain text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

# Files and strings have no width of their own; reports are then as wide as their tables need.
_UNLIMITED = 10_000


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> Table:
    """A table; a column whose name starts with ``>`` is aligned to the right. Cells are taken literally."""
    result = Table(
        title=title or None,
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        show_header=any(columns),
    )
    for column in columns:
        result.add_column(Text(column.removeprefix(">")), justify="right" if column[:1] == ">" else "left")
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result


def plain(*parts: RenderableType) -> str:
    """Reports as text, each line without spaces at its end; markup is taken literally."""
    console = Console(file=io.StringIO(), width=_UNLIMITED, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
