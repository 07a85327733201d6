"""What an estimate says: one sentence for every outcome, and tables that name reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sample_estimates import layer, sample_estimate
from tamis.cli.output import show
from tamis.engine import Estimate, estimate_from_json, estimate_json
from tamis.errors import ConfigError
from tamis.report import estimate_conditions, estimate_report, estimate_verdict


def quiet(measured: Estimate, gain: float = 1.0) -> Estimate:
    layers = tuple(replace(each, carries=False) for each in measured.layers)
    return replace(measured, layers=layers, whole=replace(measured.whole, gain=gain, pays=False))


def test_a_gain_names_those_that_carry_it() -> None:
    measured = sample_estimate()
    assert estimate_verdict(measured) == (
        "2:4 brings 1.25x; 2 of 5 layers carry it: fc1, fc2; do not fine-tune the others"
    )
    one = replace(measured, layers=(replace(measured.layers[0], carries=False), *measured.layers[1:]))
    assert "1 of 5 layers carries it: fc2;" in estimate_verdict(one)
    all_ = replace(measured, layers=measured.layers[:2])
    assert estimate_verdict(all_) == "2:4 brings 1.25x; all layers carry it: fc1, fc2"
    held = replace(measured, layers=(replace(measured.layers[0], state="sparse"), *measured.layers[1:]))
    assert "carry it (1 of them hold it already): fc1" in estimate_verdict(held)


def test_many_carriers_are_not_all_named() -> None:
    measured = sample_estimate()
    many = replace(measured, layers=tuple(layer(f"fc{i}", 10.0, 5.0, carries=True) for i in range(20)))
    assert "fc7 and 12 more" in estimate_verdict(many)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((), "the model has no layer with a constant weight"),
        ((layer("a", 9.0, None, state="ineligible"),), "none of its 1 weight can follow the pattern"),
        ((layer("a", 9.0, None), layer("b", 9.0, None)), "no sparse kernel runs any of the 2 layers that could"),
        ((layer("a", 9.0, 9.1),), "no layer is faster by more than the noise"),
        ((layer("a", 9.0, 5.0),), "1 layer would be faster by themselves, but the whole engine is not"),
    ],
)
def test_nothing_is_said_with_its_cause(layers: tuple[object, ...], words: str) -> None:
    verdict = estimate_verdict(replace(quiet(sample_estimate()), layers=layers))
    assert verdict.startswith("2:4 brings nothing here: ") and words in verdict
    assert verdict.endswith("do not fine-tune for it")


def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    show(estimate_report(sample_estimate()))
    out = capsys.readouterr().out
    assert "gain: 1.25x, from 1.20x to 1.30x in 80% of the turns" in out
    assert "no: reduction axis of 3 is not a multiple of 4" in out
    assert "no sparse kernel: tamis.linear: a 3x3 convolution" in out
    assert "(image 1x3x8x8) on a fake (x86_64), 2 threads, float32" in out
    show(estimate_report(quiet(sample_estimate(), 1.02)))
    assert "gain: none beyond the noise (1.02x" in capsys.readouterr().out


def test_scattered_times_are_told() -> None:
    measured = sample_estimate()
    assert not any("scatter" in line for line in estimate_conditions(measured))
    timing = replace(measured.whole.dense, p90_us=1e6)
    wild = replace(measured, whole=replace(measured.whole, dense=timing, sparse=timing))
    assert any("scatter" in line for line in estimate_conditions(wild))


def test_files_that_are_no_estimates() -> None:
    good = estimate_json(sample_estimate())
    assert estimate_from_json(good) == sample_estimate()
    for text, words in (
        ("", "is not an estimate"),
        ("[1]", "is not an estimate"),
        (good.replace('"version": 1', '"version": 99'), "format version 99"),
        (good.replace('"prunable"', '"perhaps"'), "inconsistent"),
        (good.replace('"cold"', '"hot"'), "inconsistent estimate .Estimate lacks cold"),
        (good.replace('"cold"', '"cold": true, "hot"'), "Estimate has unknown fields: hot"),
    ):
        with pytest.raises(ConfigError, match=words):
            estimate_from_json(text, "x.json")
