"""All kernels in a program of their own, watched by the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tamis.kernels.cpu import build, levels

NATIVE = Path(__file__).parent / "native"
KERNELS = Path(build.__file__).parent
FLAGS = (
    "-std=c++17",
    "-g1",  # lines, for reports
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-Wno-psabi",
)


@pytest.mark.slow
def test_kernels_stay_inside_their_buffers(tmp_path):
    if "avx512_bf16" not in levels():
        pytest.skip("the build below contains every level and needs a processor with AVX-512 and bfloat16")
    command = build.compiler()
    include = ("-DTAMIS_EMULATE_AMX", f"-I{KERNELS}", f"-I{NATIVE}")
    sources = [(NATIVE / "check.cpp", ()), *((KERNELS / name, flags) for name, flags in build.sources())]

    def compile_one(source):
        path, flags = source
        output = tmp_path / f"{path.name}.o"
        subprocess.run([*command, *FLAGS, *flags, *include, "-c", str(path), "-o", str(output)], check=True)
        return str(output)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    program = tmp_path / "check"
    subprocess.run([*command, *FLAGS, *objects, "-pthread", "-o", str(program)], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert " 0 failures" in result.stdout
