"""Every ``aten`` kernel against the NumPy meaning of its operator."""

from __future__ import annotations

import re
from typing import Any, get_args

import numpy as np
import pytest
import torch

from operator_cases import CASES, Case
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.ops import BINARY_KINDS, UNARY_KINDS, Elementwise, Op
from tamis.compiler.tactics.base import attributes_of
from tamis.devices.aten import kernels as aten
from tamis.devices.aten.pointwise import BINARY, UNARY
from tamis.devices.base import BoundShape
from tamis.devices.cpu import CpuDevice
from tamis.engine.plan import Format, Step
from tamis.errors import DeviceError
from tamis.formats.dtype import DType

DEVICE = CpuDevice(threads=2)
FLOATS = (DType.FLOAT32, DType.BFLOAT16)


def kernel_name(op: Any) -> str:
    return "aten." + re.sub(r"(?<!^)(?<![A-Z])(?=[A-Z])", "_", type(op).__name__).lower()


def _stored(array: np.ndarray, precision: DType) -> np.ndarray:
    return array.astype(precision.numpy) if array.dtype == np.float32 else array


def _format(array: np.ndarray, channels_last: bool) -> Format:
    layout = "channels_last" if channels_last and array.ndim in (4, 5) else "row_major"
    return Format(DType.of(array), layout)  # type: ignore[arg-type]


class Run:
    """One kernel, bound and run once."""

    def __init__(
        self, case: Case, precision: DType = DType.FLOAT32, channels_last: bool = False, into: bool = False,
        attributes: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        arrays = [_stored(array, precision) for array in case.arrays()]
        # The reference sees the very values the kernel gets, in float32.
        exact = [a.astype(np.float32) if DType.of(a) == DType.BFLOAT16 else a for a in arrays]
        self.expected = evaluate(case.op, exact)
        names = [f"const{i}" if i in case.constants else f"in{i}" for i in range(len(arrays))]
        values = [i for i in range(len(arrays)) if i not in case.constants]
        known = sorted(case.constants)
        arguments = [
            f"const{known.index(i)}" if i in case.constants else f"in{values.index(i)}" for i in range(len(arrays))
        ]
        self.attributes = attributes_of(case.op) | {"arguments": arguments} | (attributes or {})
        step = Step(case.name, kernel_name(case.op), tuple(names[i] for i in values),
                    tuple(f"out{i}" for i in range(len(self.expected))), tuple(names[i] for i in known),
                    self.attributes)  # fmt: skip
        constants = {names[i]: DEVICE.upload(arrays[i]) for i in known}
        slots: list[Any] = []
        inputs, outputs = [], []
        for i in values:
            format = _format(arrays[i], channels_last)
            tensor = DEVICE.empty(arrays[i].shape, format)
            tensor.copy_(DEVICE.upload(arrays[i]))
            inputs.append(BoundShape(len(slots), arrays[i].shape, format))
            slots.append(tensor)
        for array in self.expected:
            format = _format(_stored(array, precision), channels_last)
            outputs.append(BoundShape(len(slots), array.shape, format, preallocated=into))
            slots.append(self._poisoned(array.shape, format) if into else None)
        self.step, self.constants, self.inputs, self.outputs = step, constants, inputs, outputs
        before = [DEVICE.download(slots[b.slot]) for b in inputs]
        known_before = {name: DEVICE.download(tensor) for name, tensor in constants.items()}
        given = [slots[b.slot] for b in outputs]
        runner = DEVICE.bind(step, constants, inputs, outputs)
        with torch.inference_mode():
            runner(slots)
            runner(slots)
        for bound, old in zip(inputs, before, strict=True):
            assert DEVICE.download(slots[bound.slot]).tobytes() == old.tobytes(), "an input was modified"
        for name, old in known_before.items():
            assert DEVICE.download(constants[name]).tobytes() == old.tobytes(), "a constant was modified"
        self.results = [slots[b.slot] for b in outputs]
        self.sources = [slots[b.slot] for b in inputs] + list(constants.values())
        if into:
            assert all(a is b for a, b in zip(given, self.results, strict=True))

    @staticmethod
    def _poisoned(shape: tuple[int, ...], format: Format) -> torch.Tensor:
        tensor = DEVICE.empty(shape, format)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 99)

    def check(self, relative: float, exact: bool) -> None:
        for result, reference, bound in zip(self.results, self.expected, self.outputs, strict=True):
            expected = reference
            assert tuple(result.shape) == expected.shape
            got = DEVICE.download(result)
            assert DType.of(got) == bound.format.dtype
            order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(expected.ndim)
            if bound.format.layout == "channels_last":
                assert result.is_contiguous(memory_format=order)
            else:
                assert result.is_contiguous()
            if not DType.of(expected).is_float:
                np.testing.assert_array_equal(got, expected)
                continue
            got, expected = got.astype(np.float64), expected.astype(np.float64)
            if exact:
                np.testing.assert_array_equal(got, expected)
                continue
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
            np.testing.assert_array_equal(np.isinf(got), np.isinf(expected))
            finite = np.isfinite(expected)
            scale = max(float(np.abs(expected[finite]).max(initial=0.0)), 1e-3)
            error = float(np.abs(got[finite] - expected[finite]).max(initial=0.0)) / scale
            assert error <= relative, f"relative error {error}"


ids = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_float32(case: Case) -> None:
    Run(case).check(2e-5, case.exact)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_into_poisoned_memory(case: Case) -> None:
    Run(case, into=True).check(2e-5, case.exact)


