"""Judging results: NaN never passes, equal infinities do, and figures mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from tamis.compiler.tuner.accuracy import compare, objection, worst
from tamis.formats.dtype import DType


def test_equal_results_are_perfect() -> None:
    x = np.linspace(-1, 1, 100, dtype=np.float32)
    accuracy = compare(x, x)
    assert (accuracy.max_relative_error, accuracy.cosine, accuracy.sqnr_db) == (0.0, 1.0, 999.0)


def test_figures_of_a_known_error() -> None:
    reference = np.array([3.0, 4.0])
    accuracy = compare(np.array([3.0, 4.4]), reference)
    assert accuracy.max_relative_error == pytest.approx(0.1)
    assert accuracy.sqnr_db == pytest.approx(20 * np.log10(5 / 0.4), abs=0.01)
    assert accuracy.cosine == pytest.approx((9 + 17.6) / (5 * np.hypot(3, 4.4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_passes(bad: float) -> None:
    reference = np.ones(8)
    result = reference.copy()
    result[3] = bad
    for precision in (DType.FLOAT32, DType.BFLOAT16):
        assert objection(compare(result, reference), precision, 0.0, 1e9) is not None
        assert objection(compare(reference, result), precision, 0.0, 1e9) is not None
    assert "overflows" in str(objection(compare(result, reference), DType.FLOAT16, 0.0, 1e9))
    both_nan = np.full(4, np.nan)
    assert objection(compare(both_nan, both_nan), DType.FLOAT32, 0.0, 1e9) is not None


def test_equal_infinities_are_left_out() -> None:
    reference = np.array([np.inf, -np.inf, 1.0, 2.0])
    assert compare(reference, reference).sqnr_db == 999.0
    result = np.array([np.inf, -np.inf, 1.0, 2.2])
    assert compare(result, reference).max_relative_error == pytest.approx(0.1)
    assert compare(-result, reference).max_relative_error == 1e30


def test_all_zero_references() -> None:
    assert compare(np.zeros(3), np.zeros(3)).cosine == 1.0
    assert objection(compare(np.full(3, 0.1), np.zeros(3)), DType.FLOAT32, 0.9, 1e-3) is not None


def test_boolean_and_integer_results() -> None:
    assert compare(np.array([True, False]), np.array([True, False])).cosine == 1.0
    assert compare(np.array([1, 2]), np.array([1, 3])).max_relative_error == pytest.approx(1 / 3, rel=1e-4)


def test_worst_takes_the_worst_of_each() -> None:
    good, bad = compare(np.ones(3), np.ones(3)), compare(np.ones(3) * 1.5, np.ones(3))
    assert worst([good, bad]) == worst([bad, good])
    assert worst([good, bad]).max_relative_error == 0.5
