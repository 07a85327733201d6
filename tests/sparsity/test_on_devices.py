"""Masks, pruning and training on a GPU, and the same on the CPU, which proves the tests themselves."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tamis.errors import SparsityError
from tamis.formats import NM, is_nm
from tamis.formats import magnitude_mask as numpy_mask
from tamis.sparsity import (
    SRSTE,
    Schedule,
    SparseTraining,
    apply_masks,
    check_module,
    export_onnx,
    finalize,
    magnitude_mask,
    nm_mask,
    prune,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


def network() -> nn.Sequential:
    """Every kind of layer that can be pruned, two that cannot, and a tied weight; never run."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.ConvTranspose2d(16, 16, 2, stride=2),
        nn.Flatten(2),
        nn.Conv1d(16, 16, 3, padding=1),
        nn.AdaptiveAvgPool1d(16),
        nn.MultiheadAttention(16, 4),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.Linear(16, 4),
    )
    layers[11].weight = layers[9].weight
    return layers


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 8), NM(1, 2), NM(3, 16)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_are_those_of_numpy(pattern: NM, dtype: torch.dtype, device: str) -> None:
    for shape, axis in (((32, 48), 1), ((32, 48), 0), ((16, 32, 3, 3), 1), ((3, 16, 8), -2)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        weight[..., ::3] = 0.5  # equal magnitudes: the lower index wins everywhere
        mask = magnitude_mask(weight.to(device), pattern, axis)
        assert mask.device.type == device and mask.dtype == torch.bool and mask.is_contiguous()
        np.testing.assert_array_equal(mask.cpu().numpy(), numpy_mask(weight.double().numpy(), pattern, axis))
    scores = torch.zeros(4, 16, device=device)
    scores[1, 2] = float("nan")
    with pytest.raises(SparsityError, match="NaN"):
        nm_mask(scores, pattern, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prune_hold_and_finalize(dtype: torch.dtype, device: str) -> None:
    model = network().to(device, dtype)
    expected = copy.deepcopy(model).cpu()
    report, same = prune(model), prune(expected)
    assert report == same and len(report.pruned) == 8 and len(report.skipped) == 2
    held = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith(".mask")}
    for name, mask in held.items():
        assert mask.device.type == device
        assert torch.equal(mask.cpu(), expected.state_dict()[name])
    before = {check.name: check for check in check_module(model)}
    finalize(model)
    assert model[9].weight is model[11].weight and model[9].weight.device.type == device
    for check in check_module(model):
        assert check == before[check.name] and check.eligible == check.fits
        if check.fits:
            assert is_nm(model.get_parameter(check.name).detach().double().cpu().numpy(), NM(2, 4), check.axis)


def test_masks_move_with_the_model_and_from_elsewhere(device: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    apply_masks(model, {"0.weight": magnitude_mask(model[0].weight, NM(2, 4), 1)})
    model.to(device)
    assert bool((model[0].weight == 0).sum() == 128) and model[0].weight.device.type == device
    other = nn.Sequential(nn.Linear(16, 16)).to(device)
    report = apply_masks(other, {"0.weight": magnitude_mask(other[0].weight, NM(2, 4), 1).cpu()})  # a mask of the CPU
    assert len(report.pruned) == 1 and check_module(other)[0].eligible


@pytest.mark.parametrize("refine", [None, SRSTE(decay=1e-3, every=2)], ids=["fixed", "srste"])
def test_training_keeps_the_zeros_and_the_loss_falls(refine: SRSTE | None, device: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    training = SparseTraining(model, schedule=Schedule("cubic", 2, 12, every=2), refine=refine)
    x, y = torch.randn(64, 16, device=device), torch.randint(0, 4, (64,), device=device)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        training.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    resumed = copy.deepcopy(model)
    training.finalize()
    assert all(check.eligible and check.zeros == 0.5 for check in check_module(model))
    assert {parameter.device.type for parameter in model.parameters()} == {device}
    finalize(resumed)
    torch.testing.assert_close(resumed(x), model(x))
    report = export_onnx(model.cpu(), (x.cpu(),), tmp_path / "m.onnx")
    assert all(layer.eligible for layer in report.layers)


def test_masks_hold_in_compiled_models(device: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False)).to(device, torch.float64)
    x = torch.randn(4, 16, device=device, dtype=torch.float64)
    prune(model)
    chain = model[0].parametrizations["weight"]
    expected = x @ torch.where(chain[0].mask, chain.original, 0).T
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), expected)
    torch.testing.assert_close(model(x), expected)
