"""Every known trap of pruning toolchains has a test: those that stand elsewhere are named here, the others follow.

A trap is a way in which zeros are lost, or are said to be there and are not, without a word from the tool at hand.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn
from torch.nn.utils import prune as torch_prune

from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.evaluate import run
from tamis.compiler.ir.graph import Graph
from tamis.compiler.passes import run_passes
from tamis.formats import NM, is_nm
from tamis.sparsity import (
    check_module,
    check_onnx,
    check_state_dict,
    export_onnx,
    finalize,
    magnitude_mask,
    prunable,
    prune,
    prune_onnx,
)

pytestmark = pytest.mark.usefixtures("exporter_registry")

HERE = Path(__file__).resolve().parent
LARGE = 128  # 128 x 128 weights: over the 8192 elements up to which the exporter folds constants

# The trap, the file and the name of the test.
ELSEWHERE = (
    ("masks stay a Mul in the default export", "test_export_onnx", "run_time_masks_that_the_exporter_leaves"),
    ("masks that are buffers of the model", "test_export_onnx", "masks_that_the_model_applies_itself_are_folded"),
    ("convolutions pruned along the flattened kernel", "test_check_torch", "pattern_along_the_flattened_kernel"),
    ("the pattern along another axis", "test_check_torch", "pattern_along_another_axis_is_rejected"),
    ("a mask without compensation", "test_pruning", "compensation_is_real_for_convolutions_and_linear_layers"),
    ("scores of convolutions that do not run", "test_pruning", "every_kind_of_layer"),
    ("stored zeros of quantised weights", "test_check_onnx", "quantised_weights_are_dequantised_first"),
    ("quantised weights pruned to 0", "test_prune_onnx", "quantised_weights_get_their_zero_point"),
    ("a multiple that leaves a group whole", "test_channels", "residual_and_grouped_layers_shrink_together"),
    ("channels rounded up or down", "test_channels", "rounding"),
    ("an average begun dense", "test_training", "the_check_knows_an_average_begun_dense"),
    ("an average begun dense", "test_training", "averages_begun_dense_are_found"),
    ("an average of masked weights", "test_hold", "masks_hold_in_an_averaged_model"),
    ("channels removed after 2:4", "test_channels", "aligned_removal_after_2_4_keeps_it_and_other_removal_is_found"),
    ("norms folded by the exporter", "test_export_onnx", "norms_fold_into_sparse_convolutions"),
    ("tied weights, attention, transposed layouts", "test_export_onnx", "zeros_arrive_on_the_right_axes"),
    ("an optimiser that fills the zeros", "test_hold", "masks_hold_in_training"),
    ("an export that changes the live model", "test_export_onnx", "zeros_arrive_on_the_right_axes"),
)


@pytest.mark.parametrize(("trap", "file", "test"), ELSEWHERE)
def test_the_test_that_is_named_exists(trap: str, file: str, test: str) -> None:
    assert re.search(rf"^def test_\w*{test}", (HERE / f"{file}.py").read_text(), re.MULTILINE), trap


def outputs(path: Path, x: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters and quantisers say about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def export(model: nn.Module, x: torch.Tensor, path: Path, **options: Any) -> None:
    """PyTorch's own exporter, without ours around it."""
    with quiet(), torch.no_grad():
        torch.onnx.export(model, (x,), path, verbose=False, **options)


def sparse_notes(graph: Graph) -> list[str]:
    return [note.pattern for note in graph.sparsity.values()]


