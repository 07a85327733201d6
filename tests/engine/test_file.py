from __future__ import annotations

import errno
import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from sample_engines import make_engine
from tamis.engine import Engine, check_output, file, read, save, to_json
from tamis.errors import ConfigError, CorruptEngine, EngineError, OutputError, TamisError
from tamis.files import replaced_file


@pytest.fixture
def engine() -> Engine:
    return make_engine()


@pytest.fixture
def path(engine: Engine, tmp_path: Path) -> Path:
    save(engine, tmp_path / "sample.tamis")
    return tmp_path / "sample.tamis"


def test_round_trip(engine: Engine, path: Path) -> None:
    again = read(path)
    assert again.plan == engine.plan
    assert set(again.tensors) == set(engine.tensors)
    for name, array in engine.tensors.items():
        assert again.tensors[name].dtype == array.dtype
        assert again.tensors[name].shape == array.shape
        assert again.tensors[name].tobytes() == array.tobytes()


def test_an_engine_prints_in_a_line(engine: Engine) -> None:
    assert repr(engine).startswith(f"<Engine {engine.plan.name!r} for ") and len(repr(engine)) < 120


def test_tensors_are_aligned_read_only_views(path: Path) -> None:
    for name, array in read(path).tensors.items():
        assert not array.flags.writeable or array.size == 0, name
        assert array.ctypes.data % array.itemsize == 0, name
        if array.nbytes and array.nbytes % 64 == 0:
            assert array.ctypes.data % 64 == 0, name
            assert not array.flags.owndata, name


def test_equal_engines_give_equal_bytes_whatever_the_order(engine: Engine, path: Path, tmp_path: Path) -> None:
    turned = Engine(engine.plan, dict(reversed(engine.tensors.items())))
    save(turned, tmp_path / "turned.tamis")
    assert (tmp_path / "turned.tamis").read_bytes() == path.read_bytes()


def test_arrays_in_any_memory_order_are_stored_the_same(engine: Engine, path: Path, tmp_path: Path) -> None:
    matrix = engine.tensors["matrix"]
    turned = {**engine.tensors, "matrix": np.asfortranarray(matrix), "w": engine.tensors["w"].astype(">f4")}
    save(Engine(engine.plan, turned), tmp_path / "turned.tamis")
    assert (tmp_path / "turned.tamis").read_bytes() == path.read_bytes()


def test_any_safetensors_reader_can_read_it(engine: Engine, path: Path) -> None:
    with safe_open(path, framework="numpy") as reader:
        assert reader.metadata()["plan"] == to_json(engine.plan)
        assert set(reader.keys()) == set(engine.tensors)
        np.testing.assert_array_equal(reader.get_tensor("matrix"), engine.tensors["matrix"])


def test_every_flipped_bit_is_found(path: Path) -> None:
    """All bits of the length, the header's start, the padding and each tensor; a sample of the rest."""
    original = path.read_bytes()
    header = 8 + struct.unpack("<Q", original[:8])[0]
    dense = set(range(200)) | set(range(header - 80, len(original)))
    sample = sorted(dense | set(range(200, header, 7)))
    with path.open("r+b", buffering=0) as file:
        for position in sample:
            for bit in range(8) if position in dense else (position % 8,):
                os.pwrite(file.fileno(), bytes([original[position] ^ 1 << bit]), position)
                with pytest.raises(CorruptEngine) as caught:
                    read(path)
                assert "\n" not in str(caught.value)
            os.pwrite(file.fileno(), original[position : position + 1], position)
    assert path.read_bytes() == original


def test_every_truncation_is_found(path: Path) -> None:
    original = path.read_bytes()
    for length in [len(original) - 1, *reversed(range(200, len(original), 13)), *reversed(range(200))]:
        os.truncate(path, length)
        with pytest.raises(CorruptEngine):
            read(path)
    path.write_bytes(original + b"\0")
    with pytest.raises(CorruptEngine):
        read(path)


