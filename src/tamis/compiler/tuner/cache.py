"""The timing cache: what was measured, in a file that people can read and merge.

The file is JSON: one object for each device (hardware, library versions, thread count), in it one line for
each thing measured, under a key that says in words what it was. Entries of other devices are kept and
ignored. A file that cannot be read is an error only if it is not JSON at all; unknown versions are skipped
with a word. Saving merges with what another build may have written meanwhile.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tamis.engine.plan import Accuracy, DeviceInfo, Timing
from tamis.errors import ConfigError, OutputError
from tamis.files import replaced_file

CACHE_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One entry: a timing, an accuracy, or a failure in words; ``number`` and ``numbers`` for other figures.

    ``build``: of which build alone the failure speaks.
    """

    timing: Timing | None = None
    accuracy: Accuracy | None = None
    failure: str = ""
    number: float | None = None
    numbers: Mapping[str, float] | None = None
    build: str = ""


class TimingCache:
    """Measurements of one device, backed by a file or only by memory.

    Raises ``OutputError`` for a file that cannot be written, before anything is measured for it.
    ``changed``: whether anything was measured since it was opened.
    """

    def __init__(self, path: Path | None, device: DeviceInfo, threads: int) -> None:
        self.path = path
        if path is not None:
            _check_place(path)
        self.changed = False
        self._device = fingerprint(device, threads)
        self._entries: dict[str, Measurement] = {}
        for key, entry in _read(path).get("devices", {}).get(self._device, {}).items():
            self._entries[key] = _decode(entry)

    def get(self, key: str) -> Measurement | None:
        """What was measured under ``key`` on this device, if anything."""
        return self._entries.get(key)

    def put(self, key: str, measurement: Measurement) -> Measurement:
        """Remember a measurement; returns it as it will be read back."""
        self._entries[key] = measurement
        self.changed = True
        return measurement

    def save(self) -> None:
        """Merge into the file, atomically. Does nothing without a file or news. Raises ``OutputError``."""
        if self.path is not None and self.changed:
            self.merge_into(self.path)

    def merge_into(self, path: Path) -> None:
        """Merge into a file, atomically. Raises ``OutputError``."""
        content = _read(path)
        devices = content.setdefault("devices", {})
        content["version"] = CACHE_VERSION
        mine = devices.setdefault(self._device, {})
        mine.update({key: _encode(entry) for key, entry in self._entries.items()})
        text = json.dumps(content, indent=0, sort_keys=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(path) as file:
                file.write(text.encode())
        except (OSError, OutputError) as error:
            raise _not_kept(path, error) from error


def fingerprint(device: DeviceInfo, threads: int) -> str:
    """The device as text: what must be equal for a measurement to count."""
    libraries = " ".join(f"{name}={version}" for name, version in sorted(device.libraries.items()))
    features = "+".join(device.features)
    return f"{device.kind} | {device.name} | {device.architecture} | {features} | {threads} threads | {libraries}"


def short_hash(*parts: str | bytes) -> str:
    """Sixteen hexadecimal digits that stand for the parts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def digest_of(array: np.ndarray) -> str:
    """Sixteen hexadecimal digits that stand for an array's type, shape and content."""
    content = np.ascontiguousarray(array)
    digest = hashlib.blake2b(f"{content.dtype}{content.shape}".encode(), digest_size=8)
    if content.size:
        digest.update(content.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _check_place(path: Path) -> None:
    """Raise ``OutputError`` if nothing can be written where a file is, or will be once its folders are made."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_kept(path, error) from error


def _not_kept(path: Path, error: OSError | OutputError) -> OutputError:
    cause = error.cause if isinstance(error, OutputError) else f"cannot write {path}: {error.strerror}"
    return OutputError(f"the timing cache is not kept: {cause}", remedy="choose another file with --timing-cache")


def _read(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"the timing cache {path} is not readable", remedy="delete it or name another file"
        ) from error
    if not isinstance(content, dict) or (content and not isinstance(content.get("devices"), dict)):
        # JSON of another kind: saving would take its place
        raise ConfigError(f"{path} is not a timing cache", remedy="name another file")
    if content.get("version") != CACHE_VERSION:
        warnings.warn(f"timing cache {path} has another format version; its entries are skipped", stacklevel=2)
        return {}
    return content


def _encode(entry: Measurement) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(entry).items() if value not in (None, "")}


def _decode(entry: dict[str, Any]) -> Measurement:
    timing, accuracy = entry.get("timing"), entry.get("accuracy")
    return Measurement(
        Timing(**timing) if timing else None,
        Accuracy(**accuracy) if accuracy else None,
        entry.get("failure", ""),
        entry.get("number"),
        entry.get("numbers"),
        entry.get("build", ""),
    )
