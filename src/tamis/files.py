"""Files: written whole or not at all; JSON of a format version."""

from __future__ import annotations

import errno
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tamis.errors import ConfigError, OutputError


@contextmanager
def replaced_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` at the end, or leaves no trace when anything fails.

    Readers see the old file or the whole new one. ``durable``: so does who looks after a loss of power, which takes
    milliseconds; caches that check what they read do without. Raises ``OutputError`` when the file cannot be written.
    """
    try:
        target = Path(path).resolve()
        if target.exists() and not target.is_file():
            raise OutputError(f"{path} exists and is not a file", remedy="choose another output path")
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        opened = temporary.open("xb")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with opened as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(target)
        if durable:
            _sync_folder(target.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replaced_files(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A draft of ``path`` to write, and files beside it under names of their own.

    At the end they take their places beside ``path``, the draft last; when anything fails, all is as it was. ``path``
    may be a link, whose target is then replaced. Raises ``OutputError`` when the files cannot be written.
    """
    try:
        target = Path(path).resolve()
        if target.exists() and not target.is_file():
            raise OutputError(f"{path} exists and is not a file", remedy="choose another output path")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
            draft = Path(folder) / target.name
            yield draft
            _install([*sorted(file for file in draft.parent.iterdir() if file != draft), draft], target.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def _install(files: Sequence[Path], folder: Path) -> None:
    """Move files that belong together into a folder: all, or none."""
    for file in files:
        if (folder / file.name).is_dir():
            raise OutputError(f"{folder / file.name} is a directory", remedy="choose another output path")
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    before = files[0].parent / "before"
    if len(files) > 1:
        before.mkdir()
        # the last file refers to the others: while they change, there is none
        old = [folder / file.name for file in reversed(files) if os.path.lexists(folder / file.name)]
    else:
        old = []
    moved: list[Path] = []
    try:
        for place in old:
            place.replace(before / place.name)
            moved.append(place)
        for file in files:
            file.replace(folder / file.name)
        _sync_folder(folder)
    except BaseException:
        for file in files if len(files) > 1 else ():
            if not file.exists():
                (folder / file.name).unlink(missing_ok=True)
        for place in moved:
            (before / place.name).replace(place)
        raise


def _unwritable(path: str | os.PathLike[str], error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}", remedy=_remedy(path, error))


def _remedy(path: str | os.PathLike[str], error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and not Path(path).resolve().parent.exists():
        return "create the folder first"
    if isinstance(error, PermissionError):
        return "choose a folder that you may write to"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "free some space or choose another output path" if full else "choose another output path"


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def versioned_json(text: str | bytes, name: str, what: str, version: int, remedy: str) -> dict[str, Any]:
    """The data of a JSON text that carries its format ``version``.

    Args:
        text: an object with the key ``version``.
        name: what to call the text in errors.
        what: it must be, with its article.
        version: that is read.
        remedy: for anything else.

    Raises ``ConfigError``.
    """
    try:
        data: dict[str, Any] = json.loads(text)
        found = data["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{name} is not {what}", remedy=remedy) from error
    if found != version:
        raise ConfigError(
            f"{name} is {what} of format version {found}, this Tamis reads version {version}",
            remedy="measure again with this version",
        )
    return data