def normed() -> nn.Sequential:
    """Norms behind and in front of convolutions, and a linear layer; all 2:4."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(8, LARGE, 3, padding=1, bias=False), nn.BatchNorm2d(LARGE), nn.ReLU()),
        *(nn.BatchNorm2d(LARGE), nn.Conv2d(LARGE, LARGE, 1), nn.BatchNorm2d(LARGE)),
        *(nn.Flatten(), nn.Linear(LARGE * 16, 16)),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 2)
    prune(model)
    finalize(model)
    return model.eval()


# T1: masks of other tools


def test_unsquashed_masks_of_torch_ao() -> None:
    from torch.ao.pruning import WeightNormSparsifier

    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    first, second = check_module(model)
    assert first.groups == 1.0 and "a parametrisation when the model runs" in str(first.reason)
    assert second.groups < 1.0
    sparsifier.squash_mask()
    assert check_module(model)[0].eligible


def test_masks_that_the_exporter_left_are_mended_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(LARGE, LARGE, 1), nn.Flatten(2), nn.Linear(16, LARGE), nn.Linear(LARGE, LARGE)
    ).eval()
    for index, axis in ((0, 1), (2, 1), (3, 1)):
        layer: Any = model[index]
        torch_prune.custom_from_mask(layer, "weight", magnitude_mask(layer.weight, NM(2, 4), axis))
    x = torch.randn(2, LARGE, 4, 4)
    export(model, x, tmp_path / "trap.onnx", dynamo=True)
    trapped = check_onnx(tmp_path / "trap.onnx")
    assert [check.eligible for check in trapped] == [False, True, False]  # the small one is folded: a toy test passes
    assert "with 'tamis prune'" in str(trapped[0].reason)
    report = prune_onnx(tmp_path / "trap.onnx", tmp_path / "mended.onnx")
    assert all(check.eligible for check in check_onnx(tmp_path / "mended.onnx"))
    assert not any(layer.changed for layer in report.layers)
    assert "Mul" not in {
        node.op_type for node in onnx.load(tmp_path / "mended.onnx", load_external_data=False).graph.node
    }
    expected = model(x).detach().numpy()
    np.testing.assert_allclose(outputs(tmp_path / "mended.onnx", x.numpy()), expected, atol=1e-5)


# T2 and T4: groups along the flattened kernel, in files


def test_flattened_kernels_are_found_in_every_kind_of_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, bias=False), nn.Conv2d(16, 16, 3, groups=2, bias=False))
    with torch.no_grad():
        for layer in model:
            flat = layer.weight.view(16, -1)
            flat.mul_(magnitude_mask(flat, NM(2, 4), 1))
    export(model, torch.zeros(1, 8, 8, 8), tmp_path / "m.onnx", dynamo=False)
    for checks in (check_module(model), check_state_dict(model.state_dict()), check_onnx(tmp_path / "m.onnx")):
        assert [check.zeros for check in checks] == [0.5, 0.5]
        assert all("along the flattened kernel, but the layer reduces over axis 1" in str(c.reason) for c in checks)
    prune_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx")
    assert all(check.eligible for check in check_onnx(tmp_path / "s.onnx"))


# T5 and T10: a rule of sizes that depends on the type, layers that are left out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_rule_of_sizes_is_one_for_all_types(dtype: torch.dtype) -> None:
    model = nn.Sequential(
        *(nn.Linear(16, 8), nn.Linear(16, 12), nn.Linear(12, 16), nn.Linear(20, 3), nn.Linear(6, 8)),
        *(nn.Conv2d(12, 6, 3), nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv1d(8, 8, 3)),
    ).to(dtype)
    fits = [layer.reason is None for layer in prunable(model)]
    assert fits == [True, True, True, True, False, True, False, False, True]
    report = prune(model)
    assert [layer.reason is None for layer in report.layers] == fits
    finalize(model)
    assert [check.eligible for check in check_module(model)] == fits
    by_name = {check.name: check.eligible for check in check_state_dict(model.state_dict())}
    assert list(by_name.values()) == fits


# T7: asymmetric weights as a real tool writes them


class Samples(CalibrationDataReader):
    def __init__(self, x: NDArray[Any]) -> None:
        self.left = [{"x": x}]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


@pytest.fixture(scope="module")
def dense_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Flatten(), nn.Linear(512, 64)
    )
    path = tmp_path_factory.mktemp("dense") / "dense.onnx"
    export(model.eval(), torch.zeros(2, 8, 4, 4), path, dynamo=False, input_names=["x"])
    return path


def real_weights(path: Path) -> dict[str, NDArray[np.float64]]:
    """The numbers that quantised weights stand for, by the definition of DequantizeLinear."""
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    real = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and stored.get(node.input[0], np.zeros(1)).ndim > 1:
            codes, scale, zero = (stored[name].astype(np.float64) for name in node.input)
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
            spread = [-1 if each == axis else 1 for each in range(codes.ndim)] if scale.ndim else []
            real[node.input[0]] = (codes - zero.reshape(spread)) * scale.reshape(spread)
    return real


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["symmetric int8", "asymmetric uint8"])
def test_quantised_by_onnx_runtime(kind: str, per_channel: bool, dense_model: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 8, 4, 4)).astype(np.float32)
    asymmetric = kind.startswith("a")

    def quantise(source: Path, target: Path) -> None:
        with quiet():
            quantize_static(
                source,
                target,
                Samples(x),
                quant_format=QuantFormat.QDQ,
                per_channel=per_channel,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QUInt8 if asymmetric else QuantType.QInt8,
                extra_options={"WeightSymmetric": not asymmetric},
            )

    prune_onnx(dense_model, tmp_path / "sparse.onnx")
    quantise(tmp_path / "sparse.onnx", tmp_path / "then.onnx")
    quantise(dense_model, tmp_path / "first.onnx")
    assert not any(check.eligible for check in check_onnx(tmp_path / "first.onnx"))
    report = prune_onnx(tmp_path / "first.onnx", tmp_path / "after.onnx")
    assert len(report.pruned) == 3
    for name in ("then.onnx", "after.onnx"):
        path = tmp_path / name
        checks = check_onnx(path)
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        assert len(checks) == 3
        for check in checks:
            assert check.eligible and check.zeros >= 0.5, check
            if asymmetric:
                assert np.mean(stored[check.name] == 0) < 0.03  # what a check of stored zeros would have seen
            assert stored[check.name].dtype == (np.uint8 if asymmetric else np.int8)
        for weight in real_weights(path).values():
            assert is_nm(weight, NM(2, 4), 1)
        assert sparse_notes(run_passes(import_onnx(path))) == ["2:4"] * 3
    before, after = real_weights(tmp_path / "first.onnx"), real_weights(tmp_path / "after.onnx")
    for name, weight in before.items():
        left = after[name]
        assert ((left == weight) | (left == 0)).all()
        # what was dropped is no larger than what was kept, in each group of four
        groups = [np.moveaxis(np.abs(each), 1, -1).reshape(-1, 4) for each in (weight, left)]
        dropped = np.where(groups[1] == 0, groups[0], 0).max(1)
        kept = np.where(groups[1] != 0, groups[0], np.inf).min(1)
        assert (dropped <= kept).all()


# T8: what the exporter leaves without its optimiser


@pytest.mark.parametrize("options", [{"dynamo": True, "optimize": False}, {"dynamo": False}], ids=str)
def test_norms_that_stay_in_the_file(options: dict[str, Any], tmp_path: Path) -> None:
    model = normed()
    x = torch.randn(2, 8, 4, 4)
    path, target = tmp_path / "m.onnx", tmp_path / "s.onnx"
    export(model, x, path, **options)
    kinds = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert kinds.count("BatchNormalization") == (3 if options["dynamo"] else 1)
    if options["dynamo"]:
        assert {"CastLike", "Expand"} <= set(kinds)
    checks = check_onnx(path)
    assert [(check.op, check.axis, check.eligible) for check in checks] == [
        *(("Conv", 1, True), ("Conv", 1, True)),
        ("Gemm", 1, True),
    ]
    imported = import_onnx(path)
    assert "BatchNorm" in {type(node.op).__name__ for node in imported.nodes}
    graph = run_passes(imported)
    (got,) = run(graph, {graph.inputs[0]: x.numpy()}, exact=True).values()
    np.testing.assert_allclose(got, copy.deepcopy(model).double()(x.double()).detach().numpy(), rtol=1e-4, atol=1e-4)
    assert "BatchNorm" not in {type(node.op).__name__ for node in graph.nodes}
    assert sparse_notes(graph) == ["2:4"] * 3
    # and a dense file of this form is pruned as well: the weight is also asked for its shape
    dense = onnx.load(path)
    for tensor in dense.graph.initializer:
        if tensor.name in {check.name for check in checks}:
            filled = np.random.default_rng(0).standard_normal(tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(filled, tensor.name))
    report = prune_onnx(dense, target)
    assert [layer.reason for layer in report.layers] == [None] * 3
    assert all(check.eligible for check in check_onnx(target))
    assert sparse_notes(run_passes(import_onnx(target))) == ["2:4"] * 3


def test_the_legacy_exporter_without_a_bias_transposes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 24, bias=False), nn.Linear(24, 8)).eval()
    prune(model)
    finalize(model)
    export(model, torch.zeros(2, 16), tmp_path / "m.onnx", dynamo=False)
    found = [(check.op, check.axis, check.shape, check.eligible) for check in check_onnx(tmp_path / "m.onnx")]
    assert found == [("MatMul", 0, (16, 24), True), ("Gemm", 1, (8, 24), True)]


# What keeps 2:4, and what breaks it


def hadamard(size: int) -> torch.Tensor:
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / size**0.5


def other_weight() -> torch.Tensor:
    return torch.randn(16, 32, generator=torch.Generator().manual_seed(9))


def pruned_otherwise() -> torch.Tensor:
    weight = other_weight()
    return weight * magnitude_mask(weight, NM(2, 4), 1)


ORDER = torch.randperm(32, generator=torch.Generator().manual_seed(3))
GROUPS = (torch.randperm(8, generator=torch.Generator().manual_seed(3))[:, None] * 4 + torch.arange(4)).flatten()
KEEP: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rows scaled, as a norm behind does": lambda w: w * torch.linspace(0.5, 2, 16)[:, None],
    "columns scaled, as smoothing for quantisation does": lambda w: w * torch.linspace(0.5, 2, 32),
    "whole groups permuted": lambda w: w[:, GROUPS],
    "rows permuted": lambda w: w[torch.randperm(16)],
    "aligned fours removed": lambda w: w[:, torch.arange(32) // 4 != 3],
    "aligned rows removed": lambda w: w[3:],
    "averaged with one of the same mask": lambda w: 0.5 * w + 0.5 * (w != 0) * other_weight(),
}
BREAK: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "an adapter of low rank merged": lambda w: w + other_weight()[:, :2] @ other_weight()[:2],
    "rotated": lambda w: w @ hadamard(32),
    "two branches of other masks merged": lambda w: w + pruned_otherwise(),
    "averaged with one of another mask": lambda w: 0.5 * w + 0.5 * pruned_otherwise(),
    "an average begun dense": lambda w: 0.99 * w + 0.01 * other_weight(),
    "channels permuted": lambda w: w[:, ORDER],
    "four channels removed that are not aligned": lambda w: w[:, [*range(2), *range(6, 32)]],
    "smoothed by adding a constant": lambda w: w + 1e-8,
}


@pytest.mark.parametrize("changed", [*KEEP, *BREAK])
def test_changes_of_a_sparse_weight(changed: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 16)
    prune(layer)
    finalize(layer)
    with torch.no_grad():
        weight = (KEEP | BREAK)[changed](layer.weight)
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0]))
    model[0].weight = nn.Parameter(weight)
    export(model, torch.zeros(1, weight.shape[1]), tmp_path / "m.onnx", dynamo=False)
    for (check,) in (check_module(model), check_state_dict(model.state_dict()), check_onnx(tmp_path / "m.onnx")):
        assert check.eligible == (changed in KEEP), check
        assert check.fits and (check.first is None) == check.eligible


def test_branches_of_a_repvgg_block_merge_into_a_dense_kernel(tmp_path: Path) -> None:
    """3x3 and 1x1 branches, each 2:4 by a mask of its own: their sum has both masks in the centre of the kernel."""
    torch.manual_seed(0)
    block = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.Conv2d(16, 16, 1, bias=False)])
    prune(block)
    finalize(block)
    merged = copy.deepcopy(block[0])
    with torch.no_grad():
        merged.weight[:, :, 1:2, 1:2] += block[1].weight
    (check,) = check_module(merged)
    assert not check.eligible
    assert check.first is not None and check.first[2:] == (1, 1)  # the centre, nowhere else
    assert check.groups > 8 / 9 - 1e-9
    prune(merged)
    report = export_onnx(merged.eval(), (torch.zeros(1, 16, 4, 4),), tmp_path / "m.onnx")
    assert [layer.eligible for layer in report.layers] == [True]
