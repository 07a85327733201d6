"""The benchmark models: published sizes, equal weights every time, outputs fit for comparing precisions."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import models
from models.bert import bert
from models.densenet import densenet121
from models.detector import detector
from models.mobile import efficientnet_b0, mobilenet_v2, mobilenet_v3
from models.resnet import resnet34, resnet50
from models.vit import vit
from tamis.sparsity import check_onnx

pytestmark = pytest.mark.usefixtures("exporter_registry")

PUBLISHED_PARAMETERS: tuple[tuple[Callable[..., nn.Module], int, int], ...] = (
    # image size and torchvision's counts; the detector's is that of YOLOv5s 6.0 with 80 classes before fusion
    (resnet34, 32, 21_797_672),
    (resnet50, 32, 25_557_032),
    (vit, 224, 86_567_656),
    (detector, 64, 7_235_389),
    (densenet121, 32, 7_978_856),
    (mobilenet_v2, 32, 3_504_872),
    (mobilenet_v3, 32, 2_542_856),
    (efficientnet_b0, 32, 5_288_548),
)
SMALL_NAMES = [spec.name for spec in models.SMALL]


def outputs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        result = model(*inputs.values())
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.mark.parametrize(("build", "size", "count"), PUBLISHED_PARAMETERS)
def test_has_the_published_number_of_parameters(build: Callable[..., nn.Module], size: int, count: int) -> None:
    assert sum(parameter.numel() for parameter in build(size=size).parameters()) == count


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_two_builds_are_equal_whatever_the_global_state(name: str) -> None:
    torch.manual_seed(1)
    first = models.get(name).build().state_dict()
    torch.manual_seed(2)
    torch.set_num_threads(2)
    second = models.get(name).build().state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_outputs_are_named_and_well_conditioned(name: str) -> None:
    spec = models.get(name)
    model, inputs = spec.build(), spec.inputs(4)
    exact = outputs(model, inputs)
    halved = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    rounded = outputs(copy.deepcopy(model).bfloat16(), halved)
    assert len(exact) == len(spec.outputs)
    for output, other in zip(exact, rounded, strict=True):
        assert output.shape[0] == 4
        assert bool(torch.isfinite(output).all())
        assert float(output.flatten(1).std(0).mean()) > 0.02 * float(output.std())  # the input matters
        error = float((output - other.float()).square().mean().sqrt())
        assert error < 0.06 * float(output.std())  # bfloat16's own rounding is 0.4 %


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_batch_normalisation_is_not_trivial(name: str) -> None:
    for module in models.get(name).build().modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                assert float(tensor.std()) > 1e-4


def test_every_row_of_the_attention_mask_is_padded() -> None:
    inputs = models.get("small-bert").inputs(3)
    assert all(value.dtype == torch.int64 for value in inputs.values())
    kept = inputs["attention_mask"].sum(1).tolist()
    assert len(set(kept)) == 3
    assert max(kept) < 24


def test_attention_implementations_agree() -> None:
    inputs = models.get("small-bert").inputs(2)
    plain, fused = (
        outputs(bert(hidden=64, layers=1, heads=2, vocabulary=500, attention=kind), inputs)
        for kind in ("eager", "sdpa")
    )
    torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["small-resnet50", "small-bert"])
def test_export_holds_the_pattern_and_the_numbers(name: str, tmp_path: Path) -> None:
    spec = models.get(name)
    path = tmp_path / "model.onnx"
    report = models.export(name, path, batch=2)
    assert report.max_error is not None and report.max_error < 1e-4
    assert report.unused == ()
    graph = onnx.load(path).graph
    assert [entry.name for entry in graph.input] == list(spec.inputs(1))
    assert [entry.name for entry in graph.output] == list(spec.outputs)
    dense = [layer for layer in check_onnx(path) if not layer.eligible]
    assert all(layer.reason is not None and "multiple of 4" in layer.reason for layer in dense)
    assert len(dense) <= 1  # the image stem


def test_pruned_statistics_are_calibrated_again() -> None:
    _, model = models.build("small-resnet50")
    inputs = models.get("small-resnet50").inputs(16)
    seen: list[torch.Tensor] = []
    norm = model.blocks[-1].branch[-1][1]
    norm.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    outputs(model, inputs)
    assert 0.8 < float(seen[0].var((0, 2, 3)).mean() / norm.running_var.mean()) < 1.2


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="resnet50"):
        models.get("resnet51")


def test_command_line(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "models", "small-mlp", "--batch", "3", "--sparsity", "dense", "-o", "x.onnx"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{root / 'src'}:{root / 'benchmarks'}", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "x.onnx").exists()
    assert "0 of 3 layers" in done.stdout
