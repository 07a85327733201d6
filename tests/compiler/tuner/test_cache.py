"""The timing cache: what goes in comes out, files merge, foreign entries stay, trouble is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tamis.compiler.tuner.cache import Measurement, TimingCache, short_hash
from tamis.engine.plan import Accuracy, DeviceInfo, Timing
from tamis.errors import ConfigError, OutputError

DEVICE = DeviceInfo("cpu", "Some CPU", "x86_64", 4, ("avx2",), {"torch": "2.0"})
ENTRY = Measurement(Timing(12.5, 11.0, 14.25, 15), Accuracy(1e-6, 0.999999, 120.5))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "times.json"
    cache = TimingCache(path, DEVICE, 2)
    assert cache.get("a") is None
    cache.put("a", ENTRY)
    cache.put("b", Measurement(failure="failed: no"))
    cache.put("c", Measurement(number=3.5, numbers={"x": 1.0}))
    cache.save()
    again = TimingCache(path, DEVICE, 2)
    assert again.get("a") == ENTRY
    assert again.get("b") == Measurement(failure="failed: no")
    assert again.get("c") == Measurement(number=3.5, numbers={"x": 1.0})


def test_other_devices_threads_and_versions_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    cache = TimingCache(path, DEVICE, 2)
    cache.get("a")
    cache.put("a", ENTRY)
    cache.save()
    assert TimingCache(path, DEVICE, 4).get("a") is None
    assert TimingCache(path, replace(DEVICE, libraries={"torch": "2.1"}), 2).get("a") is None
    assert TimingCache(path, replace(DEVICE, name="Other CPU"), 2).get("a") is None


def test_saving_merges_with_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    first, second = TimingCache(path, DEVICE, 2), TimingCache(path, replace(DEVICE, name="Other"), 2)
    third = TimingCache(path, DEVICE, 2)
    for cache, key in ((first, "a"), (second, "b"), (third, "c")):
        cache.get(key)
        cache.put(key, ENTRY)
        cache.save()
    merged = TimingCache(path, DEVICE, 2)
    assert merged.get("a") == ENTRY
    assert merged.get("c") == ENTRY
    assert TimingCache(path, replace(DEVICE, name="Other"), 2).get("b") == ENTRY


def test_a_build_that_missed_nothing_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    TimingCache(path, DEVICE, 2).save()
    assert not path.exists()


def test_unreadable_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text("{ not json")
    with pytest.raises(ConfigError, match="not readable"):
        TimingCache(path, DEVICE, 2)


@pytest.mark.parametrize("text", ['{"version": 1, "layers": []}', "[]", '{"version": 1, "devices": 3}'])
def test_json_of_another_kind_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "estimate.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not a timing cache"):
        TimingCache(path, DEVICE, 2)
    assert path.read_text() == text


def test_unknown_version_is_skipped_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"version": 99, "devices": {}}))
    with pytest.warns(UserWarning, match="skipped"):
        assert TimingCache(path, DEVICE, 2).get("a") is None


def test_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    """At once, or at the end where the place was good at first."""
    blocker = tmp_path / "file"
    cache = TimingCache(blocker / "times.json", DEVICE, 2)
    cache.put("a", ENTRY)
    blocker.write_text("")
    with pytest.raises(OutputError, match="the timing cache is not kept: cannot write"):
        cache.save()
    with pytest.raises(OutputError, match="the timing cache is not kept: cannot write"):
        TimingCache(blocker / "times.json", DEVICE, 2)


def test_short_hash_separates_its_parts() -> None:
    assert short_hash("ab", "c") != short_hash("a", "bc")
    assert short_hash("ab") == short_hash(b"ab")
