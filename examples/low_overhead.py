"""Runs without checks or copies, for loops in which microseconds count."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import tamis
from tamis import sparsity


def main(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    sparsity.export_onnx(model, (torch.randn(1, 64),), folder / "small.onnx", input_names=["x"])
    session = tamis.load(tamis.build(folder / "small.onnx", threads=1))

    x = np.zeros((1, 64), np.float32)
    launch = session.bind([x])  # names, shapes and types are checked here, once
    for name, run in (("run", lambda: session.run([x])), ("bind", launch)):
        start = time.perf_counter()
        for number in range(1000):
            x[:] = number  # bound inputs are read anew in every run
            run()
        print(f"{name}: {(time.perf_counter() - start) * 1e3:.2f} us a run")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
