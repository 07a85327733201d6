from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console, RenderableType

from sample_engines import make_engine, make_plan, sample_layer
from tamis.engine import Candidate, Conditions, DeviceState, Engine, Format, Timing
from tamis.errors import InputError
from tamis.formats.dtype import DType
from tamis.report import (
    both_times,
    build_data,
    build_summary,
    condition_lines,
    deviation,
    deviation_data,
    deviation_table,
    difference_of_engines,
    differing_layers,
    explain,
    explain_data,
    first_beyond,
    inspect,
    microseconds,
    profile_table,
    shape,
    size,
    sparsity_data,
    sparsity_lines,
)
from tamis.runtime import Profile, StepTime


def text(report: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=400, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(report)
    return captured.get()


def with_layer(**changes: object) -> Engine:
    engine = make_engine()
    layer = replace(sample_layer(), **changes)
    return replace(engine, plan=replace(engine.plan, layers=(layer,)))


def test_sparsity_lines_name_layers_and_both_times() -> None:
    assert sparsity_lines([sample_layer()]) == [
        "(Sparsity) Found 1 layer(s) eligible to use sparse tactics: scale",
        "(Sparsity) Chose 1 layer(s) using sparse tactics: scale",
        "(Sparsity)   scale: dense 5.00 us (onednn.linear, float32), 2:4 2.50 us (stream.linear, float32), "
        "sparse is 2.00x as fast",
    ]
    dense = replace(sample_layer(), eligible=False, chosen_sparsity="dense")
    assert sparsity_lines([dense]) == [
        "(Sparsity) Found 0 layer(s) eligible to use sparse tactics",
        "(Sparsity) Chose 0 layer(s) using sparse tactics",
    ]


def test_the_reason_stands_where_there_is_no_sparse_time() -> None:
    layer = sample_layer()
    refused = Candidate("stream.linear", "refused", sparsity="2:4", reason="no sparse kernel for 3x3")
    dense = Candidate("conv", "refused", reason="not a convolution")
    layer = replace(layer, candidates=(layer.candidates[0], dense, refused), chosen_sparsity="dense")
    assert both_times(layer).endswith("no sparse time: stream.linear refused: no sparse kernel for 3x3")


def test_the_reason_stands_where_the_sparse_time_did_not_win() -> None:
    layer = sample_layer()
    region = replace(layer.candidates[1], status="lost", reason="the region 'openvino' of 46 layers runs this layer")
    lost = replace(layer, candidates=(layer.candidates[0], region), chosen_sparsity="dense")
    assert both_times(lost).endswith(
        "sparse is 2.00x as fast; not chosen: the region 'openvino' of 46 layers runs this layer"
    )
    assert "not chosen" not in both_times(replace(lost, chosen_sparsity="2:4"))  # the region itself may be sparse


def test_disqualified_candidates_have_no_say() -> None:
    wrong = Candidate("fast", "disqualified", sparsity="2:4", timing=Timing(0.1, 0.1, 0.1, 5), reason="wrong")
    layer = replace(sample_layer(), candidates=(*sample_layer().candidates, wrong))
    assert sparsity_data([layer])["times"] == [{"layer": "scale", "dense_us": 5.0, "sparse_us": 2.5}]


def test_explain_shows_every_candidate_of_a_layer() -> None:
    engine = make_engine()
    overview = text(explain(engine))
    assert "stream.linear" in overview and "2.50 us" in overview and "openvino" in overview
    detail = text(explain(engine, layer="scale"))
    for piece in ("refused", "not installed", "lost", "5.00 us (4.50 us - 6.00 us)", "50% zeros"):
        assert piece in detail
    assert text(explain(engine, layer="node_1")) == detail == text(explain(engine, every=True))
    with pytest.raises(InputError, match="no layer 'nothing'"):
        explain(engine, layer="nothing")
    with pytest.raises(InputError, match="no layer 'nothing'"):
        explain_data(engine, layer="nothing")


def test_candidates_that_differ_in_formats_only_look_different() -> None:
    half, exact = Format(DType.BFLOAT16), Format(DType.FLOAT32)
    images = Format(DType.BFLOAT16, "channels_last")
    alike = Candidate("tamis.linear", "lost", DType.BFLOAT16, "2:4", (half,), (half,), timing=Timing(5.0, 4.5, 6.0, 15))
    mixed = replace(alike, inputs=(exact, images), outputs=(exact,))
    lines = text(explain(with_layer(candidates=(alike, mixed)), every=True)).splitlines()
    assert [line.split("2:4")[1].split("lost")[0].strip() for line in lines if line.startswith("  tamis.linear")] == [
        "bfloat16",
        "float32, bfloat16 channels_last -> float32",
    ]


def test_regions_that_differ_in_sparsity_or_formats_only_look_different() -> None:
    (dense,) = make_plan().regions
    exact, half = (Format(),), (Format(DType.BFLOAT16),)
    sparse = replace(dense, sparse_layers=("scale",), inputs=exact, outputs=exact, parameters={"isa": "amx"})
    regions = (dense, sparse, replace(sparse, inputs=half))
    out = text(explain(make_engine(regions=regions))).partition("Regions of layers")[2].partition("Whole engines")[0]
    rows = [line.split("  2  scale")[0].rstrip() for line in out.splitlines()[2:5]]
    assert len(set(rows)) == 3 and "dense" in rows[0]
    assert "openvino (isa=amx)" in rows[1] and "2:4 (1 layer)" in rows[1] and "bfloat16 -> float32" in rows[2]


def scattered(timing: Timing, ratio: float) -> Timing:
    return replace(timing, p90_us=timing.p10_us * ratio)


def test_a_build_on_a_busy_machine_is_told() -> None:
    chosen, other = make_plan().engines
    warning = "The times scatter (p90 is 4.0 times p10): was something else running? Build again on a quiet machine"
    loud = replace(chosen, timing=scattered(chosen.timing, 4.0))
    quiet = make_engine(engines=(chosen, replace(other, timing=scattered(other.timing, 9.0))))
    for report in (lambda engine: build_summary(engine, 1.0, "a.tamis", 100, {"race": 0.75}), explain):
        assert warning in text(report(make_engine(engines=(loud, other))))
        assert "scatter" not in text(report(quiet))  # the engine that lost does not matter
    lost, won, refused = sample_layer().candidates
    assert won.timing is not None
    busy = with_layer(candidates=(lost, replace(won, timing=scattered(won.timing, 5.0)), refused))
    assert "p90 is typically 5.0 times p10" in text(build_summary(busy, 1.0, "a.tamis", 100, {"race": 0.75}))


def test_a_profile_on_a_busy_machine_is_told() -> None:
    timing, steps = Timing(10.0, 9.0, 12.0, 50), make_plan().steps
    quiet = Profile(tuple(StepTime(step, timing) for step in steps), timing, 1)
    assert "scatter" not in text(profile_table(quiet)) and "50 runs on 1 thread\n" in text(profile_table(quiet))
    whole = text(profile_table(replace(quiet, whole=scattered(timing, 3.5))))
    assert "(p90 is 3.5 times p10): was something else running? Profile again on a quiet machine" in whole
    one = replace(quiet, steps=(StepTime(steps[0], scattered(timing, 8.0)), *quiet.steps[1:]))
    assert "scatter" not in text(profile_table(one))  # one step in three is not typical
    all_steps = replace(quiet, steps=tuple(StepTime(step, scattered(timing, 8.0)) for step in steps))
    assert "p90 is typically 8.0 times p10" in text(profile_table(all_steps))


def test_names_with_markup_are_shown_as_they_are() -> None:
    engine = with_layer(name="layers[0][bold]x[/bold]")
    assert "layers[0][bold]x[/bold]" in text(explain(engine))
    assert "layers[0][bold]x[/bold]" in text(explain(engine, every=True))


def test_explain_data_is_the_record() -> None:
    data = json.loads(json.dumps(explain_data(make_engine()), allow_nan=False))
    assert data["layers"][0]["candidates"][1]["timing"]["median_us"] == 2.5
    assert data["engines"][0]["chosen"] and data["regions"][0]["reason"] == "slower"


def test_build_summary_warns_of_pruning_by_force() -> None:
    engine = make_engine(usable_for_accuracy=False)
    assert "do not use its results" in text(build_summary(engine, 1.0, "a.tamis", 100, {"race": 0.75}))
    assert "do not use its results" in text(inspect(engine))
    assert "do not use its results" not in text(build_summary(make_engine(), 1.0, "a.tamis", 100, {"race": 0.75}))
    assert (
        json.loads(json.dumps(build_data(engine, 1.0, "a.tamis", 100, {"race": 0.75})))["usable_for_accuracy"] is False
    )


def test_one_step_is_no_steps() -> None:
    assert "sample: 1 layer in 3 steps," in text(inspect(make_engine()))
    plan = make_plan(threads=1)
    one = replace(make_engine(), plan=replace(plan, steps=plan.steps[:1], layers=plan.layers * 2))
    assert "sample: 2 layers in 1 step," in text(inspect(one)) and "(fake64), 1 thread\n" in text(inspect(one))


def test_engines_are_compared_layer_by_layer() -> None:
    other = with_layer(chosen_sparsity="dense", chosen_tactic="onednn.linear")
    assert differing_layers(make_engine(), make_engine()) == []
    assert differing_layers(make_engine(), other) == [
        ("scale", "stream.linear float32 2:4", "onednn.linear float32 dense")
    ]
    renamed = with_layer(name="new")
    assert [row[0] for row in differing_layers(make_engine(), renamed)] == ["scale", "new"]
    assert "(none)" in text(difference_of_engines(make_engine(), renamed))


X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def judged(result: np.ndarray, reference: np.ndarray) -> tuple[bool, float, float, float]:
    found = deviation("x", result, reference, cosine=0.999, relative=1e-3)
    return found.within, found.absolute, found.relative, found.cosine


def test_deviation_of_equal_tensors_is_nothing() -> None:
    assert judged(X, X) == (True, 0.0, 0.0, 1.0)
    assert judged(np.zeros(3), np.zeros(3)) == (True, 0.0, 0.0, 1.0)


def test_deviation_against_plain_formulas() -> None:
    other = X + np.float32(1e-4)
    within, absolute, relative, cosine = judged(other, X)
    a, b = other.astype(np.float64).ravel(), X.astype(np.float64).ravel()
    assert within
    assert absolute == pytest.approx(np.max(np.abs(a - b)))
    assert relative == pytest.approx(absolute / 1.0)
    assert cosine == pytest.approx(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


@pytest.mark.parametrize(
    ("result", "reference"),
    [
        (X * np.nan, X),
        (np.where(X[0, 0] == X, np.inf, X), X),
        (X, X * np.nan),
        (X * np.nan, X * np.nan),
        (X[:2], X),
        (-X, X),
        (X * 1.01, X),
        (np.zeros_like(X), X),
        (X, np.zeros_like(X)),
    ],
    ids=["nan", "inf", "nan reference", "both nan", "shape", "sign", "scale", "zeros", "zero reference"],
)
def test_what_must_not_pass(result: np.ndarray, reference: np.ndarray) -> None:
    assert not judged(result, reference)[0]


def test_equal_infinities_pass() -> None:
    masked = np.where(X < 0, -np.inf, X)
    assert judged(masked, masked.copy())[0]
    assert judged(np.where(X < 0, -np.inf, X + np.float32(1e-5)), masked)[0]


def test_the_verdict_and_the_first_deviation() -> None:
    good = deviation("good", X, X, cosine=0.999, relative=1e-3)
    bad = deviation("bad", X * np.nan, X, cosine=0.999, relative=1e-3)
    assert first_beyond([good]) is None
    assert first_beyond([good, bad, good]) is bad
    report = text(deviation_table([bad], [good, bad], make_plan(), cosine=0.999, relative=1e-3))
    assert "does not agree" in report and "first value that deviates is 'bad'" in report
    data = json.loads(json.dumps(deviation_data([bad], [good, bad]), allow_nan=False))
    assert data["agrees"] is False and data["first_deviation"] == "bad" and data["outputs"][0]["relative"] is None
    assert "agrees" in text(deviation_table([good], None, make_plan(), cosine=0.999, relative=float("inf")))


def test_why_no_inner_value_could_be_compared() -> None:
    good = deviation("good", X, X, cosine=0.999, relative=1e-3)
    plan = make_plan()
    (region,) = plan.regions

    def verdict(**changes: object) -> str:
        out = text(deviation_table([good], [], replace(plan, **changes), cosine=0.999, relative=1e-3))
        assert "No inner value deviates" not in out and "value " not in out.partition("output")[0]
        return out

    whole = replace(region, chosen=True, layers=("scale",))
    options = "Build with --exclude-tactic openvino to look inside"
    assert f"could be compared: one region runs all layers. {options}" in verdict(regions=(whole,))
    other = replace(whole, tactic="tamis.chain", chosen=False)
    both = "Build with --exclude-tactic openvino --exclude-tactic tamis.chain to look inside"
    assert both in verdict(regions=(other, whole))
    parts = replace(region, chosen=True)
    assert f"could be compared: regions run its layers. {options}" in verdict(regions=(parts,))
    assert "the engine computes no value that the model has" in verdict(regions=())


def test_units() -> None:
    assert [microseconds(v) for v in (0.5, 12.34, 456.7, 12_345.0)] == ["0.50 us", "12.3 us", "457 us", "12.3 ms"]
    assert [size(v) for v in (7, 2048, 3 << 20)] == ["7 B", "2.0 KiB", "3.0 MiB"]
    assert shape((1, 3)) == "1x3" and shape(()) == "scalar"


STATE = DeviceState(1980.0, 2619.0, 412.3, 700.0, 45.0, False, False)
IDLE = DeviceState(345.0, 2619.0, 70.1, 700.0, 30.0, False, False)


def test_conditions_are_told_in_a_line() -> None:
    engine = make_engine(conditions=Conditions(IDLE, STATE))
    line = "Measured at 1980 MHz, 412 W of 700 W, 45 C; before the races 345 MHz, 70 W of 700 W, 30 C"
    for report in (explain(engine), build_summary(engine, 1.0, "a.tamis", 100, {"race": 0.75})):
        assert line in text(report) and "slowed down" not in text(report)
    assert explain_data(engine)["conditions"]["after"]["power_w"] == 412.3
    assert build_data(engine, 1.0, "a.tamis", 100, {"race": 0.75})["conditions"]["before"]["sm_mhz"] == 345.0
    assert "Measured at" not in text(explain(make_engine())) and explain_data(make_engine())["conditions"] is None


def test_a_gpu_that_was_slowed_down_is_a_warning() -> None:
    hot, capped = replace(STATE, slowed_by_heat=True), replace(STATE, slowed_by_power=True)
    assert "Warning: the GPU was slowed down by heat;" in text(explain(make_engine(conditions=Conditions(IDLE, hot))))
    assert "slowed down by its power limit;" in condition_lines(Conditions(capped, STATE))[1]
    assert "slowed down by heat and its power limit;" in condition_lines(Conditions(capped, hot))[1]
    unknown = DeviceState(0.0, 0.0, 0.0, 0.0, 0.0, False, False)
    assert condition_lines(Conditions(unknown, replace(unknown, sm_mhz=1.0))) == [
        "Measured at 1 MHz; before the races an unknown state"
    ]
