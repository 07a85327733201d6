"""Tamis: an inference compiler and runtime for structurally sparse neural networks.

::

    engine = tamis.build("model.onnx", output="model.tamis")
    session = tamis.load("model.tamis")
    outputs = session.run({"input": array})

Everything is loaded when it is first used, so ``import tamis`` itself is quick.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from tamis import errors, sparsity
    from tamis.compiler.config import BuildConfig
    from tamis.engine import Engine
    from tamis.engine import read as read_engine
    from tamis.engine import save as save_engine
    from tamis.errors import TamisError
    from tamis.report import Explanation
    from tamis.runtime import Session

__version__ = "0.1.0"

__all__ = [
    "BuildConfig",
    "Engine",
    "Session",
    "TamisError",
    "__version__",
    "build",
    "errors",
    "explain",
    "load",
    "read_engine",
    "save_engine",
    "sparsity",
]

# Where each public name comes from: a module, and the name in it (empty for the module itself).
_LAZY = {
    "BuildConfig": ("tamis.compiler.config", "BuildConfig"),
    "Engine": ("tamis.engine", "Engine"),
    "Session": ("tamis.runtime", "Session"),
    "TamisError": ("tamis.errors", "TamisError"),
    "errors": ("tamis.errors", ""),
    "read_engine": ("tamis.engine", "read"),
    "save_engine": ("tamis.engine", "save"),
    "sparsity": ("tamis.sparsity", ""),
}


def build(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    config: BuildConfig | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int, int, str], None] | None = None,
    **options: Any,
) -> Engine:
    """Compile an ONNX model into an engine.

    Args:
        model: path of the ONNX file, its bytes, or a parsed model.
        config: all options at once; None for the defaults.
        output: where to save the engine; None to keep it in memory.
        progress: called with the stage, how much of it is done, how much there is, and what is being done.
        options: fields of ``BuildConfig`` that replace those of ``config``.

    Raises ``ConfigError``, ``ModelError``, ``DeviceError``, ``BuildError`` or ``OutputError``.
    """
    from dataclasses import fields, replace
    from pathlib import Path

    from tamis import compiler
    from tamis.compiler.config import BuildConfig as Config
    from tamis.engine import check_output, save
    from tamis.errors import ConfigError
    from tamis.onnx_files import files_of

    unknown = sorted(options.keys() - {field.name for field in fields(Config)})
    if unknown:
        alike = [field.name for field in fields(Config) if unknown[0] in field.name or field.name in unknown[0]]
        meant = f"did you mean '{alike[0]}'? See" if alike else "see"
        raise ConfigError(f"there is no build option '{unknown[0]}'", remedy=f"{meant} tamis.BuildConfig")
    model = Path(model) if isinstance(model, os.PathLike) else model
    if output is not None:
        check_output(output, files_of(model) if isinstance(model, str | Path) else ())
    engine = compiler.build(model, replace(config or Config(), **options), progress)
    if output is not None:
        if progress is not None:
            progress("save", 0, 1, str(output))
        save(engine, output)
    return engine


def load(engine: Engine | str | os.PathLike[str], **options: Any) -> Session:
    """A session that runs an engine, given as such or as the path of its file.

    ``options`` are those of ``Session``: ``threads``, ``device``, ``nvtx``. Raises ``EngineError``.
    """
    from tamis.runtime import Session as Loaded

    return Loaded(engine, **options)


def explain(engine: Engine | str | os.PathLike[str]) -> Explanation:
    """Whether sparsity made an engine faster or why not, and how the tactics raced for each layer.

    Args:
        engine: as such or as the path of its file. Neither its model nor its device is needed.

    Print the result to read what ``tamis explain`` prints; its ``verdict`` and ``data`` are for programs. Raises
    ``EngineError``.
    """
    from tamis.engine import Engine as Known
    from tamis.engine import read
    from tamis.report import explanation

    return explanation(engine if isinstance(engine, Known) else read(engine))


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tamis' has no attribute '{name}'")
    module, attribute = _LAZY[name]
    value = import_module(module)
    return getattr(value, attribute) if attribute else value


def __dir__() -> list[str]:
    return __all__
