"""The kernels under test: every level of this machine, and AMX in emulation where the processor has none."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tamis.kernels.cpu import levels, load
from tamis.kernels.cpu.build import compile_library

NATIVE = Path(__file__).parent / "native"


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