def test_without_verification_only_the_weights_are_trusted(engine: Engine, path: Path) -> None:
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    assert read(path, verify=False).plan == engine.plan
    with pytest.raises(CorruptEngine, match="altered"):
        read(path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    other = tmp_path / "weights.safetensors"
    save_file({"a": np.zeros(4, np.float32)}, other)
    with pytest.raises(CorruptEngine, match="not an engine"):
        read(other)
    save_file({"a": np.zeros(4, np.float32)}, other, metadata={"format": "pt"})
    with pytest.raises(CorruptEngine, match="not an engine"):
        read(other)
    for content in (b"PK\3\4 something else entirely", b"\x08\x07\x12\x07pytorch" * 9, os.urandom(4096)):
        other.write_bytes(content)
        with pytest.raises(CorruptEngine):
            read(other)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="No such file"):
        read(tmp_path / "absent.tamis")
    with pytest.raises(EngineError, match="directory"):
        read(tmp_path)


def test_a_newer_format_and_a_newer_plan_say_so(engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(replace(engine, plan=replace(engine.plan, version=99)), path)
    with pytest.raises(CorruptEngine, match="version 99"):
        read(path)
    with monkeypatch.context() as patch:
        patch.setattr(file, "FILE_FORMAT", "tamis-engine-9")
        save(engine, path)
    with pytest.raises(CorruptEngine, match="tamis-engine-9"):
        read(path)


def test_a_missing_constant_is_named(engine: Engine) -> None:
    with pytest.raises(CorruptEngine, match="step 'scale' needs the tensor 'w'"):
        Engine(engine.plan, {})


def test_a_reserved_tensor_name_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="__metadata__"):
        save(Engine(engine.plan, {**engine.tensors, "__metadata__": np.zeros(1)}), tmp_path / "a.tamis")


def test_saving_over_an_open_engine_leaves_its_tensors_intact(engine: Engine, path: Path) -> None:
    opened = read(path)
    save(Engine(engine.plan, {"w": np.float32([9.0])}), path)
    np.testing.assert_array_equal(opened.tensors["matrix"], engine.tensors["matrix"])
    assert read(path).tensors["w"] == 9.0


@pytest.mark.parametrize("where", ["missing/engine.tamis", "folder", "file/engine.tamis", "/dev/null", "/dev/full"])
def test_an_output_that_cannot_be_written(engine: Engine, tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError):
        check_output(tmp_path / where)
    with pytest.raises(OutputError) as caught:
        save(engine, tmp_path / where)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/dev/null").is_file()


def test_checking_an_output_changes_nothing(path: Path, tmp_path: Path) -> None:
    before = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}
    check_output(path)
    check_output(tmp_path / "new.tamis", [path, tmp_path / "absent"])
    assert {entry: entry.read_bytes() for entry in tmp_path.iterdir()} == before
    with pytest.raises(ConfigError, match="would replace"):
        check_output(path, [tmp_path / "absent", path])


@pytest.mark.parametrize("failing", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_nothing_behind(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(failing, os.strerror(failing))

    target = tmp_path / "engine.tamis"
    target.write_text("an older file")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=os.strerror(failing)):
        save(engine, target)
    assert [p.name for p in tmp_path.iterdir()] == ["engine.tamis"]
    assert target.read_text() == "an older file"


def test_a_file_size_limit_leaves_nothing_behind(tmp_path: Path) -> None:
    """The real thing: the kernel refuses to write past a limit, in a process of its own."""
    import subprocess
    import sys

    program = (
        "import resource, signal, sys, pathlib\n"
        "from sample_engines import make_engine\n"
        "from tamis.engine import save\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "save(make_engine(), pathlib.Path(sys.argv[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.tamis")],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert "OutputError" in done.stderr and "File too large" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_caller_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replaced_file(tmp_path / "x") as opened:
        opened.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.tamis"
    link.symlink_to(tmp_path / "real" / "engine.tamis")
    save(engine, link)
    assert link.is_symlink() and read(link).plan == engine.plan


def test_bfloat16_keeps_its_bits(path: Path, engine: Engine) -> None:
    half = read(path).tensors["half"]
    assert half.dtype == ml_dtypes.bfloat16
    assert half.view(np.uint16).tolist() == engine.tensors["half"].view(np.uint16).tolist()


def test_all_errors_have_one_line() -> None:
    assert issubclass(CorruptEngine, TamisError)
    assert "\n" not in str(CorruptEngine("a\nb", remedy="c\nd"))


def test_the_header_is_plain_json(path: Path) -> None:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    assert (8 + length) % 64 == 0
    header = json.loads(content[8 : 8 + length])
    assert list(header["__metadata__"]) == ["digest", "format", "plan"]
