"""The store of compiled kernels: what it gives back, what it makes of damage, and that it stays small."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tamis.errors import BuildError
from tamis.kernels import KernelStore, kernel_store
from tamis.kernels.cuda import compile as toolchain
from tamis.kernels.cuda import unit
from tamis.kernels.cuda.compile import compile_source
from tamis.kernels.cuda.nvrtc import Nvrtc

UNIT = ("softmax.cu", {"N": 1}, "sm_90")


class FakeCompiler:
    """Its binaries name what they were made of; the list holds what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, nvrtc: Nvrtc, text: str, name: str, options: tuple[str, ...]) -> bytes:
        self.asked.append(text)
        if "broken" in text:
            raise BuildError("it does not compile")
        return f"{nvrtc.identity} {text} {options[:-1]}".encode()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    """A compiler that needs no library, and an empty store in ``tmp_path / "store"``."""
    fake = FakeCompiler()
    monkeypatch.setenv("TAMIS_KERNEL_CACHE", str(tmp_path / "store"))
    monkeypatch.setattr(toolchain, "compile_with_nvrtc", fake)
    monkeypatch.setattr(toolchain, "load_nvrtc", lambda: Nvrtc("libnvrtc.so.13", (13, 0), None, "nvrtc 13.0 build 1"))
    return fake


def in_a_new_process(*arguments: object) -> bytes:
    """As the next process would: without what this one remembers."""
    toolchain._compile.cache_clear()
    return compile_source(*arguments)  # type: ignore[arg-type]


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.cubin"))


def test_the_next_process_compiles_nothing(compiler: FakeCompiler, tmp_path: Path) -> None:
    first = in_a_new_process(*UNIT)
    assert in_a_new_process(*UNIT) == first
    assert len(compiler.asked) == len(entries(tmp_path / "store")) == 1


