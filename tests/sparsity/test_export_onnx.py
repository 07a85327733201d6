"""Export: zeros arrive in the file, or there is no file."""

from __future__ import annotations

import builtins
import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tamis.errors import ConfigError, UnsupportedModel
from tamis.formats import NM
from tamis.sparsity import (
    ExportMismatch,
    SparseTraining,
    SparsityLost,
    check_module,
    check_onnx,
    export,
    export_onnx,
    magnitude_mask,
    prune,
)

pytestmark = pytest.mark.usefixtures("exporter_registry")

LARGE = 128  # 128 x 128 weights: over the 8192 elements up to which the exporter folds constants


class Network(nn.Module):
    """A bit of everything that the exporter treats differently."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, LARGE, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(LARGE)
        self.transposed = nn.ConvTranspose2d(LARGE, 16, 2, 2)
        self.rank3 = nn.Linear(LARGE, LARGE)
        self.tied = nn.Linear(LARGE, LARGE, bias=False)
        self.tied_again = nn.Linear(LARGE, LARGE, bias=False)
        self.tied_again.weight = self.tied.weight
        self.attention = nn.MultiheadAttention(LARGE, 4, batch_first=True)
        self.rank2 = nn.Linear(LARGE, LARGE)
        self.unused = nn.Linear(LARGE, 64)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.norm(self.conv(image)).relu()
        tokens = self.rank3(features.flatten(2).transpose(1, 2))
        tokens = self.tied_again(self.tied(tokens).relu())
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.rank2(mixed.mean(1)), self.transposed(features)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def test_zeros_arrive_on_the_right_axes(image: torch.Tensor, tmp_path: Path) -> None:
    model = Network().eval()
    prune(model)
    held = model(image)
    report = export_onnx(model, (image,), tmp_path / "m.onnx", input_names=["image"], output_names=["logits", "map"])
    assert all(layer.eligible for layer in report.layers)
    found = {(layer.op, layer.axis, layer.shape) for layer in report.layers}
    assert found == {
        ("Conv", 1, (LARGE, 8, 3, 3)),
        ("ConvTranspose", 0, (LARGE, 16, 2, 2)),
        ("MatMul", 0, (LARGE, LARGE)),
        ("MatMul", 0, (LARGE, 3 * LARGE)),
        ("Gemm", 1, (LARGE, LARGE)),
    }
    assert report.unused == ("unused.weight",)
    assert report.max_error is not None and report.max_error < 1e-4
    assert report.layers == check_onnx(tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    # the live model is as it was: held, not finalized
    assert parametrize.is_parametrized(model.conv, "weight")
    torch.testing.assert_close(model(image), held)
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [entry.name for entry in graph.output] == ["logits", "map"]


def torch_pruned() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(LARGE, LARGE), nn.ReLU(), nn.Linear(LARGE, LARGE)).eval()
    for index in (0, 2):
        mask = magnitude_mask(model[index].weight, NM(2, 4), 1)
        torch_prune.custom_from_mask(model[index], "weight", mask)
    return model


def test_run_time_masks_that_the_exporter_leaves_in_the_graph_are_found(tmp_path: Path) -> None:
    path = tmp_path / "trap.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(torch_pruned(), (torch.randn(1, LARGE),), path, dynamo=True, verbose=False)
    checks = check_onnx(path)
    assert len(checks) == 2
    for check in checks:
        assert check.groups == 1.0
        assert "stored weight is dense" in str(check.reason)


def test_run_time_masks_are_refused_and_their_removal_accepted(tmp_path: Path) -> None:
    model = torch_pruned()
    with pytest.raises(SparsityLost, match=r"torch\.nn\.utils\.prune\.remove"):
        export_onnx(model, (torch.randn(1, LARGE),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    for index in (0, 2):
        torch_prune.remove(model[index], "weight")
    report = export_onnx(model, (torch.randn(1, LARGE),), tmp_path / "m.onnx")
    able = sum(layer.fits for layer in report.layers)
    sparse = sum(layer.eligible for layer in report.layers)
    assert str(report).startswith(f"Wrote {tmp_path / 'm.onnx'}: {sparse} of {able} layers that can be sparse are")
    assert [layer.eligible for layer in report.layers] == [True, True]


class Refilled(nn.Module):
    """Adds to its weight in the forward pass: sparse for torch's eyes, dense in the product."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.layer.weight + 1.0)


