"""All of ONNX's node tests on tensors of numbers: each passes, or is refused for a reason listed here."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from tamis.compiler.importer.table import OPERATORS

sys.path.insert(0, str(Path(__file__).parent))
from onnx_cases import Result, results

# Operators that Tamis does not have, with the reason. Every case of theirs must be refused by name.
NOT_SUPPORTED = {
    "Adagrad": "training",
    "Adam": "training",
    "ArrayFeatureExtractor": "classic machine learning",
    "Bernoulli": "random numbers",
    "Binarizer": "classic machine learning",
    "BitCast": "reinterprets bits, which float32 arithmetic inside the graph does not keep",
    "BitShift": "bits of integers, at run time",
    "BitwiseAnd": "bits of integers, at run time",
    "BitwiseNot": "bits of integers, at run time",
    "BitwiseOr": "bits of integers, at run time",
    "BitwiseXor": "bits of integers, at run time",
    "BlackmanWindow": "needs a size known at build time",
    "CausalConvWithState": "defined by a loop",
    "Col2Im": "no operator of the graph",
    "CumProd": "no operator of the graph",
    "DFT": "complex numbers",
    "DeformConv": "no operator of the graph",
    "Det": "no operator of the graph",
    "GRU": "recurrent",
    "GridSample": "no operator of the graph",
    "HammingWindow": "needs a size known at build time",
    "HannWindow": "needs a size known at build time",
    "ImageDecoder": "image files",
    "LSTM": "recurrent",
    "LinearAttention": "defined by a loop",
    "Loop": "control flow at run time",
    "MaxUnpool": "no operator of the graph",
    "MelWeightMatrix": "needs sizes known at build time",
    "Momentum": "training",
    "NonMaxSuppression": "the size of its result depends on the data",
    "OptionalGetElement": "optional values",
    "RNN": "recurrent",
    "RoiAlign": "no operator of the graph",
    "STFT": "complex numbers",
    "Scan": "control flow at run time",
    "TensorScatter": "no operator of the graph",
    "TfIdfVectorizer": "text",
    "TreeEnsemble": "classic machine learning",
    "Unique": "the size of its result depends on the data",
}
# Cases of operators that Tamis has: (a part of the message, the reason).
REFUSED = (
    ("has elements of", "types narrower than 8 bits and rare 8-bit floats, at run time"),
    ("without saturation", "float8 casts that overflow to NaN"),
    ("Give their shapes", "a type given by an empty tensor of such a narrow type"),
    ("in blocks", "quantising a run-time value in blocks"),
    ("is computed at run time, but must be a constant", "shapes and axes that depend on data"),
    ("in training mode", "training"),
    ("MaxPool with its indices", "indices of a pooling"),
    ("tf_crop_and_resize", "cropping by a region of interest while resizing"),
    ("older than 7", "opset 1"),
    ("RandomUniformLike (", "random numbers"),
    ("Scan (", "control flow at run time"),
    ("Loop (", "control flow at run time"),
)
# Cases that Tamis answers differently on purpose.
DIFFERENT = {
    "test_resize_downsample_scales_cubic_align_corners": "align_corners by the rounded size, as torch does",
    "test_resize_downsample_scales_linear_align_corners": "align_corners by the rounded size, as torch does",
}
# No case of these can pass: they work on constants alone, or ONNX has none; test_import_operators has some.
COVERED_ELSEWHERE = (
    "Constant", "ConstantOfShape", "GlobalLpPool", "NonZero", "Not", "Range",
    "SimplifiedLayerNormalization",
)  # fmt: skip
LEAST_PASSED = 1400


def explained(result: Result) -> bool:
    if f"{result.operator} (" in result.detail and result.operator in NOT_SUPPORTED:
        return True
    return any(part in result.detail for part, _ in REFUSED)


def test_every_case_passes_or_is_refused_for_a_known_reason() -> None:
    failed = [result for result in results() if result.outcome == "failed"]
    wrong = [result for result in failed if result.name not in DIFFERENT]
    assert len(failed) == len(wrong) + len(DIFFERENT)
    wrong += [result for result in results() if result.outcome == "refused" and not explained(result)]
    assert not wrong, "\n".join(f"{result.name}: {result.detail[:300]}" for result in wrong)


def test_how_many_cases_pass() -> None:
    count = Counter(result.outcome for result in results())
    print(f"ONNX node tests: {count['passed']} passed, {count['refused']} refused")
    assert count["passed"] >= LEAST_PASSED


def test_the_reasons_are_all_still_true() -> None:
    refused = [result for result in results() if result.outcome == "refused"]
    assert {name for name in NOT_SUPPORTED if name in OPERATORS[""]} == set()
    assert set(NOT_SUPPORTED) <= {result.operator for result in refused}
    for part, reason in REFUSED:
        assert any(part in result.detail for result in refused), f"no case is refused for: {reason}"


@pytest.mark.parametrize("operator", sorted(OPERATORS[""]))
def test_operator_has_a_passing_case(operator: str) -> None:
    passed = {result.operator for result in results() if result.outcome == "passed"}
    assert (operator in passed) != (operator in COVERED_ELSEWHERE)
