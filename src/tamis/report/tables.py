"""One look for all tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text


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
