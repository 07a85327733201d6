"""Networks exported by torch, compared with torch itself in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.evaluate import run
from tamis.compiler.ir.verify import verify

pytestmark = pytest.mark.usefixtures("exporter_registry")


class Block(nn.Module):
    """A convolution with squeeze and excitation, then attention over its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.squeeze = nn.Conv2d(16, 16, 1)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.layer_norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.norm(self.stem(image)))
        x = x * nn.functional.hardsigmoid(self.squeeze(nn.functional.adaptive_avg_pool2d(x, 1)))
        x = nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(nn.functional.gelu(self.layer_norm(tokens)).mean(1))


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_exported_block(tmp_path: Path, dynamo: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Block().eval()
    model.norm.running_mean.uniform_(-1, 1)
    image = torch.randn(2, 3, 16, 16)
    path = tmp_path / "block.onnx"
    axes = {} if dynamo else {"dynamic_axes": {"image": {0: "batch"}}}
    torch.onnx.export(
        model.to(dtype), (image.to(dtype),), path, dynamo=dynamo, input_names=["image"], verbose=False, **axes
    )
    graph = import_onnx(path, {"image": (2, 3, 16, 16)})
    verify(graph)
    with torch.no_grad():
        expected = model.double()(image.to(dtype).double()).numpy()
    (got,) = run(graph, {"image": image.to(dtype).numpy()}, exact=True).values()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    kinds = {type(node.op).__name__ for node in graph.nodes}
    assert {"Conv", "Linear", "MatMul", "Softmax"} <= kinds
    if dynamo:
        assert any(name.startswith("node_") for node in graph.nodes for name in node.origin)
