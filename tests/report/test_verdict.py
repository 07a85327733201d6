"""Whether sparsity made an engine faster: every answer that there is, and its place in reports and in Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tamis
from sample_engines import make_engine, sample_layer
from tamis.engine import Candidate, Engine, EngineRecord, LayerRecord, Timing, save
from tamis.errors import CorruptEngine, EngineError
from tamis.report import explain, explain_data, plain, verdict


def engine(*layers: LayerRecord, **times: float) -> Engine:
    """Engines by name; the last one is chosen."""
    records = tuple(
        EngineRecord(name.replace("_", " "), Timing(us, 0.9 * us, 1.1 * us, 15), None, name == list(times)[-1], "")
        for name, us in times.items()
    )
    sample = make_engine()
    return replace(sample, plan=replace(sample.plan, layers=layers or (sample_layer(),), engines=records))


def dense_layer(**changes: object) -> LayerRecord:
    return replace(sample_layer(), chosen_sparsity="dense", **changes)


def test_faster_than_the_best_of_the_dense_engines() -> None:
    found = verdict(engine(openvino_float32_dense=30.0, dense=15.0, layer_by_layer=12.5, all_tactics=12.0))
    assert found.faster and found.gain == 1.25 and (found.chosen_us, found.dense_us) == (12.0, 15.0)
    assert str(found) == (
        "Faster by sparsity: 1.25x, 12.0 us against 15.0 us of the best dense engine; 1 of 1 eligible layers run sparse."
    )


@pytest.mark.parametrize(
    "name", ["dense, layer by layer", "dense, splits as views", "tamis.chain float32 dense, views copied"]
)
def test_words_on_views_do_not_hide_a_dense_engine(name: str) -> None:
    assert verdict(engine(**{name: 24.0, "all tactics": 12.0})).gain == 2.0
    assert verdict(engine(**{"all tactics, splits as views": 24.0, "all tactics": 12.0})).gain is None


def test_a_gain_within_the_noise_is_none() -> None:
    found = verdict(engine(dense=12.2, all_tactics=12.0))
    assert found.faster is False and "beyond the noise" in str(found)
    slow_end = engine(dense=12.0, all_tactics=10.0)
    scattered = replace(slow_end.plan.engines[0], timing=Timing(12.0, 8.0, 20.0, 15))
    found = verdict(replace(slow_end, plan=replace(slow_end.plan, engines=(scattered, slow_end.plan.engines[1]))))
    assert found.faster is False


def test_nobody_knows_without_a_dense_engine() -> None:
    found = verdict(engine(all_tactics=12.0))
    assert found.faster is None and found.gain is None and "nobody knows" in str(found)
    assert verdict(engine()).chosen_us is None


def test_dense_weights_ask_for_pruning() -> None:
    layer = dense_layer(eligible=False, ineligible_reason="its weight is dense")
    text = str(verdict(engine(layer, layer, dense=12.0)))
    assert "no layer has a 2:4 weight; prune the model first. Dense: 2 layers: its weight is dense." in text


def test_each_reason_against_sparse_layers_is_told_with_its_count() -> None:
    candidates = sample_layer().candidates
    dense, sparse = candidates[0], candidates[1]
    slower = replace(sparse, status="lost", timing=Timing(6.0, 5.5, 7.0, 15), reason="slower")
    beaten = replace(sparse, status="lost", reason="the region 'openvino' of 9 layers runs this layer")
    refused = Candidate("stream.linear", "refused", sparsity="2:4", reason="no sparse kernel for 3x3")
    layers = [
        dense_layer(candidates=(dense, slower)),
        dense_layer(candidates=(dense, slower)),
        dense_layer(candidates=(dense, beaten)),
        dense_layer(candidates=(dense, refused)),
    ]
    found = verdict(engine(*layers, dense=12.0))
    assert found.faster is False and (found.eligible, found.sparse) == (4, 0)
    assert found.reasons == (
        ("the best dense tactic is as fast or faster", 2),
        ("the region 'openvino' of 9 layers runs this layer", 1),
        ("stream.linear refused: no sparse kernel for 3x3", 1),
    )
    assert "none of 4 eligible layers runs sparse. Dense: 2 layers: the best dense tactic" in str(found)
    off = engine(*layers, dense=12.0)
    off = replace(off, plan=replace(off.plan, config={"sparsity": "off"}))
    assert verdict(off).reasons == (("sparse tactics were switched off", 4),)


def test_reports_begin_with_the_verdict() -> None:
    sample = engine(dense=15.0, all_tactics=12.0)
    assert plain(explain(sample)).startswith(f"{verdict(sample)}\n")
    assert explain_data(sample)["verdict"]["gain"] == 1.25
    assert explain_data(sample)["verdict"]["text"] == str(verdict(sample))


def test_python_explains_engines_and_files(tmp_path: Path) -> None:
    sample = engine(dense=15.0, all_tactics=12.0)
    save(sample, tmp_path / "sample.tamis")
    for given in (sample, tmp_path / "sample.tamis", str(tmp_path / "sample.tamis")):
        found = tamis.explain(given)
        assert found.verdict == verdict(sample) and str(found) == plain(explain(sample)).rstrip()
        assert found.data["layers"][0]["name"] == "scale"
    (tmp_path / "no.tamis").write_bytes(b"no")
    with pytest.raises(CorruptEngine):
        tamis.explain(tmp_path / "no.tamis")
    with pytest.raises(EngineError):
        tamis.explain(tmp_path / "missing.tamis")
