"""Crossover maps in words and pictures."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from sample_crossovers import cell, cells, make_map, mixed_map
from tamis.engine import Cell, Reason
from tamis.errors import ConfigError, MissingLibrary, OutputError
from tamis.report import check_picture, crossover_report, draw_crossover
from tamis.report.crossover import conditions, sentences, verdict
from tamis.report.crossover_picture import crossover_figure

SIZES = (64, 128, 256)
SPENT = "the time budget was spent"
REASON = "stream: a 3x3 convolution is not a matrix product"


def text(report: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=400, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(report)
    return captured.get()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(
            {64: (0.7, 0.8, 0.9), 128: (0.8, 1.4, 1.5), 256: (0.9, 1.6, 1.9)},
            "2:4 pays from 128 x 128 on (1.40x to 1.90x)",
            id="monotone",
        ),
        pytest.param(
            {64: (0.7, 0.8, 1.2), 128: (0.8, 1.4, 1.5), 256: (0.9, 1.6, 1.9)},
            "2:4 pays from 128 x 128 on (1.40x to 1.90x), and at 1 of 5 smaller or narrower sizes",
            id="also where it is narrow",
        ),
        pytest.param(
            {64: (1.5, 0.8, 1.2), 128: (0.8, 0.7, 1.5), 256: (0.9, 1.6, 1.9)},
            "2:4 pays at 256 x 256, the largest size (1.90x), and at 4 of 8 smaller or narrower sizes",
            id="only the last",
        ),
        pytest.param(
            {64: (0.7, 1.2, 0.8), 128: (0.8, 1.4, 1.5), 256: (0.9, 1.6, 0.9)},
            "2:4 pays at 4 of 9 sizes (1.20x to 1.60x), but not at the largest",
            id="not monotone",
        ),
        pytest.param(
            {64: (0.7, 0.8, 0.9), 128: (0.8, 1.01, 0.9), 256: (0.9, 0.6, 1.02)},
            "2:4 never pays (0.60x to 1.02x)",
            id="never",
        ),
        pytest.param(
            {64: (1.1, 1.2, 1.3), 128: (1.2, 1.4, 1.5), 256: (1.3, 1.6, 1.9)},
            "2:4 pays at every size (1.10x to 1.90x)",
            id="always",
        ),
        pytest.param(
            {64: (1.5, SPENT, 1.5), 128: (SPENT,) * 3, 256: (1.5, SPENT, 1.5)},
            "2:4 pays at all 4 measured sizes (1.50x); 5 of 9 sizes were not measured",
            id="the corners",
        ),
        pytest.param(
            {64: (1.5, SPENT, SPENT), 128: (SPENT,) * 3, 256: (SPENT,) * 3},
            "2:4 pays at the only measured size (1.50x); 8 of 9 sizes were not measured",
            id="one size",
        ),
        pytest.param(
            {64: (0.7, SPENT, 0.9), 128: (SPENT,) * 3, 256: (0.9, SPENT, 1.9)},
            "2:4 pays at 256 x 256, the largest size (1.90x); 5 of 9 sizes were not measured",
            id="one corner, whose neighbours nobody measured",
        ),
        pytest.param(dict.fromkeys(SIZES, (SPENT,) * 3), f"not measured: {SPENT}", id="nothing"),
        pytest.param(
            dict.fromkeys(SIZES, (None,) * 3),
            f"2:4 never pays: no sparse tactic can run it ({REASON})",
            id="refused",
        ),
        pytest.param(
            {64: (None, None, None), 128: (None, 1.4, 1.5), 256: (None, 1.6, SPENT)},
            "2:4 pays from 128 x 128 on (1.40x to 1.60x); at 5 of 9 sizes no sparse tactic can run; "
            "1 of 9 sizes were not measured",
            id="refused where it is small",
        ),
    ],
)
def test_the_sentence(rows: dict[int, tuple[float | None | str, ...]], expected: str) -> None:
    assert verdict(cells(rows, SIZES)) == expected


def test_the_reasons_of_tactics_that_are_never_sparse_are_left_out() -> None:
    reasons = (Reason("library", "no"), Reason("a", "too old"), Reason("b", "missing"), Reason("c", "asleep"))
    found = [Cell("linear", 1, 64, 64, reasons=reasons)]
    assert verdict(found, ("library",)).endswith("(a: too old; b: missing; and 1 more)")
    assert verdict(found, ("library", "a", "b", "c")).endswith("(library: no; a: too old; and 2 more)")
    every = [Cell("linear", 1, 64, 64, reasons=(Reason("library", "no"),))]
    assert verdict(every, ("library",)).endswith("(library: no)")


def test_batches_that_are_refused_alike_share_a_sentence() -> None:
    measured = mixed_map()
    more = [replace(c, batch=32) for c in measured.cells]
    both = replace(measured, batches=(16, 32), cells=(*measured.cells, *more))
    assert sentences(both)[-1] == f"3x3 convolution: 2:4 never pays: no sparse tactic can run it ({REASON})"
    assert [line.partition(":")[0] for line in sentences(both)] == [
        "linear, 16 rows",
        "linear, 32 rows",
        "3x3 convolution",
    ]
    one_runs = replace(both, cells=(*both.cells[:-1], replace(cell(128, 128, 1.5), kind="conv3x3", batch=32)))
    assert [line.partition(":")[0] for line in sentences(one_runs)][2:] == [
        "3x3 convolution, batch 16, 14x14",
        "3x3 convolution, batch 32, 14x14",
    ]


def test_the_table_shows_what_every_cell_is() -> None:
    lines = [line.split() for line in text(crossover_report(mixed_map())).splitlines()]
    assert ["64", "0.80", "."] in lines
    assert ["128", "-", "1.70*"] in lines
    whole = text(crossover_report(mixed_map()))
    assert "a fake (fake64), 2 threads, bfloat16" in whole and "cold caches" in whole
    assert "7 of 8 cells in 12 s;" in whole
    assert "interrupted" in text(crossover_report(make_map([cell(64, 64, 1.5)], interrupted=True)))


def test_the_picture_says_the_same(tmp_path: Path) -> None:
    figure = crossover_figure(mixed_map())
    panel, bar = figure.axes
    shown = [item.get_text() for item in panel.texts]
    assert "0.80" in shown and "1.70" in shown and "linear, 16 rows" in shown
    assert bar.get_title() == "2:4\nfaster"
    written = "\n".join(item.get_text() for item in figure.texts)
    assert "a fake (fake64), 2 threads" in written
    assert "3x3 convolution: 2:4 never pays: no sparse tactic can run it" in written
    (image,) = panel.images
    values = image.get_array()
    assert values is not None and values[0, 0] < 0 < values[1, 1]


def test_pictures_of_equal_maps_are_equal_files(tmp_path: Path) -> None:
    for ending, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        for name in ("a", "b"):
            draw_crossover(mixed_map(), tmp_path / f"{name}{ending}")
        content = (tmp_path / f"a{ending}").read_bytes()
        assert content.startswith(start)
        assert content == (tmp_path / f"b{ending}").read_bytes()


def test_a_map_without_any_sparse_time_can_be_drawn() -> None:
    figure = crossover_figure(make_map(cells({64: (None, SPENT), 128: (None, None)}, (64, 128))))
    assert figure.axes == []
    assert any("no sparse tactic can run it" in item.get_text() for item in figure.texts)


def test_pictures_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingLibrary, match="pip install matplotlib"):
        draw_crossover(mixed_map(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.jpeg"):
        check_picture(tmp_path / "a.jpeg")
    with pytest.raises(OutputError):
        draw_crossover(mixed_map(), tmp_path / "missing" / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_scattered_times_are_told() -> None:
    measured = mixed_map()
    assert not any("scatter" in line for line in conditions(measured))
    loud = [
        replace(c, dense=c.dense and replace(c.dense, timing=replace(c.dense.timing, p90_us=200.0)), sparse=None)
        for c in measured.cells
    ]
    told = "The times scatter (p90 is typically 2.2 times p10): was something else running? Measure again on a quiet"
    assert told in text(crossover_report(replace(measured, cells=tuple(loud))))
    assert not any("scatter" in line for line in conditions(replace(measured, cells=())))