IMAGES = [case for case in CASES if any(array.ndim in (4, 5) for array in case.arrays())]


@pytest.mark.parametrize("case", IMAGES, ids=[case.name for case in IMAGES])
@pytest.mark.parametrize("into", [False, True])
def test_channels_last(case: Case, into: bool) -> None:
    Run(case, channels_last=True, into=into).check(2e-5, case.exact)


HALF = [
    case
    for case in CASES
    if any(array.dtype == np.float32 for array in case.arrays()) and not case.name.startswith(("quantize", "cast"))
]


@pytest.mark.parametrize("case", HALF, ids=[case.name for case in HALF])
@pytest.mark.parametrize("into", [False, True])
def test_bfloat16(case: Case, into: bool) -> None:
    run = Run(case, DType.BFLOAT16, into=into)
    if case.name.startswith("arg_reduce"):
        run.check(0, True)
        return
    run.check(0.03, False)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_strided_results_and_honest_aliases(case: Case) -> None:
    run = Run(case, attributes={"strided": True})
    for result, expected in zip(run.results, run.expected, strict=True):
        assert tuple(result.shape) == expected.shape
        shares = any(
            result.untyped_storage().data_ptr() == source.untyped_storage().data_ptr() != 0 for source in run.sources
        )
        assert not shares or DEVICE.may_alias(run.step)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_support_of_given_memory_is_real(case: Case) -> None:
    run = Run(case)
    prepared = aten.prepare(run.step, run.constants, run.inputs, run.outputs)
    if not DEVICE.writes_into_memory(run.step):
        assert prepared.into is None or DEVICE.may_alias(run.step) or case.name.startswith("split")
        return
    # A program that changes shape or type half-way cannot write everything in one place, and torch reduces
    # only floating point into given memory.
    program = getattr(case.op, "program", getattr(case.op, "epilogue", ()))
    excused = len(program) > 1 or case.name in ("linear-widening", "reduce-integers", "reduce-int32-sum")
    assert prepared.into is not None or excused


def test_every_operator_has_a_kernel_and_a_case() -> None:
    operators = {kernel_name(kind.__new__(kind)) for kind in get_args(Op)}
    assert operators | {"aten.convert"} == {f"aten.{name}" for name in aten.KERNELS}
    assert {kernel_name(case.op) for case in CASES} == operators


def test_every_pointwise_kind_has_a_case() -> None:
    assert set(UNARY) == set(UNARY_KINDS)
    assert set(BINARY) == set(BINARY_KINDS)
    seen = {step.kind for case in CASES if isinstance(case.op, Elementwise) for step in case.op.program}
    assert seen == set(UNARY_KINDS) | set(BINARY_KINDS)


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("target", [Format(d, layout) for d in FLOATS for layout in ("row_major", "channels_last")])  # type: ignore[arg-type]
@pytest.mark.parametrize("source", [Format(d, layout) for d in FLOATS for layout in ("row_major", "channels_last")])  # type: ignore[arg-type]
def test_convert(source: Format, target: Format, into: bool) -> None:
    x = DEVICE.empty((2, 3, 4, 5), source).copy_(torch.arange(120).reshape(2, 3, 4, 5))
    slots: list[Any] = [x, DEVICE.empty((2, 3, 4, 5), target).fill_(float("nan")) if into else None]
    shape = (2, 3, 4, 5)
    runner = DEVICE.bind(
        Step("c", "aten.convert", ("x",), ("y",), attributes={"arguments": ["in0"]}),
        {},
        [BoundShape(0, shape, source)],
        [BoundShape(1, shape, target, preallocated=into)],
    )
    with torch.inference_mode():
        runner(slots)
    expected = DEVICE.empty(shape, target).copy_(x)
    assert slots[1].dtype is expected.dtype and slots[1].stride() == expected.stride()
    assert torch.equal(slots[1], expected)


def test_nan_passes_through() -> None:
    x = torch.tensor([float("nan"), 1.0])
    for kind in ("relu", "clip", "gelu", "max"):
        program = [
            {
                "kind": kind,
                "params": [0.0, 2.0] if kind == "clip" else [],
                "operand": 1 if kind == "max" else None,
            }
        ]
        slots: list[Any] = [x, torch.zeros(2), None]
        shapes = [BoundShape(0, (2,), Format()), BoundShape(1, (2,), Format())]
        step = Step(kind, "aten.elementwise", ("a", "b"), ("y",), attributes={"program": program})
        DEVICE.bind(step, {}, shapes, [BoundShape(2, (2,), Format())])(slots)
        assert torch.isnan(slots[2]).tolist() == [True, False]


def test_unknown_kernels_name_the_layer() -> None:
    for kernel in ("aten.nothing", "nobody.conv"):
        with pytest.raises(DeviceError, match="layer 'stem'"):
            DEVICE.bind(Step("stem", kernel, (), ("y",)), {}, [], [BoundShape(0, (1,), Format())])


def test_mixed_types_are_refused() -> None:
    shapes = [BoundShape(0, (2, 4), Format()), BoundShape(1, (4, 3), Format(DType.BFLOAT16))]
    with pytest.raises(DeviceError, match="layer 'product'"):
        DEVICE.bind(Step("product", "aten.mat_mul", ("a", "b"), ("y",)), {}, shapes, [BoundShape(2, (2, 3), Format())])
