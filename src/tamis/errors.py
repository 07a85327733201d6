"""Every error that Tamis shows to a user.

The tree, with the exit code of the command line beside each branch::

    TamisError                  1
    ├── ConfigError             2   an option or a combination of options makes no sense
    ├── ModelError              3   the model file cannot be used
    │   ├── InvalidModel            not an ONNX file, truncated, inconsistent, missing external data
    │   └── UnsupportedModel        well-formed, but uses something Tamis cannot run
    ├── EngineError             4   the engine file cannot be used
    │   ├── CorruptEngine           truncated, altered, not an engine
    │   └── EngineMismatch          made for another device or other library versions
    ├── InputError              5   a tensor given at run time has the wrong name, shape or type
    ├── DeviceError             6   the device cannot do what is asked
    │   ├── MissingLibrary          a library that is needed is not installed or not built
    │   └── DeviceLost              a kernel broke the GPU: this process cannot use it any more
    ├── OutputError             7   a result cannot be written
    ├── BuildError              8   the compiler failed; a bug or a limit of Tamis
    │   └── VerificationError       a pass left the graph inconsistent
    ├── FormatError             9   a sparsity format does not fit the tensor
    └── SparsityError          10   pruning failed or zeros were lost

Exit code 1 alone also means "the answer is no": a comparison or a check that did not hold.

A message is one line: where (the layer), what (the cause), and what to do (the remedy).
"""

from __future__ import annotations


class TamisError(Exception):
    """Base of all errors raised on purpose.

    Args:
        cause: what went wrong, a sentence without a full stop.
        layer: the layer or node concerned, when there is one.
        remedy: what the user can do about it, a sentence without a full stop.
    """

    exit_code = 1

    def __init__(self, cause: str, *, layer: str | None = None, remedy: str | None = None) -> None:
        self.cause = cause
        self.layer = layer
        self.remedy = remedy
        where = f"layer '{layer}': " if layer else ""
        what_to_do = f". {remedy[:1].upper()}{remedy[1:]}" if remedy else ""
        super().__init__(f"{where}{cause}{what_to_do}".replace("\n", " "))


class ConfigError(TamisError):
    """An option, or a combination of options, makes no sense."""

    exit_code = 2


class ModelError(TamisError):
    """The model file cannot be used."""

    exit_code = 3


class InvalidModel(ModelError):
    """The file is not an ONNX model, is truncated or contradicts itself."""


class UnsupportedModel(ModelError):
    """The model is well-formed but uses something that Tamis cannot run."""


class EngineError(TamisError):
    """The engine file cannot be used."""

    exit_code = 4


class CorruptEngine(EngineError):
    """The file is not an engine, is truncated or was altered."""


class EngineMismatch(EngineError):
    """The engine was made for another device or for other library versions."""


class InputError(TamisError):
    """A tensor given at run time has a wrong name, shape or type."""

    exit_code = 5


class DeviceError(TamisError):
    """The device is absent or cannot do what is asked of it."""

    exit_code = 6


class MissingLibrary(DeviceError):
    """A library that is needed is not installed, or was not built."""


class DeviceLost(DeviceError):
    """A kernel broke the GPU: every later call of this process to it fails.

    Args:
        cause: what happened, as in ``TamisError``.
        layer: the layer that was being measured, if one was.
        remedy: as in ``TamisError``.
        tactic: the tactic that broke it; empty if unknown.
        culprit: key in the timing cache of what broke it; empty if unknown.
        symptom: the first line of the error that showed it.
    """

    def __init__(
        self,
        cause: str,
        *,
        layer: str | None = None,
        remedy: str | None = None,
        tactic: str = "",
        culprit: str = "",
        symptom: str = "",
    ) -> None:
        super().__init__(cause, layer=layer, remedy=remedy)
        self.tactic = tactic
        self.culprit = culprit
        self.symptom = symptom


class OutputError(TamisError):
    """A result cannot be written."""

    exit_code = 7


class BuildError(TamisError):
    """The compiler failed: a limit or a bug of Tamis, never the user's fault alone."""

    exit_code = 8


class VerificationError(BuildError):
    """A pass left the graph inconsistent."""


class FormatError(TamisError):
    """A sparsity format does not fit the tensor it is applied to."""

    exit_code = 9


class SparsityError(TamisError):
    """Pruning failed, or zeros that should be there were lost."""

    exit_code = 10


def first_line(error: BaseException) -> str:
    """What an error of another library says first; some go on for pages."""
    return str(error).strip().partition("\n")[0]
