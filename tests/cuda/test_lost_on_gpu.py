"""A GPU that a kernel breaks: builds go on in a new process, and nothing else in the old one pretends to work.

The broken process is always one of its own, so that the tests themselves keep their GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from small_models import save_mlp
from tamis.engine import read

BREAK = """
import json, sys, warnings
from pathlib import Path
import torch
import tamis
from tamis.compiler import BuildWarning
from tamis.devices.cuda import device as cuda
from tamis.errors import DeviceLost

def break_gpu(*ignored):
    torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")]

def build(output):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BuildWarning)
        tamis.build("model.onnx", output=output, device="cuda", precisions=("float32", "float16"),
                    optimization_level=1, timing_cache=Path("times.json"))
    return [str(w.message) for w in caught if w.category is BuildWarning]
"""
LOST_IN_A_RACE = """
real = dict(cuda.LIBRARY_BINDERS)["cublaslt."]

def bind(*arguments):
    runner = real(*arguments)
    return lambda slots: (runner(slots), break_gpu())

cuda.LIBRARY_BINDERS = tuple((p, bind if p == "cublaslt." else binder) for p, binder in cuda.LIBRARY_BINDERS)
first, second = build("a.tamis"), build("b.tamis")
try:
    tamis.load("a.tamis")
except DeviceLost as error:
    print(json.dumps([first, second, str(error)]))
"""
LOST_BEFORE = """
sound = cuda.CudaDevice()
assert not sound.is_lost()
try:
    torch.empty(1 << 50, device="cuda")  # an error that leaves the GPU alone
except RuntimeError:
    assert not sound.is_lost()
break_gpu()
assert sound.is_lost() and sound.is_lost()
print(json.dumps(build("c.tamis")))
"""


def run(script: str, folder: Path) -> Any:
    (folder / "script.py").write_text(BREAK + script)  # without a guard against being imported
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_a_build_goes_on_without_what_broke_the_gpu(tmp_path: Path) -> None:
    save_mlp(tmp_path / "model.onnx", width=512)
    first, second, loading = run(LOST_IN_A_RACE, tmp_path)
    assert len(first) == 2 and "this process cannot use the GPU any more" in first[0]
    assert "cublaslt" in first[1] and "broke the GPU: CUDA error" in first[1]
    assert len(second) == 1 and "this process cannot use the GPU any more" in second[0]
    assert "earlier in this process broke the GPU" in loading
    layers = read(tmp_path / "a.tamis").plan.layers
    broken = [c for layer in layers for c in layer.candidates if c.reason.startswith("failed: broke the GPU: CUDA")]
    assert broken and {c.tactic for c in broken} == {"cublaslt"} and {c.status for c in broken} == {"disqualified"}
    assert (tmp_path / "a.tamis").read_bytes() == (tmp_path / "b.tamis").read_bytes()


def test_a_process_that_lost_the_gpu_before_builds_all_the_same(tmp_path: Path) -> None:
    save_mlp(tmp_path / "model.onnx", width=512)
    (told,) = run(LOST_BEFORE, tmp_path)
    assert "this process cannot use the GPU any more" in told
    assert read(tmp_path / "c.tamis").plan.device.kind == "cuda"
