"""Running one model in ONNX Runtime and in an engine, and comparing values of the same name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tamis.engine import Engine
from tamis.errors import ConfigError, InputError, InvalidModel, MissingLibrary, ModelError, first_line
from tamis.report import Deviation, deviation
from tamis.runtime import Session, random_inputs


@dataclass(frozen=True)
class Limits:
    """How far results may be from their reference."""

    cosine: float
    relative: float


def limits(engine: Engine, cosine: float | None, relative: float | None) -> Limits:
    """The given limits, or those that suit the precisions that an engine runs in. Raises ``ConfigError``."""
    if cosine is not None and not -1.0 <= cosine <= 1.0:  # NaN neither
        raise ConfigError(f"the least cosine is {cosine:g}", remedy="give a number from -1 to 1")
    if relative is not None and not relative >= 0:
        raise ConfigError(f"the largest error is {relative:g}", remedy="give a number of at least 0")
    exact = all(not s.precision.is_float or s.precision.size_bytes >= 4 for s in engine.plan.steps)
    return Limits(
        cosine=(0.99999 if exact else 0.999) if cosine is None else cosine,
        relative=(1e-3 if exact else float("inf")) if relative is None else relative,
    )


def compare_with_onnxruntime(
    model: Path,
    engine: Engine,
    given: Mapping[str, np.ndarray],
    *,
    layers: bool,
    limits: Limits,
    threads: int | None = None,
    seed: int = 0,
) -> tuple[list[Deviation], list[Deviation] | None]:
    """Deviations of all outputs and, with ``layers``, of the inner values that both have, in order.

    Inputs that are not given are random. Raises ``MissingLibrary`` without ONNX Runtime, ``ModelError``
    when it cannot run the model, and ``InputError`` when model and engine do not have the same inputs, or ONNX
    Runtime's outputs hold NaN.
    """
    session = Session(engine, threads=threads)
    inputs = random_inputs(engine.plan.inputs, seed, given)
    outputs = [port.name for port in engine.plan.outputs]
    buffers = {buffer.name: buffer.shape for buffer in engine.plan.buffers}
    inner = [name for name in _inner_values(model) if name in buffers and name not in outputs] if layers else []
    expected = _reference(model, inputs, outputs, inner, session.threads)
    if no_numbers := [name for name in outputs if np.isnan(expected[name].astype(np.float64)).any()]:
        raise InputError(
            f"by ONNX Runtime the output '{no_numbers[0]}' holds NaN, which equals nothing",
            remedy="give inputs for which the model computes numbers",
        )
    results = session.run(inputs)

    def judged(name: str, result: np.ndarray) -> Deviation:
        return deviation(name, result, expected[name], cosine=limits.cosine, relative=limits.relative)

    compared = [judged(name, results[name]) for name in outputs]
    if not layers:
        return compared, None
    seen = frozenset(name for name in inner if expected[name].shape == buffers[name])
    return compared, [judged(name, value) for name, value in session.trace(inputs, seen)]


def _reference(
    model: Path, inputs: Mapping[str, np.ndarray], outputs: list[str], inner: list[str], threads: int
) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes for outputs and inner values."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingLibrary(
            "the comparison needs ONNX Runtime, which is not installed",
            remedy="run 'pip install onnxruntime'",
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source: Any = str(model)
    if inner:
        source = _with_outputs(model, inner)
        folder = str(model.absolute().parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own errors share no other base
        raise _refusal(model, inputs, f"ONNX Runtime cannot load {model}: {_plain(error)}") from error
    _check_inputs(session, inputs)
    names = [*outputs, *inner]
    try:
        values = session.run(names, dict(inputs))
    except Exception as error:
        raise InvalidModel(
            f"ONNX Runtime cannot run {model} on the engine's inputs: {_plain(error)}",
            remedy="give the model that the engine was built from",
        ) from error
    return dict(zip(names, values, strict=True))


def _refusal(model: Path, inputs: Mapping[str, np.ndarray], cause: str) -> ModelError:
    """What a build says of a model that cannot be used; ``cause`` where a build would take it."""
    from tamis.compiler import import_onnx

    try:
        import_onnx(model, {name: array.shape for name, array in inputs.items()})
    except ModelError as error:
        return error
    except ConfigError:
        pass  # other inputs than the engine has, which is not what is wrong here
    return InvalidModel(cause, remedy="check it with onnx.checker.check_model(path, full_check=True)")


def _plain(error: Exception) -> str:
    """The first line of an error of ONNX Runtime, without its number and code."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first_line(error))


def _check_inputs(session: Any, inputs: Mapping[str, np.ndarray]) -> None:
    names = [port.name for port in session.get_inputs()]
    if set(names) != set(inputs):
        raise InputError(
            f"the model has the inputs {', '.join(names)}, the engine {', '.join(inputs)}",
            remedy="give the model that the engine was built from",
        )


def _inner_values(model: Path) -> list[str]:
    """Names of all values that nodes of the model compute, in order."""
    return [name for node in _load(model).graph.node for name in node.output if name]


def _with_outputs(model: Path, names: list[str]) -> bytes:
    """The model with more of its values as outputs; weights in files of their own stay there."""
    from onnx import helper

    proto = _load(model)
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    serialized: bytes = proto.SerializeToString()
    return serialized


def _load(model: Path) -> Any:
    import onnx

    try:
        return onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf's and the file system's errors alike
        raise _refusal(model, {}, f"cannot read {model}") from error