class MasksItself(nn.Module):
    """As layers of other toolkits do: the weight stays dense, its mask is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(LARGE, LARGE)
        self.register_buffer("mask", magnitude_mask(self.layer.weight, NM(2, 4), 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.layer.weight * self.mask, self.layer.bias)


@pytest.mark.parametrize("shape", [(2, LARGE), (2, 3, LARGE)])
def test_masks_that_the_model_applies_itself_are_folded(shape: tuple[int, ...], tmp_path: Path) -> None:
    report = export_onnx(MasksItself(), (torch.randn(shape),), tmp_path / "m.onnx")
    assert [layer.eligible for layer in report.layers] == [True]
    assert [layer.eligible for layer in check_onnx(tmp_path / "m.onnx")] == [True]
    assert "Mul" not in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("groups", [1, 2])
def test_norms_fold_into_sparse_convolutions_and_nothing_feeds_their_weights(groups: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(LARGE, LARGE, 3, groups=groups, bias=False), nn.BatchNorm2d(LARGE), nn.ReLU()),
        *(nn.Conv2d(LARGE, 16, 1), nn.BatchNorm2d(16)),
    )
    model(torch.randn(4, LARGE, 6, 6))  # statistics that are not those of the start
    prune(model)
    report = export_onnx(model, (torch.randn(1, LARGE, 6, 6),), tmp_path / "m.onnx")
    assert [layer.eligible for layer in report.layers] == [True, True]
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [node.op_type for node in graph.node] == ["Conv", "Relu", "Conv"]
    stored = {tensor.name for tensor in graph.initializer}
    assert all(set(node.input[1:]) <= stored for node in graph.node)


def test_averages_are_exported_as_they_are(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(LARGE, LARGE))
    dense = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    training = SparseTraining(model)
    begun_sparse = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for average in (dense, begun_sparse):
        for _ in range(8):
            if average is begun_sparse:
                average.update_parameters(model)
            else:
                average.module[0].weight.data.lerp_(model[0].weight.detach(), 0.5)
    x = (torch.randn(2, LARGE),)
    (layer,) = export_onnx(begun_sparse, x, tmp_path / "sparse.onnx").layers
    assert layer.eligible
    (layer,) = export_onnx(dense, x, tmp_path / "dense.onnx").layers
    assert not layer.eligible
    assert "begun before pruning" in str(check_module(dense)[0].reason)
    training.finalize()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(LARGE, LARGE), nn.ReLU(), nn.Linear(LARGE, 8)).to(dtype)
    prune(model)
    x = torch.randn(2, LARGE, dtype=dtype)
    report = export_onnx(model, (x,), tmp_path / "m.onnx", tolerance=1e-2)
    assert [layer.eligible for layer in report.layers] == [True, True]
    assert (report.max_error is None) == (dtype == torch.bfloat16)
    if dtype == torch.bfloat16:
        with pytest.raises(ConfigError, match="bfloat16"):
            export_onnx(model, (x,), tmp_path / "m.onnx", compare=True)


def test_a_file_that_onnx_runtime_cannot_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(ExportMismatch, match=r"cannot run the file: no kernel\."):
        export_onnx(nn.Linear(8, 8), (torch.randn(1, 8),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_zeros_lost_in_the_graph_leave_no_file_and_keep_the_old_one(tmp_path: Path) -> None:
    model = Refilled()
    prune(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(SparsityLost, match=r"layer 'layer.weight'.*sparse in torch"):
        export_onnx(model, (torch.randn(2, 8),), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_zeros_lost_by_the_exporter_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = torch.onnx.export

    def careless(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            model[2].weight.add_(1.0)
        return genuine(model, *args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", careless)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    prune(model)
    for shape in ((2, 8), (2, 3, 8)):  # Gemm by its name, MatMul through the module it came from
        with pytest.raises(SparsityLost, match=r"2\.weight"):
            export_onnx(model, (torch.randn(shape),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


class TwoFaced(nn.Module):
    """Computes something else when it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * (2 if torch.onnx.is_in_onnx_export() else 1)


