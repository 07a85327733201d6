"""What is said of models, masks and checkpoints that cannot be pruned or checked: one clear error each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_graphs import dense, model, node
from torch import nn

from tamis.errors import ConfigError, SparsityError, TamisError
from tamis.sparsity import (
    SparseTraining,
    apply_masks,
    bake_state_dict,
    check_module,
    check_onnx,
    check_state_dict,
    export_onnx,
    prune,
    prune_onnx,
)


def linear(size: int = 8, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size, **options))


def with_nan() -> nn.Sequential:
    network = linear()
    network[0].weight.data[2, 3] = float("nan")
    return network


def trained(size: int) -> SparseTraining:
    return SparseTraining(linear(size))


HELD = "a.parametrizations.weight"
CASES: list[tuple[Callable[[], object], str]] = [
    (lambda: prune(with_nan()), "layer '0.weight': its weight holds NaN or infinity. Mend or retrain"),
    (lambda: prune(nn.Sequential(nn.ReLU())), "no linear, convolution or attention layer. Check which model"),
    (
        lambda: prune(linear(6)),
        "2:4 fits none of the 1 weights; '0.weight': 6 inputs to reduce over, not a multiple of 4",
    ),
    (lambda: prune(linear(), "2:3"), "2:3 fits none of the 1 weights"),
    (lambda: prune({"0.weight": torch.ones(8, 8)}), "the model is a dict. Give a torch module"),  # type: ignore[arg-type]
    (lambda: prune(nn.Sequential(nn.LazyLinear(8))), "layer '0.weight': its weight has no shape yet. Run the model"),
    (
        lambda: prune(linear(device="meta")),
        "layer '0.weight': its weight is on the meta device and has no values. Load",
    ),
    (lambda: check_module(nn.Sequential(nn.LazyLinear(8))), "its weight has no shape yet"),
    (lambda: check_module(linear(device="meta")), "its weight is on the meta device"),
    (lambda: apply_masks(linear(), {"0.weight": torch.ones(4, 8)}), "its mask has shape [4, 8], its weight [8, 8]"),
    (lambda: apply_masks(linear(), {"0.weight": np.ones((8, 8))}), "its mask is a ndarray. Give a tensor"),  # type: ignore[dict-item]
    (lambda: apply_masks(linear(), {"1.weight": torch.ones(8, 8)}), "layer '1.weight': cannot be masked"),
    (lambda: apply_masks(linear(), {"0.weight": torch.ones(8, 8)}), "the mask does not follow 2:4 along axis 1"),
    (lambda: prune(linear(), method=lambda layer: layer.weight[:4]), "its score has shape [4, 8], its weight [8, 8]"),
    (lambda: prune(linear(), plan={"1.weight": "2:4"}), "'1.weight', which is no weight of the model"),
    (lambda: trained(16).load_state_dict(trained(8).state_dict()), "the checkpoint is of another model: 0.weight is"),
    (
        lambda: bake_state_dict({f"{HELD}.original": torch.ones(8, 8), f"{HELD}.0.mask": torch.ones(4, 8) > 0}),
        "layer 'a.weight': its mask has shape [4, 8], its weight [8, 8]",
    ),
]


@pytest.mark.parametrize(("use", "said"), CASES)
def test_one_clear_error(use: Callable[[], object], said: str) -> None:
    with pytest.raises(TamisError) as caught:
        use()
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, SparsityError)


def test_an_error_leaves_the_model_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(8, 8), with_nan())
    with pytest.raises(SparsityError, match=r"layer '1\.0\.weight'"):
        prune(network)
    assert list(network.state_dict()) == ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]
    prune(network, exclude=["1.0"])


def test_nan_is_told_by_checks_too() -> None:
    (check,) = check_module(with_nan())
    assert str(check.reason).endswith("it holds NaN or infinity")
    weight = dense(8, 8)
    weight[7, 7] = np.nan
    (check,) = check_onnx(model([node("MatMul", "x w")], w=weight))
    assert str(check.reason).endswith("it holds NaN or infinity")


def test_weights_without_elements(tmp_path: Path) -> None:
    for network in (nn.Sequential(nn.Linear(0, 8), nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 0), nn.Linear(8, 8))):
        first, second = check_module(network)
        assert (first.fits, second.fits) == (False, True) and first.reason == "its weight holds no elements"
        assert [check.fits for check in check_state_dict(network.state_dict())] == [False, True]
        assert [layer.reason for layer in prune(network).layers] == ["its weight holds no elements", None]
    nodes = [node("MatMul", "x e", "h"), node("MatMul", "h w")]
    report = prune_onnx(model(nodes, e=dense(8, 0), w=dense(8, 8)), tmp_path / "s.onnx")
    assert [layer.reason for layer in report.layers] == ["its weight holds no elements", None]


def test_exports_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"args is a Tensor\. Give a tuple of inputs"):
        export_onnx(linear(), torch.randn(2, 8), tmp_path / "m.onnx")  # type: ignore[arg-type]
    with pytest.raises(SparsityError, match=r"output 0 of the torch model holds NaN.*give other example inputs"):
        export_onnx(linear(), (torch.full((2, 8), float("inf")),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
