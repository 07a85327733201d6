"""From a PyTorch model to a running engine: prune, export, build, run."""

import sys
from pathlib import Path

import torch
from torch import nn

import tamis
from tamis import sparsity


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 16)).eval()
    x = torch.randn(1, 256)

    print(sparsity.prune(model, "2:4"))
    sparsity.finalize(model)
    sparsity.export_onnx(model, (x,), folder / "net.onnx", input_names=["x"], output_names=["y"])

    tamis.build(folder / "net.onnx", output=folder / "net.tamis")
    y = tamis.load(folder / "net.tamis").run({"x": x}, output="torch")["y"]
    print("largest difference from PyTorch:", float((y - model(x)).abs().max()))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
