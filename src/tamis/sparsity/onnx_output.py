"""Write an ONNX file and its external data whole, never over the data of another model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tamis.errors import ConfigError, InvalidModel, OutputError
from tamis.files import replaced_files
from tamis.onnx_files import external_files, load_model

_ANOTHER_PATH = "choose another output path"


def data_of(path: Path) -> Path:
    """Where the external data of an ONNX file lies that Tamis writes."""
    return path.with_name(f"{path.name}.data")


def require_place(path: str | os.PathLike[str]) -> None:
    """Raise `OutputError` if no file can be written at `path`, as far as that can be told beforehand."""
    try:
        target = Path(path).resolve()
        if target.is_dir():
            raise OutputError(f"{path} is a directory", remedy="give the path of the file to write")
        if not target.parent.is_dir():
            raise OutputError(f"cannot write {path}: its folder does not exist", remedy="create the folder first")
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, links in a circle, no name at all
        why = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {str(path)!r}: {why}", remedy=_ANOTHER_PATH) from error


def require_free(path: str | os.PathLike[str], needed: Iterable[Path]) -> None:
    """Raise `ConfigError` if a model written to `path`, or its external data, would replace a file that is needed."""
    target = Path(path).resolve()
    for file in needed:
        for place, what in ((target, "the output"), (data_of(target), f"'{data_of(target).name}', beside the output,")):
            with suppress(OSError):  # one of them is not there
                if place.samefile(file):
                    raise ConfigError(
                        f"{what} would replace '{file}', which the model that is read needs", remedy=_ANOTHER_PATH
                    )


@contextmanager
def onnx_output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A draft of an ONNX file to write, its external data beside it; in its place at the end, or without a trace.

    Raises:
        OutputError: the files cannot be written, or data beside `path` is not that of the model at `path`.
    """
    require_place(path)
    given = Path(path).absolute()
    target = given.resolve()
    with replaced_files(target) as draft:
        yield draft
        for file in draft.parent.iterdir():
            place = target.with_name(file.name)
            if file == draft:
                continue
            if given.parent.resolve() != target.parent:
                raise OutputError(
                    f"{path} is a link to another folder, where its external data would not be found",
                    remedy="give the path of the file itself",
                )
            if os.path.lexists(place) and not _owns(target, place):
                raise OutputError(
                    f"{place} exists, and is not the data of {path}",
                    remedy="another model may need it: choose another output path, or remove it",
                )


def _owns(model: Path, data: Path) -> bool:
    """Whether the ONNX file that is to be replaced keeps its tensors in `data`."""
    try:
        return model.exists() and data.name in external_files(load_model(model, mapped=True)[0])
    except InvalidModel:
        return False
