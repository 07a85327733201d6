"""Sensitivity of torch models: against doing it by hand, exact restoration, times of compiled layers, clear errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tamis.errors import SparsityError
from tamis.formats import NM
from tamis.sparsity import (
    LayerTime,
    MeasuredTimes,
    PrunePlan,
    SparseGPT,
    finalize,
    measured_loss,
    plan_within,
    prune,
    report_from_json,
    report_json,
    sensitivity,
)
from tamis.sparsity.probes import replaced

METHODS = ("magnitude", "wanda", "taylor", "sparsegpt")


class Network(nn.Module):
    """Images [N, 3, 8, 8]: stem of three channels, a convolution, one by groups, attention, tied layers; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.drop = nn.Dropout(0.5)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        x = self.norm(self.stem(images)).relu()
        x = self.depthwise(self.conv(x).relu()).flatten(2).mT
        x = self.drop(x + self.attention(x, x, x)[0])
        x = self.second(self.first(x.mean(1)).relu())
        return {"scores": self.head(x), "more": (x, x.argmax(1))}


PRUNABLE = ("conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "first.weight", "head.weight")


@pytest.fixture
def model() -> Network:
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(4, 3, 8, 8) for _ in range(2)]


def squares(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    outputs: torch.Tensor = model(images)["scores"]
    return outputs.square().mean()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def assert_same(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(bits(tensor), bits(before[name])), name


def outputs(model: nn.Module, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    model.eval()
    results = [model(images) for images in batches]
    return [torch.cat([r["scores"] for r in results]), torch.cat([r["more"][0] for r in results])]


@pytest.mark.parametrize("method", METHODS)
def test_the_losses_are_those_of_pruning_by_hand(model: Network, batches: list[torch.Tensor], method: str) -> None:
    before = state(model)
    report = sensitivity(
        model, batches, patterns=("2:4", "1:4"), method=method, loss=squares if method == "taylor" else None
    )
    assert_same(model, before)
    assert model.training and all(module.training for module in model.modules())
    assert {row.name for row in report.rows} == set(PRUNABLE) and len(report.rows) == 2 * len(PRUNABLE)
    assert {skipped.name for skipped in report.skipped} == {"stem.weight", "depthwise.weight"}
    dense = outputs(model, batches)
    with torch.no_grad():
        dense_loss = sum(float(squares(model, images)) for images in batches) / len(batches)
    for row in report.rows:
        alone = copy.deepcopy(model)
        by_hand = copy.deepcopy(model)
        options: dict[str, Any] = {"loss": squares} if method == "taylor" else {}
        keep = (row.name, *(["second"] if row.name == "first.weight" else []))
        others = [name for name in (*PRUNABLE, "second") if name not in keep]
        prune(by_hand, row.pattern, method=method, calibration=batches, exclude=others, **options)
        finalize(by_hand)
        alone.load_state_dict(by_hand.state_dict())
        with torch.no_grad():
            if method == "taylor":
                alone.eval()
                expected = sum(float(squares(alone, images)) for images in batches) / len(batches) - dense_loss
            else:
                expected = max(
                    float((a.double() - b.double()).square().sum() / b.double().square().sum())
                    for a, b in zip(outputs(alone, batches), dense, strict=True)
                )
        assert row.loss == pytest.approx(expected, rel=1e-4, abs=1e-7), (row.name, row.pattern)
        assert row.saved_us is None and row.removed > 0
    assert report.proxy == ("loss" if method == "taylor" else "sqnr")
    assert report_from_json(report_json(report)) == report


def test_an_accuracy_of_ones_own(model: Network, batches: list[torch.Tensor]) -> None:
    def metric(changed: nn.Module) -> float:
        assert not changed.training
        return float((changed.head.weight != 0).double().mean()) * 10  # type: ignore[union-attr]

    report = sensitivity(model, batches, metric=metric)
    losses = {row.name: row.loss for row in report.rows}
    assert report.proxy == "metric" and report.dense == pytest.approx(10.0)
    assert losses.pop("head.weight") == pytest.approx(5.0) and set(losses.values()) == {0.0}


def test_a_function_as_data(model: Network, batches: list[torch.Tensor]) -> None:
    report = sensitivity(model, lambda changed: [changed(images) for images in batches])
    assert [r.loss for r in report.rows] == [r.loss for r in sensitivity(model, iter(batches)).rows]


def test_everything_is_restored_after_an_exception(model: Network, batches: list[torch.Tensor]) -> None:
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = -0.0  # bits count, not values
    before, calls = state(model), 0

    def metric(changed: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, batches, metric=metric)
    assert calls == 3
    assert_same(model, before)
    assert model.training and not model._forward_hooks
    with pytest.raises(RuntimeError, match="broken"), replaced({model.head.weight: torch.zeros(5, 16)}):
        raise RuntimeError("broken")
    assert_same(model, before)


def times(*layers: tuple[tuple[str, ...], float]) -> MeasuredTimes:
    return MeasuredTimes("a fake", 100.0, tuple(LayerTime(w[0], w, (), us) for w, us in layers))


def test_times_of_compiled_layers(model: Network, batches: list[torch.Tensor]) -> None:
    """Layers that are compiled into one are pruned together; a weight that is used twice saves twice."""
    measured = times(
        (("conv.weight",), 5.0), (("first.weight",), 2.0), (("second.weight",), 3.0),
        (("attention.out_proj.weight", "head.weight"), 7.0), (("unknown",), 50.0),
    )  # fmt: skip
    report = sensitivity(model, batches, patterns=("2:4", "4:8"), times=measured)
    rows = {(row.name, row.pattern): row for row in report.rows}
    assert rows["conv.weight", "2:4"].saved_us == 5.0 and rows["conv.weight", "4:8"].saved_us == 0.0
    assert rows["first.weight", "2:4"].saved_us == 5.0
    both = rows["attention.out_proj.weight+head.weight", "2:4"]
    assert both.saved_us == 7.0 and both.weights == ("attention.out_proj.weight", "head.weight")
    assert rows["attention.in_proj_weight", "2:4"].saved_us == 0.0
    assert report.whole_us == 100.0 and report.ranked[-1].price == math.inf
    prices = [row.price for row in report.ranked]
    assert prices == sorted(prices)
    apart = sensitivity(model, batches, times=measured, exclude=["head"])
    assert {row.name: row.saved_us for row in apart.rows}["attention.out_proj.weight"] == 0.0


def test_modules_stand_in_for_weights_without_their_names(model: Network, batches: list[torch.Tensor]) -> None:
    measured = MeasuredTimes("a fake", 100.0, (LayerTime("x", ("onnx::MatMul_7",), ("head",), 4.0),))
    report = sensitivity(model, batches, times=measured)
    assert {row.name: row.saved_us for row in report.rows if row.saved_us} == {"head.weight": 4.0}


def test_a_plan_is_measured_and_pruned(model: Network, batches: list[torch.Tensor]) -> None:
    report = sensitivity(model, batches, patterns=("2:4", "1:4"))
    budget = sorted(row.loss for row in report.rows)[3]
    plan = plan_within(report, budget)
    before = state(model)
    measured = measured_loss(model, batches, plan)
    assert_same(model, before)
    assert measured.measured_loss is not None and measured.measured_loss > 0
    dense = outputs(model, batches)
    pruned = prune(model, plan=measured)
    assert {layer.name: str(layer.pattern) for layer in pruned.pruned if layer.name != "second.weight"} == plan.patterns
    assert all(layer.zeros == pytest.approx(1 - layer.pattern.n / layer.pattern.m) for layer in pruned.pruned)
    assert {"stem.weight"} <= {layer.name for layer in pruned.skipped}
    with torch.no_grad():
        noise = max(
            float((a.double() - b.double()).square().sum() / b.double().square().sum())
            for a, b in zip(outputs(model, batches), dense, strict=True)
        )
    assert noise == pytest.approx(measured.measured_loss, rel=1e-4)
    finalize(model)


@pytest.mark.parametrize("method", METHODS)
def test_prune_takes_patterns_by_name(model: Network, batches: list[torch.Tensor], method: str) -> None:
    options: dict[str, Any] = {"calibration": batches, "loss": squares}
    report = prune(model, plan={"conv.weight": "1:4", "head.weight": NM(2, 4)}, method=method, **options)
    zeros = {layer.name: layer.zeros for layer in report.pruned}
    assert zeros == {"conv.weight": pytest.approx(0.75), "head.weight": pytest.approx(0.5)}
    assert any(layer.reason == "not in the plan" for layer in report.skipped)
    finalize(model)


def poisoned(model: Network) -> None:
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (poisoned, {}, "'conv.weight': its weight holds NaN"),
        (prune, {}, "already masked"),
        (lambda m: None, {"patterns": ("2:4", "5:7")}, "5:7 fits none of the"),
        (lambda m: None, {"patterns": ()}, "no pattern is given"),
        (lambda m: None, {"patterns": ("dense",)}, "not an n:m pattern"),
        (lambda m: None, {"calibration": []}, "no calibration batches"),
        (lambda m: None, {"calibration": [torch.randn(4, 7)]}, "calibration batch 0 does not run"),
        (lambda m: None, {"calibration": [torch.full((4, 3, 8, 8), math.nan)]}, "hold NaN or infinity"),
        (lambda m: None, {"metric": lambda m: math.nan}, "metric of the dense model is nan"),
        (lambda m: None, {"calibration": lambda m: None, "loss": squares}, "loss needs batches"),
        (lambda m: None, {"method": "guess"}, "no method is called 'guess'"),
        (lambda m: None, {"times": times((("other",), 1.0))}, "the times are those of another model"),
        (lambda m: None, {"exclude": ["nobody"]}, "matches no layer"),
        (lambda m: None, {"exclude": ["*"]}, "no layer can be pruned"),
    ],
)
def test_errors(
    model: Network,
    batches: list[torch.Tensor],
    change: Callable[[Network], object],
    options: dict[str, Any],
    words: str,
) -> None:
    change(model)
    before = state(model)
    with pytest.raises(SparsityError, match=words):
        sensitivity(model, **{"calibration": batches, **options})
    assert_same(model, before)


def test_a_model_without_layers() -> None:
    with pytest.raises(SparsityError, match="no linear, convolution or attention layer"):
        sensitivity(nn.Sequential(nn.ReLU()), [torch.randn(2)])
    with pytest.raises(SparsityError, match="no floating-point outputs"):
        sensitivity(nn.Sequential(nn.Linear(4, 4), nn.Flatten(), ToIntegers()), [torch.randn(2, 4)])


class ToIntegers(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({}, "the plan names no layer"),
        ({"nobody.weight": "2:4"}, "is no weight of the model"),
        ({"stem.weight": "2:4"}, r"'stem.weight': cannot follow 2:4: 3 inputs"),
        ({"first.weight": "2:4", "second.weight": "1:4"}, "names it twice"),
    ],
)
def test_plans_of_other_models(model: Network, plan: dict[str, str], words: str) -> None:
    before = state(model)
    with pytest.raises(SparsityError, match=words):
        prune(model, plan=plan)
    assert_same(model, before)
    with pytest.raises(SparsityError, match="both given"):
        prune(model, plan={"conv.weight": "2:4"}, exclude=["head"])


def test_the_plan_must_be_of_the_same_kind(model: Network, batches: list[torch.Tensor]) -> None:
    plan = plan_within(sensitivity(model, batches), 1.0)
    assert isinstance(plan, PrunePlan)
    with pytest.raises(SparsityError, match="of the kind sqnr, these of the kind loss"):
        measured_loss(model, batches, plan, loss=squares)
    refitted = sensitivity(model, batches, method=SparseGPT(refit=True))
    assert sum(row.loss for row in refitted.rows) < sum(row.loss for row in sensitivity(model, batches).rows)
