"""Which weights can be sparse, along which axis, and the magnitude masks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from tamis.errors import SparsityError
from tamis.formats import NM, is_nm
from tamis.formats import magnitude_mask as reference_mask
from tamis.sparsity import LayerChoice, magnitude_mask, nm_mask, prunable


def by_name(model: nn.Module) -> dict[str, LayerChoice]:
    return {layer.full_name: layer for layer in prunable(model)}


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 8), NM(1, 2), NM(3, 5)])
@pytest.mark.parametrize("shape", [(40,), (3, 40), (40, 3), (7, 40, 3, 3), (40, 8, 2, 2), (2, 40, 1, 3, 2)])
@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_the_numpy_mask(pattern: NM, shape: tuple[int, ...], ties: bool) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if ties:
        weight = weight.round()  # many equal magnitudes and zeros of both signs
    axis = shape.index(40)
    expected = reference_mask(weight.numpy(), pattern, axis)
    np.testing.assert_array_equal(magnitude_mask(weight, pattern, axis).numpy(), expected)


def test_keeps_the_best_of_the_six_patterns() -> None:
    weight = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    kept = (weight.abs() * magnitude_mask(weight, NM(2, 4), 1)).sum(1)
    best = torch.stack([weight[:, list(pair)].abs().sum(1) for pair in itertools.combinations(range(4), 2)])
    torch.testing.assert_close(kept, best.amax(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_masks_of_other_types(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = reference_mask(weight.double().numpy(), NM(2, 4), 1)
    np.testing.assert_array_equal(magnitude_mask(weight, NM(2, 4), 1).numpy(), expected)


def test_infinity_is_kept_and_nan_refused() -> None:
    weight = torch.tensor([[1.0, -float("inf"), 2.0, 3.0]])
    assert magnitude_mask(weight, NM(2, 4), 1).tolist() == [[False, True, False, True]]
    with pytest.raises(SparsityError, match="NaN"):
        nm_mask(torch.full((1, 4), float("nan")), NM(2, 4), 1)


def test_axis_that_does_not_divide_is_refused() -> None:
    with pytest.raises(SparsityError, match="not a multiple of 4"):
        magnitude_mask(torch.ones(4, 6), NM(2, 4), 1)


def test_convolution_groups_lie_on_the_channels() -> None:
    weight = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    masked = weight * magnitude_mask(weight, NM(2, 4), 1)
    for k, c, r, s in itertools.product(range(8), (0, 4), range(3), range(3)):
        assert int(masked[k, c : c + 4, r, s].count_nonzero()) == 2
    assert is_nm(masked.numpy(), NM(2, 4), 1)


def test_axes_of_all_layers() -> None:
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(8, 4),
            "conv1": nn.Conv1d(8, 4, 3),
            "conv2": nn.Conv2d(8, 4, 3),
            "conv3": nn.Conv3d(8, 4, 3),
            "transposed": nn.ConvTranspose2d(8, 4, 3),
            "attention": nn.MultiheadAttention(8, 2),
            "crossed": nn.MultiheadAttention(8, 2, kdim=12, vdim=16),
            "norm": nn.BatchNorm2d(8),
            "embedding": nn.Embedding(8, 8),
        }
    )
    layers = by_name(model)
    assert {name: layer.axis for name, layer in layers.items()} == {
        "linear.weight": 1,
        "conv1.weight": 1,
        "conv2.weight": 1,
        "conv3.weight": 1,
        "transposed.weight": 0,
        "attention.in_proj_weight": 1,
        "attention.out_proj.weight": 1,
        "crossed.q_proj_weight": 1,
        "crossed.k_proj_weight": 1,
        "crossed.v_proj_weight": 1,
        "crossed.out_proj.weight": 1,
    }
    assert all(layer.reason is None for layer in layers.values())


def test_reasons_against_layers() -> None:
    model = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "grouped": nn.Conv2d(12, 8, 3, groups=2),
            "fitting": nn.Conv2d(16, 8, 3, groups=2),
            "transposed": nn.ConvTranspose2d(12, 8, 2, groups=2),
            "odd": nn.Linear(13, 8),
        }
    )
    reasons = {name.removesuffix(".weight"): layer.reason for name, layer in by_name(model).items()}
    assert reasons["fitting"] is None
    assert "depthwise" in str(reasons["depthwise"])
    assert "6 inputs in each of 2 groups" in str(reasons["grouped"])
    assert "6 inputs in each of 2 groups" in str(reasons["transposed"])
    assert "3 inputs" in str(reasons["stem"])
    assert "13 inputs" in str(reasons["odd"])


def test_weight_shared_with_an_embedding_is_left_alone() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(16, 8), "head": nn.Linear(8, 16, bias=False)})
    model["head"].weight = model["table"].weight
    assert "table.weight" in str(by_name(model)["head.weight"].reason)


def test_weight_shared_over_different_axes_is_left_alone() -> None:
    model = nn.ModuleDict({"down": nn.Conv2d(8, 8, 2), "up": nn.ConvTranspose2d(8, 8, 2)})
    model["up"].weight = model["down"].weight
    assert all("shared with" in str(layer.reason) for layer in prunable(model))
