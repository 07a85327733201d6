"""Candidates that break the device: who is named, what is noted, and that nobody runs them again."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from test_race import linear_graph

from fragile_device import SYMPTOM, FragileDevice
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph
from tamis.compiler.tactics import CPU_TACTICS
from tamis.compiler.tactics.base import layer_of
from tamis.compiler.tuner import open_track
from tamis.compiler.tuner.cache import Measurement
from tamis.compiler.tuner.race import LayerRace, Track, race_layer, race_suspects
from tamis.compiler.tuner.suspect import Suspect, note_culprit, watch
from tamis.compiler.tuner.timing import Clock, Contender
from tamis.errors import ConfigError, DeviceLost


def race(graph: Graph, track: Track) -> LayerRace:
    return race_layer(layer_of(graph, graph.nodes[0]), CPU_TACTICS, track)


# When it is bound, in the run that is checked, in the untimed call of the first turns, in a turn, in the finals.
@pytest.mark.parametrize("run", [0, 1, 2, 4, 7])
def test_who_breaks_the_device_is_named_noted_and_never_run_again(run: int, tmp_path: Path) -> None:
    graph = linear_graph(n=64, k=128)
    config = BuildConfig(repetitions=9, timing_cache=tmp_path / "times.json", exclude_tactics=("tamis",))
    device = FragileDevice("onednn", run)
    track = open_track(graph, device, config)
    with pytest.raises(DeviceLost) as caught:
        race(graph, track)
    lost = caught.value
    assert lost.layer == "fc" and lost.tactic == "onednn" and lost.symptom == SYMPTOM
    assert str(lost).startswith("layer 'fc': onednn") and f"broke the GPU: {SYMPTOM}" in str(lost)
    note_culprit(track.cache, lost)

    sound = FragileDevice("onednn", 0)  # it would break again at once
    result = race(graph, open_track(graph, sound, config))
    (culprit,) = [e for e in result.entries if e.choice.tactic == "onednn"]
    assert culprit.disqualified and culprit.timing is None
    assert culprit.reason == f"failed: broke the GPU: {SYMPTOM}"
    assert {e.choice.tactic for e in result.finishers} == {"aten"} and not sound.broken


def test_an_error_that_leaves_the_device_alone_only_disqualifies() -> None:
    class Refusing(FragileDevice):
        def fail(self) -> None:
            raise RuntimeError("the library said no")

    graph = linear_graph()
    result = race(graph, open_track(graph, Refusing("onednn"), BuildConfig(repetitions=3)))
    (refused,) = [e for e in result.entries if e.choice.tactic == "onednn"]
    assert refused.reason == "failed: the library said no"


def test_an_error_that_comes_late_is_not_blamed_on_the_next_contender() -> None:
    device, calls = FragileDevice(), []

    def breaks() -> None:
        calls.append("a")
        device.broken = True

    contenders = {
        "a": Contender(breaks, suspect=Suspect("a", key="key of a")),
        "b": Contender(lambda: calls.append("b"), suspect=Suspect("b", key="key of b")),
    }
    with pytest.raises(DeviceLost, match=r"^a broke the GPU") as caught:
        Clock(device, cold=False).race(contenders, 3)
    assert caught.value.culprit == "key of a" and calls == ["a"]


def test_the_reference_is_not_blamed_on_a_candidate() -> None:
    graph = linear_graph()
    with pytest.raises(DeviceLost, match="layer 'fc': the float32 reference broke the GPU") as caught:
        race(graph, open_track(graph, FragileDevice("aten", 1), BuildConfig(repetitions=3)))
    assert caught.value.culprit == ""


def test_the_nearest_suspect_counts_and_other_errors_pass() -> None:
    device = FragileDevice()
    with pytest.raises(ConfigError), watch(device, Suspect("far")):
        raise ConfigError("no")
    with pytest.raises(DeviceLost, match="near broke"), watch(device, Suspect("far")), watch(device, Suspect("near")):
        device.fail()


def test_the_culprit_stays_out_when_the_rest_is_measured_again(tmp_path: Path) -> None:
    """More time than before starts the race of a layer anew; not for what broke the GPU."""
    graph = linear_graph()
    layer = layer_of(graph, graph.nodes[0])

    def track(seconds: float) -> Track:
        config = BuildConfig(repetitions=3, timing_cache=tmp_path / "times.json", budget_seconds=seconds)
        return open_track(graph, FragileDevice("onednn"), config)

    first = track(0.0)
    (choice,) = [
        e.choice for e in race(graph, replace(first, device=FragileDevice())).entries if e.choice.tactic == "onednn"
    ]
    (suspect,) = race_suspects(layer, [choice], first)
    first.cache.put(suspect.key, Measurement(failure=f"failed: broke the GPU: {SYMPTOM}"))
    first.cache.save()
    reasons = {e.choice.tactic: e.reason for e in race(graph, track(60.0)).entries}
    assert reasons["onednn"] == f"failed: broke the GPU: {SYMPTOM}" and reasons["tamis.linear"] == ""


def test_the_error_survives_the_way_from_one_process_to_another() -> None:
    lost = DeviceLost("x broke", layer="fc", remedy="go on", tactic="x", culprit="key", symptom="why")
    again = pickle.loads(pickle.dumps(lost))
    assert str(again) == str(lost) and vars(again) == vars(lost)
