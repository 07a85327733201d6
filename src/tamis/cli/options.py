"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.errors import ConfigError, InputError

if TYPE_CHECKING:
    import numpy as np

    from tamis.formats import NM

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.", show_default=False)]
EnginePath = Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", help="Cores to use.", show_default=False)]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of random inputs.")]
Precisions = Annotated[
    str,
    typer.Option("--precision", metavar="LIST", help="Precisions that layers may run in: fp32, tf32, bf16, fp16."),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=1x3x224x224",
        help="Shape of an input whose dimensions are symbolic. May be repeated.",
        show_default=False,
    ),
]
TimingCachePath = Annotated[
    Path | None,
    typer.Option("--timing-cache", metavar="FILE", help="Measurements to use and to add to.", show_default=False),
]
RacingBudget = Annotated[float, typer.Option("--budget", metavar="SECONDS", help="Time that racing may take.")]
SearchLevel = Annotated[
    int, typer.Option("--level", metavar="0..5", help="How hard to search: 0 is fast, 5 offers everything.")
]
ExcludedTactics = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude-tactic",
        metavar="NAME",
        help="Tactic that must not be used. May be repeated.",
        show_default=False,
    ),
]
Nvtx = Annotated[
    bool,
    typer.Option(
        "--nvtx", help="Name each step to Nsight Systems by NVTX ranges; runs step by step, not as a CUDA graph."
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=FILE.npy",
        help="Values of an input; FILE.npz gives several by name. Others are random. May be repeated.",
        show_default=False,
    ),
]

_INPUT_FORMS = "give --input NAME=FILE.npy or --input FILE.npz"
_SAMPLE_FORMS = "write the file with numpy.savez('FILE.npz', NAME=array)"


def read_list(text: str) -> list[str]:
    """The parts of a text such as ``a, b``, without empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def read_written(path: Path) -> bytes:
    """A file that ``-o`` of a command wrote. Raises ``ConfigError``."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", remedy="give a file written with -o") from error


def read_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Shapes by input name from texts such as ``image=1x3x224x224``. Raises ``ConfigError``."""
    shapes = {}
    for text in texts or ():
        name, separator, extents = text.rpartition("=")
        if not separator or not name or not all(part.isdecimal() for part in extents.split("x")):
            raise ConfigError(f"the shape '{text}' is not readable", remedy="write it as name=1x3x224x224")
        shapes[name] = tuple(map(int, extents.split("x")))
    return shapes


def read_precisions(text: str) -> tuple[str, ...]:
    """Precisions from a text such as ``fp32,bf16``. Raises ``ConfigError``."""
    from tamis.compiler.config import PRECISION_NAMES

    names = [part.lower() for part in read_list(text)]
    known = {short: str(precision) for short, precision in PRECISION_NAMES.items()}
    known |= {precision: precision for precision in known.values()}
    for name in names or [text]:
        if name not in known:
            raise ConfigError(f"there is no precision '{name}'", remedy="choose among fp32, tf32, bf16 and fp16")
    return tuple(dict.fromkeys(known[name] for name in names))


def read_layer_precisions(texts: Sequence[str] | None) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Precisions by layer from texts such as ``encoder.*=fp32,bf16``. Raises ``ConfigError``."""
    wishes = []
    for text in texts or ():
        name, separator, precisions = text.rpartition("=")
        if not separator or not name or not precisions:
            raise ConfigError(f"the layer precision '{text}' is not readable", remedy="write it as layer=fp32,bf16")
        wishes.append((name, read_precisions(precisions)))
    return tuple(wishes)


def read_pattern(text: str) -> NM:
    """An N:M pattern from a text such as ``2:4``. Raises ``ConfigError``."""
    from tamis.errors import FormatError
    from tamis.formats import NM, parse_pattern

    with suppress(FormatError):
        if isinstance(pattern := parse_pattern(text), NM):
            return pattern
    raise ConfigError(f"'{text}' is not an n:m pattern with 0 < n < m", remedy="write it as 2:4")


def input_files(texts: Sequence[str] | None) -> tuple[Path, ...]:
    """The files that ``--input`` names."""
    return tuple(Path(text.rpartition("=")[2]) for text in texts or ())


def read_inputs(texts: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Arrays by input name from ``name=file.npy`` and ``file.npz``. Raises ``InputError``."""
    arrays: dict[str, np.ndarray] = {}
    for text in texts or ():
        name, separator, file = text.rpartition("=")
        if not separator and not file.endswith(".npz"):
            raise InputError(f"--input {text} does not say which file holds which input", remedy=_INPUT_FORMS)
        arrays.update(_load(name, file, _INPUT_FORMS))
    return arrays


def read_samples(file: Path) -> dict[str, np.ndarray]:
    """The arrays by input name of ``--samples``. Raises ``InputError``."""
    if file.suffix != ".npz":
        raise InputError(f"--samples {file} is no .npz file", remedy=_SAMPLE_FORMS)
    return dict(_load("", str(file), _SAMPLE_FORMS))


def _load(name: str, file: str, remedy: str) -> Mapping[str, np.ndarray]:
    from zipfile import BadZipFile
    from zlib import error as DecompressionError

    import numpy as np

    try:
        loaded: Any = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if not name:
                raise InputError(f"{file} holds one array without a name", remedy=remedy)
            return {name: loaded}
        with loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    except OSError as error:
        raise InputError(f"cannot read the input file {file}: {error.strerror or error}", remedy=remedy) from error
    except (ValueError, EOFError, BadZipFile, DecompressionError) as error:
        # NumPy's own words are not for users: they advise loading what may hold code.
        raise InputError(
            f"the input file {file} holds no arrays of numbers, or is damaged",
            remedy="write it with numpy.save or numpy.savez",
        ) from error
    if name and name not in arrays:
        raise InputError(f"{file} holds {', '.join(arrays)}, not '{name}'", remedy=remedy)
    return {name: arrays[name]} if name else arrays