def test_outputs_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportMismatch, match="output 0 differs from torch"):
        export_onnx(TwoFaced(), (torch.randn(2, 8),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    report = export_onnx(TwoFaced(), (torch.randn(2, 8),), tmp_path / "m.onnx", compare=False)
    assert report.max_error is None
    model = nn.Linear(8, 8)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(ExportMismatch, match=r"output 0 of the torch model holds NaN.*'weight' holds some"):
        export_onnx(model, (torch.randn(2, 8),), tmp_path / "n.onnx")


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_ONE_FILE_BYTES", 1000)
    model = nn.Sequential(nn.Linear(64, 64))
    prune(model)
    report = export_onnx(model, (torch.randn(2, 64),), tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx").stat().st_size < 8000 < (tmp_path / "m.onnx.data").stat().st_size
    assert report.max_error is not None
    assert check_onnx(tmp_path / "m.onnx")[0].eligible


def test_dynamic_shapes_and_inputs_by_name(tmp_path: Path) -> None:
    model = nn.Linear(8, 8)
    prune(model)
    export_onnx(
        model,
        (),
        tmp_path / "m.onnx",
        kwargs={"input": torch.randn(3, 8)},
        dynamic_shapes={"input": {0: torch.export.Dim("batch")}},
    )
    entry = onnx.load(tmp_path / "m.onnx").graph.input[0]
    assert entry.name == "input"
    assert entry.type.tensor_type.shape.dim[0].dim_param


def test_dense_models_export_too(tmp_path: Path) -> None:
    report = export_onnx(nn.Linear(8, 8), (torch.randn(1, 8),), tmp_path / "m.onnx")
    assert not report.layers[0].eligible
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == 20


def test_comparison_needs_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="onnxruntime"):
        export_onnx(nn.Linear(8, 8), (torch.randn(1, 8),), tmp_path / "m.onnx", compare=True)


def test_model_that_cannot_be_traced_says_so(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModel, match="cannot export"):
        export_onnx(Branching(), (torch.randn(1, 8),), tmp_path / "m.onnx")


def test_module_check_agrees_with_the_file(image: torch.Tensor, tmp_path: Path) -> None:
    model = Network().eval()
    prune(model, exclude=["rank3", "conv"])
    report = export_onnx(model, (image,), tmp_path / "m.onnx")
    dense = {check.name for check in check_module(model) if not check.eligible}
    assert dense == {"rank3.weight", "conv.weight"}
    assert {layer.scope or layer.name for layer in report.layers if not layer.eligible} >= {"rank3"}
    assert sum(not layer.eligible for layer in report.layers) == 2


class Noted(logging.Handler):
    """Keeps what a logger says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Talker(nn.Module):
    """Warns and logs while it is traced, by the very logger that is kept quiet."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        warnings.warn("look out", FutureWarning, stacklevel=2)
        logging.getLogger(export._REGISTRATION_LOGGER).warning("an operator was skipped")
        return self.linear(x)


def test_the_exporters_talk_about_itself_is_kept_back_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torchvision" else find(name))
    logger, noted = logging.getLogger(export._REGISTRATION_LOGGER), Noted()
    logger.addHandler(noted)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            export_onnx(Talker(), (torch.ones(1, 8),), tmp_path / "m.onnx", compare=False)
        during, noted.lines = noted.lines, []
        logger.warning("torchvision is not installed. Skipping x")
    finally:
        logger.removeHandler(noted)
    assert set(during) == {"an operator was skipped"}
    assert noted.lines == ["torchvision is not installed. Skipping x"]  # only while exporting
    said = {str(entry.message) for entry in caught if entry.category is FutureWarning}
    assert said == {"look out"}
