"""Checking torch models and state dicts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from tamis.formats import NM
from tamis.sparsity import (
    LayerCheck,
    check_module,
    check_state_dict,
    finalize,
    magnitude_mask,
    prune,
)


def only(checks: tuple[LayerCheck, ...]) -> LayerCheck:
    (check,) = checks
    return check


def masked(layer: nn.Module, axis: int) -> nn.Module:
    """The layer with 2:4 zeros along an axis of its weight."""
    with torch.no_grad():
        layer.weight.mul_(magnitude_mask(layer.weight, NM(2, 4), axis))
    return layer


def test_dense_layer_says_how_far_it_is() -> None:
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0, 2, 0, 3, 4, 5, 0]])
    check = only(check_module(layer))
    assert (check.name, check.op, check.axis, check.shape) == ("weight", "Linear", 1, (1, 8))
    assert (check.zeros, check.groups) == (0.375, 0.5)
    assert not check.eligible
    assert "50.0% of the groups along axis 1 are 2:4" in str(check.reason)


def test_held_and_finalized_masks_are_seen() -> None:
    layer = nn.Conv2d(8, 8, 3)
    prune(layer)
    held = only(check_module(layer))
    finalize(layer)
    assert held == only(check_module(layer))
    assert held.eligible and held.groups == 1.0 and held.zeros == 0.5 and held.op == "Conv2d"


@pytest.mark.parametrize(
    ("layer", "wrong"),
    [
        (nn.Conv2d(8, 8, 4), 3),
        (nn.Conv2d(8, 8, 3), 0),
        (nn.Linear(8, 8), 0),
        (nn.ConvTranspose2d(8, 8, 4), 1),
    ],
)
def test_pattern_along_another_axis_is_rejected(layer: nn.Module, wrong: int) -> None:
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)
    check = only(check_module(masked(layer, wrong)))
    assert not check.eligible
    assert check.zeros == 0.5
    assert f"2:4 along axis {wrong}, but the layer reduces over axis {check.axis}" in str(check.reason)


def test_pattern_along_the_flattened_kernel_is_rejected() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3)
    with torch.no_grad():
        flat = layer.weight.view(8, -1)
        flat.mul_(magnitude_mask(flat, NM(2, 4), 1))
    assert "flattened kernel" in str(only(check_module(layer)).reason)


def test_masks_of_other_tools_are_a_reason_until_removed() -> None:
    layer = nn.Linear(8, 8)
    torch_prune.custom_from_mask(layer, "weight", magnitude_mask(layer.weight, NM(2, 4), 1))
    layer(torch.ones(1, 8))
    check = only(check_module(layer))
    assert check.groups == 1.0 and "torch.nn.utils.prune" in str(check.reason)
    torch_prune.remove(layer, "weight")
    assert only(check_module(layer)).eligible


def test_state_dicts_before_and_after_finalize() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 6), nn.Linear(6, 4))
    prune(model)
    for _ in range(2):
        checks = {check.name: check for check in check_state_dict(model.state_dict())}
        assert set(checks) == {"0.weight", "2.weight", "3.weight"}
        assert checks["0.weight"].eligible and checks["2.weight"].eligible
        assert "6 inputs" in str(checks["3.weight"].reason)
        finalize(model)


def test_state_dict_with_masks_of_torch_prune() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    torch_prune.custom_from_mask(model[0], "weight", magnitude_mask(model[0].weight, NM(2, 4), 1))
    check = only(check_state_dict(model.state_dict()))
    assert check.name == "0.weight" and check.groups == 1.0
    assert "stored weight is dense" in str(check.reason)


def test_nan_counts_as_a_value() -> None:
    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([[1.0, float("nan"), 2.0, 0.0]])
    assert only(check_module(layer)).groups == 0.0