def test_whatever_a_binary_depends_on_makes_another_entry(
    compiler: FakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    monkeypatch.setattr(unit, "FOLDER", folder)
    (folder / "softmax.cu").write_text('#include "near.h"\n')
    (folder / "near.h").write_text('// 1\n#  include "far.h"\n')
    (folder / "far.h").write_text('// 1\n#include "near.h"\n#include "emulated.h"\n')
    count = 0

    def assert_compiled(*arguments: object) -> None:
        nonlocal count
        in_a_new_process(*arguments)
        in_a_new_process(*arguments)
        count += 1
        assert len(compiler.asked) == count

    assert_compiled(*UNIT)
    assert_compiled("softmax.cu", {"N": 2}, "sm_90")
    assert_compiled("softmax.cu", {"N": 1}, "sm_90a")
    (folder / "far.h").write_text("// 2\n")  # two headers away
    assert_compiled(*UNIT)
    monkeypatch.setattr(toolchain, "_OPTIONS", ("--std=c++20",))
    assert_compiled(*UNIT)
    other = Nvrtc("libnvrtc.so.13", (13, 0), None, "nvrtc 13.0 build 2")
    monkeypatch.setattr(toolchain, "load_nvrtc", lambda: other)
    assert_compiled(*UNIT)
    monkeypatch.setattr(toolchain, "load_nvrtc", lambda: None)
    monkeypatch.setattr(toolchain, "_find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(toolchain, "_nvcc_words", lambda nvcc: "release 13.0, V13.0.48")
    monkeypatch.setattr(toolchain, "compile_with_nvcc", lambda nvcc, text, *_: compiler.asked.append(text) or b"binary")
    assert_compiled(*UNIT)
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-lineinfo")
    assert_compiled(*UNIT)


def test_the_folder_of_the_sources_does_not_matter(
    compiler: FakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "softmax.cu").write_text("// the same\n")
        monkeypatch.setattr(unit, "FOLDER", tmp_path / name)
        in_a_new_process(*UNIT)
    assert len(compiler.asked) == 1


@pytest.mark.parametrize("damage", ["empty", "short", "altered", "another's", "alien"])
def test_a_damaged_entry_is_compiled_again_and_replaced(damage: str, compiler: FakeCompiler, tmp_path: Path) -> None:
    whole = in_a_new_process(*UNIT)
    (path,) = entries(tmp_path / "store")
    content = path.read_bytes()
    in_a_new_process("softmax.cu", {"N": 2}, "sm_90")
    (other,) = set(entries(tmp_path / "store")) - {path}
    path.write_bytes({
        "empty": b"", "short": content[:-1], "altered": content[:-1] + b"?", "another's": other.read_bytes(),
        "alien": b"#!/bin/sh\n",
    }[damage])  # fmt: skip
    assert in_a_new_process(*UNIT) == whole
    assert len(compiler.asked) == 3
    assert path.read_bytes() == content


def test_what_does_not_compile_is_not_stored(compiler: FakeCompiler, tmp_path: Path) -> None:
    for count in (1, 2):
        with pytest.raises(BuildError, match="does not compile"):
            in_a_new_process("softmax.cu", {"broken": 1}, "sm_90")
        assert len(compiler.asked) == count
    assert not (tmp_path / "store").exists()


def test_it_can_be_switched_off(compiler: FakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for word in ("off", "OFF", "0"):
        monkeypatch.setenv("TAMIS_KERNEL_CACHE", word)
        assert kernel_store() is None
        in_a_new_process(*UNIT)
    assert len(compiler.asked) == 3
    assert not list(tmp_path.iterdir())


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(**variables: str) -> Path | None:
        for name in ("TAMIS_KERNEL_CACHE", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
            if name in variables:
                monkeypatch.setenv(name, variables[name])
        store = kernel_store()
        return store.folder if store is not None else None

    monkeypatch.chdir(tmp_path)
    assert folder(HOME="/users/a") == Path("/users/a/.cache/tamis/kernels")
    assert folder(HOME="/users/a", XDG_CACHE_HOME="/var/b") == Path("/var/b/tamis/kernels")
    assert folder(HOME="/users/a", XDG_CACHE_HOME="relative") == Path("/users/a/.cache/tamis/kernels")
    assert folder(HOME="/users/a", XDG_CACHE_HOME="/var/b", TAMIS_KERNEL_CACHE="~/c") == Path("/users/a/c")
    assert folder(HOME="/users/a", TAMIS_KERNEL_CACHE="c") == tmp_path / "c"
    assert folder(TAMIS_KERNEL_CACHE="~nobody-of-this-name/c") is None


@pytest.mark.parametrize("obstacle", ["a file", "no space", "read only"])
def test_a_folder_that_cannot_be_written_is_no_error(
    obstacle: str, compiler: FakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    whole = in_a_new_process(*UNIT)
    if obstacle == "a file":
        (path,) = entries(folder)
        path.unlink()
        folder.rmdir()
        folder.write_text("")
    else:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(28 if obstacle == "no space" else 30, obstacle)

        monkeypatch.setattr(Path, "replace" if obstacle == "no space" else "mkdir", refuse)
        monkeypatch.setattr(os, "utime", refuse)
        assert in_a_new_process(*UNIT) == whole  # what is there is used all the same
        assert len(compiler.asked) == 1
    in_a_new_process("softmax.cu", {"N": 2}, "sm_90")
    in_a_new_process("softmax.cu", {"N": 2}, "sm_90")
    assert len(compiler.asked) == 3
    left = list(folder.iterdir()) if folder.is_dir() else []
    assert [path.suffix for path in left] == ([] if obstacle == "a file" else [".cubin"]), "half a file was left"


def test_a_folder_is_for_its_owner(tmp_path: Path) -> None:
    store = KernelStore(tmp_path / "a" / "b")
    store.write("key", "cubin", b"binary")
    assert store.folder.stat().st_mode & 0o777 == 0o700


def aged(store: KernelStore, ages: dict[str, float]) -> None:
    """Make entries look as if they were last used so many seconds ago."""
    for key, age in ages.items():
        os.utime(store.path_of(key, "cubin"), times=(time.time() - age,) * 2)


def test_what_nobody_used_for_the_longest_time_goes(tmp_path: Path) -> None:
    size = 1 << 10
    store = KernelStore(tmp_path, most_bytes=8 * size)
    for number in range(7):
        store.write(str(number), "cubin", bytes([number]) * (size - 32))
    assert store.usage().entries == 7
    aged(store, {str(number): 1e4 - number for number in range(7)})
    assert store.read("0", "cubin") is not None  # the oldest is used again
    store.write("7", "plan", b"7" * (size - 32))
    assert store.usage().entries == 8, "it is just full"
    store.write("8", "cubin", b"8" * (size - 32))
    kept = [str(number) for number in range(9) if store.read(str(number), "plan" if number == 7 else "cubin")]
    assert kept == ["0", "3", "4", "5", "6", "7", "8"]
    usage = store.usage()
    assert (usage.entries, usage.size_bytes) == (7, 7 * size)


def test_another_process_bounds_what_it_finds(tmp_path: Path) -> None:
    KernelStore(tmp_path).write("old", "cubin", b"o" * 5000)
    aged(KernelStore(tmp_path), {"old": 1e4})
    small = KernelStore(tmp_path, most_bytes=6000)
    small.write("new", "cubin", b"n" * 2000)
    assert small.read("old", "cubin") is None
    assert small.read("new", "cubin") == b"n" * 2000


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    abandoned, begun = tmp_path / ".a.cubin.1.partial", tmp_path / ".b.cubin.2.partial"
    for path in (abandoned, begun):
        path.write_bytes(b"half")
    os.utime(abandoned, times=(time.time() - 1e5,) * 2)
    foreign = tmp_path / "notes.txt"
    foreign.write_text("somebody's")
    os.utime(foreign, times=(0, 0))
    KernelStore(tmp_path, most_bytes=1).write("key", "cubin", b"binary")
    assert sorted(path.name for path in tmp_path.iterdir()) == [begun.name, foreign.name]


PROGRAM = """
import sys
from pathlib import Path
from tamis.kernels import KernelStore

store = KernelStore(Path(sys.argv[1]), most_bytes=40_000)
wrong = 0
for turn in range(60):
    for number in range(20):
        key, wanted = str(number), bytes([number]) * 3000
        found = store.read(key, "cubin")
        wrong += found not in (None, wanted)
        if found is None:
            store.write(key, "cubin", wanted)
print(wrong)
"""


def test_many_processes_share_a_folder(tmp_path: Path) -> None:
    """More than fits, so that they remove what the others are about to read."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in started] == ["0"] * 3
    assert [process.returncode for process in started] == [0] * 3
    assert not list(tmp_path.glob(".*")), "half a file was left"
    assert KernelStore(tmp_path).usage().size_bytes <= 40_000 + 3 * 3032


def test_many_threads_share_a_store(tmp_path: Path) -> None:
    store = KernelStore(tmp_path, most_bytes=40_000)

    def work(seed: int) -> int:
        wrong = 0
        for number in np.random.default_rng(seed).integers(0, 30, 200):
            found = store.read(str(number), "plan")
            wrong += found not in (None, bytes([number]) * 2000)
            store.write(str(number), "plan", bytes([number]) * 2000)
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 0
