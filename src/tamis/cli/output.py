"""Where output goes: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tamis.sparsity import LayerCheck, OnnxPrunedLayer

Progress = Callable[[str, int, int, str], None]


def show(*parts: RenderableType) -> None:
    """Print reports on stdout; text is taken literally, without markup."""
    from rich.console import Console

    from tamis.report import plain

    if sys.stdout.isatty():
        console = Console(markup=False, highlight=False, emoji=False)
        for part in parts:
            console.print(part)
        return
    sys.stdout.write(plain(*parts))


def show_json(data: Any) -> None:
    """Print data as JSON on stdout; a number that is not finite becomes null."""
    sys.stdout.write(json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def complain(line: str) -> None:
    """Print one line on stderr."""
    sys.stderr.write(line.replace("\n", " ") + "\n")
    sys.stderr.flush()


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Progress | None]:
    """A function that moves a progress bar on stderr; None when stderr is no terminal or it is not wanted."""
    if not enabled or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.fields[stage]}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=None, stage="", detail="")

        def update(stage: str, done: int, total: int, detail: str) -> None:
            bar.update(task, stage=stage, completed=done, total=total or None, detail=detail)

        yield update


class Stages:
    """Hears of a build's progress, passes it on, and keeps the seconds of each stage."""

    def __init__(self, progress: Progress | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._clock = progress, clock
        self._seconds: dict[str, float] = {}
        self._stage, self._since = "", clock()

    def tell(self, stage: str, done: int, total: int, detail: str) -> None:
        """As a build's progress is told. A stage may come again; its times are added."""
        self._count(stage)
        if self._progress is not None:
            self._progress(stage, done, total, detail)

    def seconds(self) -> dict[str, float]:
        """The seconds of each stage up to now, in the order in which they began."""
        self._count(self._stage)
        return dict(self._seconds)

    def _count(self, stage: str) -> None:
        now = self._clock()
        if self._stage:
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not (float("-inf") < data < float("inf")):
        return None
    return data


def labels(layers: Sequence[LayerCheck] | Sequence[OnnxPrunedLayer]) -> list[str]:
    """The names of the weights of layers; with those of the nodes where several use one weight or parts of it."""
    count = Counter(layer.name for layer in layers)
    return [f"{each.name} at {each.node}" if count[each.name] > 1 and each.node else each.name for each in layers]
