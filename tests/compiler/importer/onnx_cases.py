"""ONNX's own node tests, run through the importer and the NumPy evaluation.

Run this file to print what passes and what is refused, operator by operator, with the reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.evaluate import run
from tamis.compiler.ir.verify import verify
from tamis.errors import ConfigError, UnsupportedModel


@dataclass(frozen=True)
class Result:
    """What became of one case: "passed", "refused" with the message, or "failed" with the cause."""

    name: str
    operator: str
    outcome: str
    detail: str = ""


def to_numpy(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def operator_of(model: onnx.ModelProto) -> str:
    """The operator a case is about; "(expanded)" for the cases that spell out an operator's definition."""
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    return nodes[0].op_type if len(nodes) == 1 else "(expanded)"


def has_only_tensors(model: onnx.ModelProto) -> bool:
    return all(
        value.type.WhichOneof("value") == "tensor_type" and value.type.tensor_type.elem_type != onnx.TensorProto.STRING
        for value in [*model.graph.input, *model.graph.output]
    )


def with_constants(model: onnx.ModelProto, inputs: Sequence[Any], constant: set[str]) -> onnx.ModelProto:
    """The model with some of its inputs fixed, as exporters fix axes, shapes and the like."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value, array in zip(model.graph.input, inputs, strict=False):
        if value.name in constant:
            tensor = array
            if not isinstance(array, onnx.TensorProto):
                tensor = numpy_helper.from_array(np.asarray(array))
            added = copy.graph.initializer.add()
            added.CopyFrom(tensor)
            added.name = value.name
    return copy


def ways_to_fix(names: Sequence[str], empty: set[str]) -> Iterator[set[str]]:
    """Which inputs to fix, fewest first; at least one stays a run-time value where there are several."""
    yield empty
    for first in range(len(names) - 1, 0, -1):
        yield empty | set(names[first:])
    for name in names:
        yield empty | (set(names) - {name})


def run_case(case: Any, inputs: Sequence[Any]) -> Mapping[str, np.ndarray]:
    names = [value.name for value in case.model.graph.input]
    given = list(zip(names, inputs, strict=False))
    empty = {name for name, array in given if isinstance(array, np.ndarray) and array.size == 0}
    refusal: Exception | None = None
    for constant in ways_to_fix(names, empty):
        try:
            graph = import_onnx(with_constants(case.model, inputs, constant))
        except (UnsupportedModel, ConfigError) as error:
            refusal = refusal or error
            continue
        verify(graph)
        return run(graph, {name: to_numpy(array) for name, array in given if name not in constant})
    assert refusal is not None
    raise refusal


def compare(case: Any, got: Mapping[str, np.ndarray], expected: Sequence[Any]) -> None:
    for output, reference in zip(case.model.graph.output, expected, strict=False):
        want, have = to_numpy(reference), got[output.name]
        assert have.shape == want.shape, f"{output.name}: shape {have.shape}, not {want.shape}"
        assert have.dtype == want.dtype, f"{output.name}: {have.dtype}, not {want.dtype}"
        # Tamis computes in float32 what the reference computes in the narrower type.
        loss = {"bfloat16": 8e-3, "float16": 2e-3}.get(want.dtype.name, 1e-4)
        np.testing.assert_allclose(
            have.astype(np.float64),
            want.astype(np.float64),
            rtol=max(case.rtol, loss),
            atol=max(case.atol, loss * 0.1),
        )


def run_one(case: Any) -> Result:
    operator = operator_of(case.model)
    try:
        for inputs, expected in case.data_sets:
            compare(case, run_case(case, inputs), expected)
    except (UnsupportedModel, ConfigError) as error:
        return Result(case.name, operator, "refused", str(error))
    except AssertionError as error:
        return Result(case.name, operator, "failed", str(error))
    return Result(case.name, operator, "passed")


@cache
def results() -> tuple[Result, ...]:
    """The results of all cases on tensors of numbers; those on sequences and strings are left out."""
    return tuple(run_one(case) for case in collect_testcases(None) if has_only_tensors(case.model))


if __name__ == "__main__":
    found = results()
    print(dict(Counter(result.outcome for result in found)))
    for (operator, outcome), count in sorted(Counter((r.operator, r.outcome) for r in found).items()):
        print(f"{operator:32} {outcome:8} {count}")
    for result in found:
        if result.outcome != "passed":
            print(f"{result.name} {result.outcome}: {result.detail[:200]}")
