"""The whole way on one small network: channels, their order, 2:4, tuning, export, build, run; no zero may get lost."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

import tamis
from channel_networks import Residual
from tamis import sparsity

PATTERN = "2:4"


class Network(nn.Module):
    """A stem, two residual blocks with a shortcut of each kind, and a classifier of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential(Residual(32, 32, 1, 1), Residual(32, 64, 2, 1))
        self.classify = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classify(self.blocks(self.stem(images)).mean((2, 3)))
        return scores


def train(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, held: sparsity.SparseTraining | None = None
) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for _ in range(6):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
        if held is not None:
            held.step()


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    layers = (nn.Conv2d, nn.Linear)
    return {name: module.weight.detach() for name, module in model.named_modules() if isinstance(module, layers)}


def test_no_zero_gets_lost_between_torch_and_the_engine(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(16, 3, 12, 12), torch.randint(10, (16,))
    dense = Network()
    train(dense, images, labels)

    # channels: fewer, and what is left fits 2:4 still
    report = sparsity.prune_channels(dense.eval(), (images,), sparsity.Removal(ratio=0.3, spread="layer", multiple=8))
    model = report.model
    assert report.macs_ratio < 0.8
    train(model, images, labels)

    # their order: computes the same, and 2:4 keeps more
    model.eval()
    before = model(images)
    kept = sparsity.permute_channels(model, images, PATTERN, escapes=0)
    assert kept.after > kept.before
    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)

    # 2:4, held through a few steps that change what is left
    held = sparsity.SparseTraining(model, PATTERN)
    masks = {name: weight != 0 for name, weight in weights_of(model).items()}
    start = copy.deepcopy(weights_of(model))
    train(model, images, labels, held)
    held.finalize()
    model.eval()
    tuned = weights_of(model)
    for name, weight in tuned.items():
        assert torch.equal(weight != 0, masks[name]), name
        assert not torch.equal(weight, start[name]), name
    sparse = {name for name, mask in masks.items() if not mask.all()}
    assert sparse == masks.keys() - {"stem.0"}  # an image has three channels

    # export: norms are folded, which scales rows and moves no zero
    exported = sparsity.export_onnx(model, (images,), tmp_path / "net.onnx", input_names=["images"], output_names=["y"])
    for checks in (exported.layers, sparsity.check_onnx(tmp_path / "net.onnx", PATTERN)):
        assert [check.eligible for check in checks].count(True) == len(sparse) == len(checks) - 1

    # build and run, on inputs that no step before has seen
    engine = tamis.build(
        tmp_path / "net.onnx", output=tmp_path / "net.tamis", precisions=("float32",), threads=1, repetitions=3,
        optimization_level=0, exclude_tactics=("openvino",),  # which would keep the weights in a file of its own
    )  # fmt: skip
    unseen = torch.randn(16, 3, 12, 12).numpy()
    (expected,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"images": unseen})
    result = tamis.load(tmp_path / "net.tamis").run({"images": unseen})["y"]
    assert np.isfinite(result).all()
    assert np.abs(result - expected).max() <= 1e-4 * np.abs(expected).max()
    with torch.no_grad():
        assert np.abs(expected - model(torch.from_numpy(unseen)).numpy()).max() <= 1e-4 * np.abs(expected).max()

    # the zeros in the engine: by its records, and counted in what it stores
    assert not any("BatchNorm" in layer.kind for layer in engine.plan.layers)
    records = [layer for layer in engine.plan.layers if layer.eligible]
    assert len(records) == len(sparse)
    zeros = sorted(1 - float(mask.float().mean()) for name, mask in masks.items() if name in sparse)
    np.testing.assert_allclose(sorted(layer.zeros for layer in records), zeros, atol=1e-6)
    convolutions = {name for name, weight in tuned.items() if weight.ndim == 4}
    for name in convolutions:
        np.testing.assert_array_equal(engine.tensors[f"{name}.weight"] != 0, masks[name].numpy(), err_msg=name)
    assert len(convolutions) == 6
    assert tamis.explain(engine).verdict.eligible == len(sparse)
