"""Compiled kernels on disk, so that no process compiles what another one has compiled.

What is stored are cubins of our kernels and plans of cuDNN, some seconds or half a second of a compiler each. The store
saves time and nothing else: engines hold their own binaries, and whatever is wrong with a file or with the folder, the
binary is made anew. Entries are checked when they are read and appear whole or not at all, so any number of processes
may share a folder. Those that nobody used for the longest time go when the folder grows too large.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from tamis.errors import OutputError
from tamis.files import replaced_file

VARIABLE: Final = "TAMIS_KERNEL_CACHE"
MOST_BYTES: Final = 512 << 20
Kind: TypeAlias = Literal["cubin", "plan"]

_KINDS: tuple[Kind, ...] = ("cubin", "plan")
_OFF = ("off", "0")
_DIGEST_BYTES = 32
# The folder is measured when a process first writes, and again after it has written this part of the limit.
_MEASURED_EVERY = 1 / 16
# How full it is left: were it full, every further entry would cost a look at all of them.
_KEPT = 7 / 8
# What a process that was killed left half written goes after this time.
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class Usage:
    """What lies in a store: how many entries, and their size in bytes."""

    entries: int
    size_bytes: int


class KernelStore:
    """The entries of one folder, which is made when something is first stored.

    ``most_bytes``: about the size that the folder may have.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._unmeasured = most_bytes  # bytes written since the folder was last measured, by this process
        self._lock = threading.Lock()

    def path_of(self, key: str, kind: Kind) -> Path:
        """The file of an entry. ``key`` is text that tells all that the binary depends on."""
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.{kind}"

    def read(self, key: str, kind: Kind) -> bytes | None:
        """The binary that was stored under a key, or None. It counts as used now."""
        path = self.path_of(key, kind)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        binary = content[_DIGEST_BYTES:]
        if not binary or content[:_DIGEST_BYTES] != _digest(key, binary):
            return None
        with contextlib.suppress(OSError):  # a store that may only be read serves all the same
            os.utime(path)
        return binary

    def write(self, key: str, kind: Kind, binary: bytes) -> None:
        """Store a binary, and make room for it. That it cannot be stored is no error."""
        with contextlib.suppress(OSError, OutputError):
            # For its owner alone: who writes here has his code run on the GPU of whoever reads it.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replaced_file(self.path_of(key, kind), durable=False) as file:
                file.write(_digest(key, binary) + binary)
            self._bound(len(binary) + _DIGEST_BYTES)

    def usage(self) -> Usage:
        """Look at the folder; one that does not exist holds nothing."""
        sizes = [size for _, size, _ in self._entries()]
        return Usage(len(sizes), sum(sizes))

    def _bound(self, written: int) -> None:
        """Remove what was not used for the longest time, once there may be too much."""
        with self._lock:
            self._unmeasured += written
            if self._unmeasured < self.most_bytes * _MEASURED_EVERY:
                return
            self._unmeasured = 0
            entries = self._entries()
            size = sum(size for _, size, _ in entries)
            if size > self.most_bytes:
                for _, entry_bytes, path in sorted(entries):
                    if size <= self.most_bytes * _KEPT:
                        break
                    path.unlink(missing_ok=True)  # another process may have been faster
                    size -= entry_bytes
            for path in self.folder.glob(".*.partial"):
                if _last_used(path) < time.time() - _ABANDONED_SECONDS:
                    path.unlink(missing_ok=True)

    def _entries(self) -> list[tuple[float, int, Path]]:
        """When each was last used, its size in bytes and its file."""
        found = []
        for path in (path for kind in _KINDS for path in self.folder.glob(f"*.{kind}")):
            with contextlib.suppress(OSError):  # removed meanwhile
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found


def kernel_store() -> KernelStore | None:
    """The store that this process uses, as the environment says now; None when it is switched off."""
    folder = _folder()
    return None if folder is None else _opened(folder)


def _folder() -> Path | None:
    wanted = os.environ.get(VARIABLE, "")
    if wanted.lower() in _OFF:
        return None
    try:
        if wanted:
            return Path(wanted).expanduser().absolute()
        caches = Path(os.environ.get("XDG_CACHE_HOME", ""))  # relative ones are to be ignored, says its specification
        return (caches if caches.is_absolute() else Path.home() / ".cache") / "tamis" / "kernels"
    except (RuntimeError, OSError):
        return None  # a user without a home


@functools.cache
def _opened(folder: Path) -> KernelStore:
    return KernelStore(folder)


def _digest(key: str, binary: bytes) -> bytes:
    """Of the key too: a file that was given another's name is none of ours."""
    return hashlib.sha256(b"%d\n%b%b" % (len(key.encode()), key.encode(), binary)).digest()


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")
