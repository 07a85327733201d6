"""An estimate before training: which layers carry the gain, which engine is compared with which, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from small_models import save_mlp
from tamis.compiler import BuildConfig, estimate_sparsity
from tamis.compiler.tuner import race as race_module
from tamis.compiler.what_if import WhatIf, hardware_pattern, open_what_if
from tamis.engine import estimate_from_json, estimate_json
from tamis.errors import ConfigError, FormatError, ModelError
from tamis.formats import TWO_FOUR, is_nm
from what_if_models import make_up_times, save_dense_cnn

CONFIG = BuildConfig(threads=1, exclude_tactics=("openvino", "tamis.chain"))


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return save_dense_cnn(tmp_path / "net.onnx")


def test_layers_and_engines(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = make_up_times(monkeypatch)
    measured = estimate_sparsity(network, CONFIG)
    layers = {layer.name: layer for layer in measured.layers}
    assert list(layers) == ["stem", "first", "second", "wide", "hidden", "last"]
    assert layers["stem"].state == "ineligible" and "multiple of 4" in layers["stem"].reason
    assert all(layer.state == "prunable" and layer.reason == "" for layer in measured.layers[1:])
    assert "3x3 convolution" in layers["first"].why and layers["first"].sparse is None
    assert layers["hidden"].weights == ("hidden.weight",) and layers["second"].origin[0] == "second"
    for layer in measured.layers:
        assert layer.dense is not None
        if layer.sparse is not None:
            assert layer.pays and layer.ratio == pytest.approx(1 / 0.6, rel=1e-2)
            assert layer.saved_us == pytest.approx(0.4 * layer.dense.timing.median_us, rel=1e-2)
        assert bool(layer.why) == (layer.state == "prunable" and not layer.carries)
    (engine,) = timed
    assert {layer.name for layer in measured.carriers} == {
        layer.name for layer in engine.plan.layers if layer.chosen_sparsity == "2:4"
    }
    assert {"hidden", "last"} <= {layer.name for layer in measured.carriers}
    assert not engine.plan.usable_for_accuracy
    assert measured.whole.pays and measured.whole.gain == pytest.approx(102 / 82, rel=1e-3)
    assert measured.whole.gain_p10 <= measured.whole.gain <= measured.whole.gain_p90
    assert estimate_from_json(estimate_json(measured)) == measured


@pytest.mark.parametrize("sparse_us", [99.5, 98.0, 130.0])
def test_a_gain_within_the_noise_is_none(network: Path, monkeypatch: pytest.MonkeyPatch, sparse_us: float) -> None:
    make_up_times(monkeypatch, {False: 100.0, True: sparse_us})
    measured = estimate_sparsity(network, CONFIG)
    assert not measured.whole.pays and measured.carriers == ()
    hidden = next(layer for layer in measured.layers if layer.name == "hidden")
    assert hidden.pays and "whole engine" in hidden.why


def test_an_engine_without_sparse_layers_gains_nothing(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its times may differ from those of the dense one when the machine is busy."""
    make_up_times(monkeypatch)
    samples = {"dense": [100.0] * 5, "sparse": [80.0] * 5}
    monkeypatch.setattr(WhatIf, "_samples", lambda self, engines: samples)
    what_if = open_what_if(network, CONFIG, TWO_FOUR, lambda *told: None)
    assert what_if.against_dense(what_if.sparse).pays
    assert not what_if.against_dense(what_if.dense).pays


