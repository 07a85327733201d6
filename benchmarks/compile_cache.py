"""What torch.compile found out, as small files that can be carried to another machine of the same kind.

One file for each case holds PyTorch's own portable cache (compiled graphs and their chosen kernels), one file for all
the times that its tuning measured. The candidates that lost, most of Inductor's cache folder, are left behind.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

TUNED = "tuned"  # folder of the tuning times, as Inductor names it below its cache folder: "cache"


class CompileCache:
    """A folder of artefacts; None: nothing is kept. ``TORCHINDUCTOR_CACHE_DIR`` must be set when there is a folder.

    An artefact that cannot be used only costs time: compilation then runs as without it.
    """

    def __init__(self, folder: Path | None, suffix: str = "") -> None:
        self.folder, self.suffix = folder, suffix

    def path(self, case: str) -> Path | None:
        """Where a case's artefacts lie, there or not."""
        return None if self.folder is None else self.folder / f"{case}{self.suffix}.artifacts"

    def has(self, case: str) -> bool:
        """Whether there are artefacts for a case."""
        path = self.path(case)
        return path is not None and path.is_file()

    def load(self, case: str) -> bool:
        """Put what is known of a case where Inductor looks for it; whether there was anything."""
        if self.folder is None:
            return False
        if (self.folder / TUNED).is_dir():
            shutil.copytree(self.folder / TUNED, _tuned(), dirs_exist_ok=True)
        path = self.path(case)
        if path is None or not path.is_file():
            return False
        return torch.compiler.load_cache_artifacts(path.read_bytes()) is not None

    def save(self, case: str) -> str:
        """Keep what was found out for a case; words for the row's note, with what torch.compile found and the size."""
        path = self.path(case)
        if self.folder is None or path is None:
            return ""
        self.folder.mkdir(parents=True, exist_ok=True)
        saved = torch.compiler.save_cache_artifacts()
        if saved is not None and not (path.is_file() and _misses() == 0):
            path.write_bytes(saved[0])
        if _tuned().is_dir():
            shutil.copytree(_tuned(), self.folder / TUNED, dirs_exist_ok=True)
        size = path.stat().st_size / 1e6 if path.is_file() else 0.0
        return f", {_hits()} graphs found, {_misses()} compiled, {size:.1f} MB of artefacts"

    def megabytes(self) -> float:
        """Size of the whole folder."""
        files = self.folder.rglob("*") if self.folder is not None else ()
        return sum(path.stat().st_size for path in files if path.is_file()) / 1e6


def _tuned() -> Path:
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "cache"


def _hits() -> int:
    from torch._dynamo.utils import counters  # noqa: PLC0415

    return int(counters["inductor"]["fxgraph_cache_hit"])


def _misses() -> int:
    from torch._dynamo.utils import counters  # noqa: PLC0415

    inductor = counters["inductor"]
    return int(inductor["fxgraph_cache_miss"] + inductor["fxgraph_cache_bypass"])
