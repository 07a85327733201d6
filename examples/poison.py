"""Finding memory mistakes: with ``poison=True`` all memory without a live value reads as NaN."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import tamis
from tamis import sparsity


def main(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)).eval()
    sparsity.export_onnx(model, (torch.randn(1, 64),), folder / "poisoned.onnx", input_names=["x"])
    engine = tamis.build(folder / "poisoned.onnx")

    x = np.ones((1, 64), np.float32)
    usual = tamis.load(engine).run([x])
    poisoned = tamis.load(engine, poison=True).run([x])
    for name, array in usual.items():
        assert np.array_equal(array, poisoned[name]), name
    print("no step reads memory that it should not")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
