"""The kernels under test: every level of this machine, and AMX in emulation where the processor has none; those for GPUs
under a driver that is played."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
import torch
from played_driver import PlayedDriver, packed_source

from tamis.compiler.tactics import cuda_kernels, cuda_steps, implicit_gemm
from tamis.devices.cuda import kernels, module, tensor_map
from tamis.devices.cuda.overlap import Overlap
from tamis.kernels.cpu import levels, load
from tamis.kernels.cpu.build import compile_library

NATIVE = Path(__file__).parent / "native"
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # for the networks there


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The kernels compiled against emulated AMX instructions; needs AVX-512 all the same."""
    if platform.machine() != "x86_64" or "avx512_bf16" not in levels():
        pytest.skip("AMX in emulation needs a processor with AVX-512 and bfloat16")
    output = tmp_path_factory.mktemp("emulated") / "libtamis_cpu.so"
    assert compile_library(output, extra_flags=("-O1", "-DTAMIS_EMULATE_AMX", f"-I{NATIVE}")) == ()
    return load(output)


def pytest_generate_tests(metafunc):
    if "level" in metafunc.fixturenames:
        metafunc.parametrize("level", (*levels(), "amx-emulated"), indirect=True)


@pytest.fixture
def level(request):
    """(library, level): each level that can run, natively or emulated."""
    if request.param == "amx-emulated":
        return request.getfixturevalue("emulated"), "amx"
    return load(), request.param


@pytest.fixture
def driver(monkeypatch):
    """The driver, played on the CPU, in place of the real one; kernels are compiled for it."""
    played = PlayedDriver()

    monkeypatch.setattr(cuda_steps, "compile_source", packed_source)
    monkeypatch.setattr(cuda_steps, "compiler_name", lambda: "nvrtc 13.0")
    monkeypatch.setattr(implicit_gemm, "compiles_for", lambda device: True)
    monkeypatch.setattr(cuda_kernels, "compiler_name", lambda: "nvrtc 13.0")
    monkeypatch.setattr(kernels, "current_stream", lambda device: 77)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(kernels, "can_overlap", lambda device: True)
    monkeypatch.setattr(module, "OVERLAP", Overlap())
    for user in (module, tensor_map):
        monkeypatch.setattr(user, "load_driver", lambda: played)
    return played
