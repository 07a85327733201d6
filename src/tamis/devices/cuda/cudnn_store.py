"""Plans of cuDNN on disk, so that an engine that is loaded again compiles nothing.

A plan that cuDNN compiles at run time takes half a second to build and a millisecond to read back (80 KiB of code).
The files are a cache: whatever is wrong with them, plans are built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path


def default_folder() -> Path:
    """``tamis/cudnn`` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tamis" / "cudnn"


def path_of(folder: Path, key: str) -> Path:
    """The file of a plan. ``key`` holds all that it depends on: problem, rank, device, versions."""
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.plan"


def read(folder: Path, key: str) -> bytes | None:
    """The stored plan, or None."""
    try:
        data = path_of(folder, key).read_bytes()
    except OSError:
        return None
    digest, plan = data[:32], data[32:]
    return plan if plan and hashlib.sha256(plan).digest() == digest else None


def write(folder: Path, key: str, plan: bytes) -> None:
    """Store a plan under its key; a folder that cannot be written is no error."""
    target, temporary = path_of(folder, key), ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            temporary = file.name
            file.write(hashlib.sha256(plan).digest() + plan)
        Path(temporary).replace(target)  # readers see the old file or the whole new one
    except OSError:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