def test_a_gain_in_each_turn_is_asked_for(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All turns are equal but for one of either side: the medians differ, the gain in the middle turn does not."""
    make_up_times(monkeypatch)
    samples = {"dense": [100.0, 110.0, 120.0, 200.0, 210.0], "sparse": [90.0, 110.0, 120.0, 100.0, 210.0]}
    monkeypatch.setattr(WhatIf, "_samples", lambda self, engines: samples)
    what_if = open_what_if(network, CONFIG, TWO_FOUR, lambda *told: None)
    versus = what_if.against_dense(what_if.sparse)
    assert versus.gain == 1.0 and not versus.pays


def test_the_dense_engine_keeps_the_weights(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_up_times(monkeypatch)
    what_if = open_what_if(network, CONFIG, TWO_FOUR, lambda *told: None)
    hidden = what_if.graph.constants["hidden.weight"]
    assert is_nm(what_if.forced.constants["hidden.weight"], TWO_FOUR, 1) and not is_nm(hidden, TWO_FOUR, 1)
    held = [array for array in what_if.dense.tensors.values() if array.size == hidden.size]
    assert any(np.array_equal(np.sort(np.ravel(array)), np.sort(hidden.ravel())) for array in held)
    assert all(layer.chosen_sparsity == "dense" for layer in what_if.dense.plan.layers)
    assert what_if.dense.plan.usable_for_accuracy and not what_if.sparse.plan.usable_for_accuracy
    assert what_if.prunable == {f"{n}.weight" for n in ("first", "second", "wide", "hidden", "scores")}


def test_an_engine_of_some_pruned_weights(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_up_times(monkeypatch)
    what_if = open_what_if(network, CONFIG, TWO_FOUR, lambda *told: None)
    races = race_module._race_now
    monkeypatch.setattr(race_module, "_race_now", None)  # nothing is raced again
    engine = what_if.with_pruned({"hidden.weight"})
    assert races is not None
    assert [layer.name for layer in engine.plan.layers if layer.eligible] == ["hidden"]
    assert [layer.name for layer in engine.plan.layers if layer.chosen_sparsity == "2:4"] == ["hidden"]


def test_accuracy_is_judged_on_the_pruned_weights(tmp_path: Path) -> None:
    """Real kernels, real checks: pruning error is no reason to disqualify anybody."""
    model = save_dense_cnn(tmp_path / "net.onnx", width=16)
    config = replace(CONFIG, optimization_level=0, accuracy_relative=1e-4)
    what_if = open_what_if(model, config, TWO_FOUR, lambda *told: None)
    sparse = [entry for race in what_if.races for entry in race.entries if entry.choice.sparsity == "2:4"]
    assert sparse and not any(entry.disqualified for entry in sparse)
    dense, pruned = (engine.plan.engines for engine in (what_if.dense, what_if.sparse))
    for record in (*dense, *pruned):
        assert record.accuracy is not None and record.accuracy.max_relative_error < 1e-4


def test_with_the_timing_cache_nothing_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_mlp(tmp_path / "mlp.onnx", width=64)
    config = replace(CONFIG, optimization_level=0, timing_cache=tmp_path / "times.json")
    first = estimate_sparsity(model, config)
    written = (tmp_path / "times.json").read_bytes()
    for name in ("_samples",):
        monkeypatch.setattr(WhatIf, name, None)
    monkeypatch.setattr(race_module, "_race_now", None)
    second = estimate_sparsity(model, config)
    assert replace(first, seconds=0) == replace(second, seconds=0)
    assert (tmp_path / "times.json").read_bytes() == written
    assert all(layer.state == "sparse" for layer in first.layers)
    assert first.whole.dense.n >= 3 and all(layer.dense and layer.sparse for layer in first.layers)


def test_nodes_without_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_up_times(monkeypatch)
    path = save_dense_cnn(tmp_path / "net.onnx", names=False)
    model = onnx.load(path)
    before = model.SerializeToString()
    for source in (path, path.read_bytes(), model):
        measured = estimate_sparsity(source, CONFIG)
        assert [layer.weights for layer in measured.layers][:2] == [("stem.weight",), ("first.weight",)]
    assert model.SerializeToString() == before


def test_weights_with_nan(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"layer 'second': its weight holds NaN"):
        estimate_sparsity(save_dense_cnn(tmp_path / "net.onnx", nan=True), CONFIG)


def test_patterns_that_no_kernel_uses(network: Path) -> None:
    for text in ("4:8", "3:4", "2:3", "dense"):
        with pytest.raises(ConfigError, match="no kernel makes use of"):
            estimate_sparsity(network, CONFIG, text)
    with pytest.raises(FormatError, match="no sparsity pattern"):
        hardware_pattern("two of four")
    with pytest.raises(ConfigError, match="no layer matches"):
        estimate_sparsity(network, replace(CONFIG, layer_precisions=(("nobody", ("float32",)),)))  # type: ignore[arg-type]
