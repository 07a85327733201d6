"""Weights that are computed when the model runs: weight norms, spectral norms, other parametrisations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm
from torch.nn.utils import prune as torch_prune

from tamis.errors import InvalidModel, SparsityError
from tamis.formats import NM
from tamis.sparsity import (
    LayerCheck,
    bake_state_dict,
    check_file,
    check_module,
    check_onnx,
    check_state_dict,
    export_onnx,
    finalize,
    magnitude_mask,
    prune,
)

SIZE = 128  # over the 8192 elements up to which PyTorch's exporter folds constants


def old_weight_norm(layer: nn.Module, **options: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(layer, **options)


NORMS = [old_weight_norm, parametrizations.weight_norm, spectral_norm, parametrizations.spectral_norm]


class Symmetric(nn.Module):
    """Keeps no tensors: a state dict shows no trace of it."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).T


class Masked(nn.Module):
    """Another tool's mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


def only(checks: tuple[LayerCheck, ...]) -> LayerCheck:
    (check,) = checks
    return check


def of_all_kinds(model: nn.Module, folder: Path) -> list[LayerCheck]:
    """What is found in a model, its state dict, and files of it."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    torch.save(state, folder / "w.pt")
    save_file(state, folder / "w.safetensors")
    return [
        only(check_module(model)),
        only(check_state_dict(state)),
        only(check_file(folder / "w.pt").layers),
        only(check_file(folder / "w.safetensors").layers),
    ]


def network(layer: nn.Module) -> nn.Sequential:
    with torch.no_grad():
        layer.weight.mul_(magnitude_mask(layer.weight, NM(2, 4), 1))
    return nn.Sequential(layer)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layer", [lambda: nn.Linear(SIZE, SIZE), lambda: nn.Conv2d(SIZE, 8, 3)])
def test_norms_keep_zeros_and_reach_the_file(
    norm: Callable[[nn.Module], nn.Module], layer: Callable[[], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = network(layer())
    norm(model[0])
    model.eval()
    shape = (2, SIZE) if isinstance(model[0], nn.Linear) else (1, SIZE, 4, 4)
    x = torch.randn(shape)
    model(x).sum().backward()
    for check in of_all_kinds(model, tmp_path):
        assert (check.name, check.eligible, check.zeros, check.found) == ("0.weight", True, 0.5, NM(2, 4)), check
    expected = model(x)
    report = export_onnx(model, (x,), tmp_path / "m.onnx")
    assert only(report.layers).eligible and only(check_onnx(tmp_path / "m.onnx")).name == "0.weight"  # a plain tensor
    torch.testing.assert_close(model(x), expected)  # the live model is as it was
    assert "0.weight" not in model.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "original0" not in name and "weight_g" not in name:
                parameter.add_(1.0)
    for check in of_all_kinds(model, tmp_path):  # not what the last run left behind
        assert not check.eligible and check.zeros < 0.1, check


def test_the_norm_over_another_axis_and_over_all(tmp_path: Path) -> None:
    for norm in (old_weight_norm, parametrizations.weight_norm):
        for dim in (0, 1, None):
            model = network(nn.Linear(8, 16))
            norm(model[0], dim=dim)
            assert all(check.eligible for check in of_all_kinds(model, tmp_path))


def test_a_row_of_zeros_has_no_norm(tmp_path: Path) -> None:
    """0 / 0: what the layer multiplies with is not zero but NaN."""
    model = network(nn.Linear(8, 4))
    parametrizations.weight_norm(model[0])
    with torch.no_grad():
        model[0].parametrizations.weight.original1[1] = 0
    assert [check.first for check in of_all_kinds(model, tmp_path)] == [(1, 0)] * 4


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_masks_behind_a_norm(norm: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model = nn.Sequential(norm(nn.Linear(16, 8)))
    assert not any(check.eligible for check in of_all_kinds(model, tmp_path))
    prune(model)
    assert all(check.eligible and check.zeros == 0.5 for check in of_all_kinds(model, tmp_path))
    with pytest.raises(SparsityError, match="another parametrisation computes the weight"):
        bake_state_dict(model.state_dict())
    finalize(model)
    assert all(check.eligible and check.name == "0.weight" for check in of_all_kinds(model, tmp_path))


def test_what_a_state_dict_does_not_tell_is_a_reason(tmp_path: Path) -> None:
    symmetric = network(nn.Linear(16, 16))
    parametrize.register_parametrization(symmetric[0], "weight", Symmetric())
    orthogonal = nn.Sequential(parametrizations.orthogonal(nn.Linear(16, 16)))  # stores a sparse matrix, gives a dense
    for model in (symmetric, orthogonal):
        module, *files = of_all_kinds(model, tmp_path)
        assert not module.eligible and "of the groups along axis 1" in str(module.reason)
        for check in files:
            assert check.fits and "a state dict does not say which; call remove_parametrizations" in str(check.reason)
        prune(model)  # a mask that comes last makes zeros, whatever was before it
        assert all(check.eligible for check in of_all_kinds(model, tmp_path))


def test_masks_of_other_tools_that_are_parametrisations(tmp_path: Path) -> None:
    layer = nn.Linear(SIZE, SIZE)
    parametrize.register_parametrization(layer, "weight", Masked(magnitude_mask(layer.weight, NM(2, 4), 1)))
    model = nn.Sequential(layer)
    check = only(check_module(model))
    assert check.groups == 1.0 and "its zeros come from a parametrisation" in str(check.reason)
    with pytest.raises(SparsityError, match="call remove_parametrizations"):
        export_onnx(model, (torch.randn(2, SIZE),), tmp_path / "m.onnx")


@pytest.mark.parametrize("norm", [old_weight_norm, spectral_norm])
def test_weights_that_hooks_compute_cannot_be_pruned(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    with pytest.raises(
        SparsityError, match=r"layer '0\.weight': its weight is computed before each run by.* Call remove_"
    ):
        prune(model)
    assert not parametrize.is_parametrized(model[1])
    prune(model, exclude=["0"])
    masked = nn.Sequential(nn.Linear(8, 8))
    torch_prune.l1_unstructured(masked[0], "weight", 0.5)
    with pytest.raises(SparsityError, match=r"torch\.nn\.utils\.prune\. Call torch\.nn\.utils\.prune\.remove first"):
        prune(masked)


def test_masks_and_lengths_that_do_not_fit() -> None:
    weight = torch.randn(8, 8)
    for state, said in (
        (
            {"a.weight_orig": weight, "a.weight_mask": torch.ones(4, 8)},
            r"its mask has shape \[4, 8\], its weight \[8, 8\]",
        ),
        (
            {"a.parametrizations.weight.original": weight, "a.parametrizations.weight.0.mask": torch.ones(8)},
            r"its mask has shape \[8\]",
        ),
        ({"a.weight_v": weight, "a.weight_g": torch.ones(4, 1)}, r"its lengths have shape \[4, 1\]"),
    ):
        with pytest.raises(InvalidModel, match=rf"layer 'a\.weight': {said}"):
            check_state_dict(state)
