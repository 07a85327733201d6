"""Crossover maps as JSON."""

from __future__ import annotations

import json

import pytest

from sample_crossovers import mixed_map
from tamis.engine import crossover_data, crossover_from_json, crossover_json
from tamis.errors import ConfigError


def test_a_map_survives_as_json() -> None:
    measured = mixed_map()
    text = crossover_json(measured)
    assert crossover_from_json(text) == measured
    assert crossover_json(crossover_from_json(text.encode())) == text
    assert crossover_from_json(json.dumps(crossover_data(measured))) == measured


def test_the_file_has_a_line_for_each_cell() -> None:
    lines = [line for line in crossover_json(mixed_map()).splitlines() if '"c_in"' in line]
    assert len(lines) == 8
    assert all(json.loads(line.strip().rstrip(","))["batch"] == 16 for line in lines)


def test_the_ratio_is_the_speed_of_sparse_over_dense() -> None:
    assert [cell.ratio for cell in mixed_map().cells[:4]] == [pytest.approx(0.8), None, None, pytest.approx(1.7)]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"cells": [{"kind": "linear"}]},
        {"cells": 3},
        {"cells": []},
        {"sizes": [64, 128, 256]},
        {"batches": [16, 16]},
        {"sizes": ["64"]},
        {"precision": "float12"},
        {"kinds": ["conv5x5"]},
        {"surprise": 1},
    ],
)
def test_what_is_no_map_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="crossover map"):
        crossover_from_json(json.dumps(crossover_data(mixed_map()) | change))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "not JSON", b"\xff\xfe", '{"version": 1}'])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ConfigError, match="crossover map"):
        crossover_from_json(text)
