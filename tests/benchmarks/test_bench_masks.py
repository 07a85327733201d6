"""bench_masks.py without a GPU: its reference finds wrong masks, and its rows are whole."""

from __future__ import annotations

import torch

from bench_masks import CONTESTANTS, PRECISIONS, difference, measured, reference
from tamis.formats import TWO_FOUR, is_nm


def test_rows_of_a_trial() -> None:
    for precision in PRECISIONS:
        tamis, topk = measured(precision, 64, torch.device("cpu"))
        assert (tamis.impl, topk.impl) == tuple(name for name, _ in CONTESTANTS)
        assert tamis.max_rel_error == 0 and 0 < tamis.median_us < 1e6 and tamis.bytes > 64 * 64


def test_the_reference_is_two_of_four_and_tells_wrong_masks() -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).mul(2).round()  # equal ones among them
    expected = reference(weight)
    assert is_nm(expected.astype("float32"), TWO_FOUR, 1) and expected.mean() == 0.5
    assert difference(CONTESTANTS[0][1], weight, expected) == 0
    assert difference(lambda w: w > 0, weight, expected) > 0
    assert difference(lambda w: torch.empty(8, 16, dtype=torch.uint8).fill_(3).view(torch.bool), weight, expected) > 0
    assert difference(lambda w: w[:4] > 0, weight, expected) == 1
