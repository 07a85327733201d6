"""Linear layers whose inputs end in a shorter group, through the whole toolkit."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import tamis
from tamis.compiler.sensitivity import measure_sensitivity
from tamis.formats import NM, TWO_FOUR, is_nm
from tamis.formats import magnitude_mask as reference_mask
from tamis.sparsity import (
    SRSTE,
    Schedule,
    SparseTraining,
    check_module,
    export_onnx,
    finalize,
    magnitude_mask,
    nm_mask,
    permute_channels,
    prunable,
    prune,
    sensitivity,
)
from tamis.sparsity.compensation import compensate, refit
from tamis.sparsity.masks import follows
from tamis.sparsity.training import grown_mask


def random_values(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = (479, 64, 69, 10, 4)
    layers = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(sizes)]
    return nn.Sequential(*(module for layer in layers for module in layer))


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 8), NM(3, 5)], ids=str)
@pytest.mark.parametrize("extra", [1, 2, 3])
def test_masks_agree_with_numpy(pattern: NM, extra: int) -> None:
    weight = random_values(5, 16 * pattern.m + extra).mul(3).round()
    mask = magnitude_mask(weight, pattern, 1)
    assert mask.is_contiguous()
    np.testing.assert_array_equal(mask.numpy(), reference_mask(weight.numpy(), pattern))
    np.testing.assert_array_equal(magnitude_mask(weight.T.contiguous(), pattern, 0).numpy(), mask.numpy().T)
    assert follows(mask, pattern, 1) and not follows(torch.ones_like(mask), pattern, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32, torch.uint8])
def test_any_score_is_above_what_is_not_there(dtype: torch.dtype) -> None:
    scores = torch.full((2, 67), 0 if dtype == torch.uint8 else -1000, dtype=dtype)
    mask = nm_mask(scores, TWO_FOUR, 1)
    assert mask[:, 64:].tolist() == [[True, True, False]] * 2


def test_which_layers() -> None:
    model = nn.ModuleList([nn.Linear(479, 8), nn.Linear(63, 8), nn.Conv2d(66, 8, 3), nn.Conv2d(66, 8, 1)])
    reasons = {layer.full_name: layer.reason for layer in prunable(model)}
    assert reasons["0.weight"] is None
    assert reasons["1.weight"] == "63 inputs to reduce over, not a multiple of 4, nor 64 or more"
    assert reasons["2.weight"] == reasons["3.weight"] == "66 inputs to reduce over, not a multiple of 4"


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_from_a_model_to_an_engine(tmp_path: Path, method: str) -> None:
    model, x = network(), random_values(9, 479)
    prune(model, method=method, calibration=None if method == "magnitude" else [x])
    finalize(model)
    assert [check.eligible for check in check_module(model)] == [True, True, True, False]
    path = tmp_path / "model.onnx"
    export_onnx(model, (x,), path, input_names=["x"])
    engine = tamis.build(path, output=tmp_path / "model.tamis", repetitions=3)
    layers = engine.plan.layers
    assert [layer.eligible for layer in layers if layer.kind == "Linear"] == [True, True, True, False]
    (result,) = tamis.load(tmp_path / "model.tamis").run({"x": x}).values()
    with torch.no_grad():
        np.testing.assert_allclose(result, model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_an_onnx_file(tmp_path: Path) -> None:
    model = network()
    torch.onnx.export(model, (random_values(3, 479),), tmp_path / "dense.onnx", dynamo=True, external_data=False)
    tamis.sparsity.prune_onnx(tmp_path / "dense.onnx", tmp_path / "sparse.onnx")
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "sparse.onnx").graph.initializer]
    (weight,) = [array for array in stored if 479 in array.shape]
    assert is_nm(weight, TWO_FOUR, weight.shape.index(479))
    assert np.count_nonzero(weight) == 64 * (479 - 239)


def test_compensation_and_refit() -> None:
    """The last group has one column too many as the others have two."""
    x = random_values(400, 67).double()
    hessian = (x.T @ x)[None]
    dense = random_values(8, 67).double()[None]
    compensated, mask = compensate(dense, hessian, TWO_FOUR)
    assert follows(mask[0], TWO_FOUR, 1) and mask.sum(-1).unique().tolist() == [34]

    def error(weight: torch.Tensor) -> float:
        return float((x @ (weight - dense)[0].T).norm())

    plain = dense * magnitude_mask(dense[0], TWO_FOUR, 1)
    assert error(refit(dense, mask, hessian)) <= error(compensated) < error(plain)


def test_masks_that_grow_end_at_the_whole_pattern() -> None:
    weight = random_values(6, 67)
    half = grown_mask(weight, torch.ones(6, 67, dtype=torch.bool), TWO_FOUR, 1, 0.5, keep=True)
    whole = grown_mask(weight, half, TWO_FOUR, 1, 1.0, keep=True)
    assert not follows(half, TWO_FOUR, 1)
    assert torch.equal(whole, magnitude_mask(weight, TWO_FOUR, 1))
    assert bool((half | ~whole).all()), "what was zero stays zero"


@pytest.mark.parametrize("refine", [None, SRSTE()])
def test_training_holds_it(refine: SRSTE | None) -> None:
    model = network()
    training = SparseTraining(model, schedule=Schedule("linear", 0, 4), refine=refine)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(6):
        optimiser.zero_grad()
        model(random_values(8, 479)).square().mean().backward()
        optimiser.step()
        training.step()
    finalize(model)
    assert is_nm(model[0].weight.detach().numpy(), TWO_FOUR)
    assert int(torch.count_nonzero(model[0].weight)) == 64 * (479 - 239)


def test_the_order_of_such_inputs_stays() -> None:
    """Where the shorter group would have to keep its place; what reads whole groups is permuted."""
    model = network()
    report = permute_channels(model, random_values(5, 479))
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons["4.weight"] == "the last group of its inputs is shorter"
    assert reasons["2.weight"] is None


def test_sensitivity_tells_which_patterns_a_layer_cannot_follow(tmp_path: Path) -> None:
    """69 inputs are 17 groups of four and 8 of eight; the zeros of a row are counted, the shorter group's too."""
    model, x = network(), random_values(5, 479)
    report = sensitivity(model, [x], patterns=("2:4", "4:8"))
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, external_data=False)
    measured, _ = measure_sensitivity(tmp_path / "model.onnx", tamis.BuildConfig(), ("2:4", "4:8"), times=None)
    for found in (report, measured):
        removed = {(row.weights[0].split(".")[0], row.pattern): row.removed for row in found.rows}
        assert (removed["0", "2:4"], removed["0", "4:8"]) == (64 * 239, 64 * (59 * 4 + 3))
        assert removed["4", "2:4"] == 10 * 34
        assert ("4", "4:8") not in removed
        reasons = [entry.reason for entry in found.skipped if entry.name.endswith(" at 4:8")]
        assert reasons == ["69 inputs to reduce over, not a multiple of 8, nor 128 or more"]
