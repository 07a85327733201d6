"""The methods of `prune`: what they keep, what they change, which data they need, and what they say if it is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tamis.errors import SparsityError
from tamis.formats import NM, is_nm
from tamis.sparsity import (
    SparseGPT,
    apply_masks,
    finalize,
    magnitude_scores,
    nm_mask,
    prunable,
    prune,
)
from tamis.sparsity.activations import from_matrices, hessian, weight_matrices
from tamis.sparsity.compensation import compensate

METHODS = ("magnitude", "wanda", "taylor", "sparsegpt")


class EveryLayer(nn.Module):
    """One layer of each kind, on images [N, 8, 6, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(8, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 16, 2, groups=2)
        self.line = nn.Conv1d(16, 16, 3, dilation=2)
        self.space = nn.Conv3d(16, 16, (1, 1, 2))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.crossed = nn.MultiheadAttention(16, 2, kdim=16, vdim=16, batch_first=True)
        self.crossed_apart = nn.MultiheadAttention(16, 2, kdim=8, vdim=8, batch_first=True)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.odd = nn.Linear(16, 6)
        self.end = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.plain(images).relu()).relu()
        x = self.up(self.depthwise(x).relu()).relu()
        x = self.line(x.flatten(2)).relu()[:, :, None, None]
        tokens = self.space(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        tokens = tokens + self.crossed(tokens, images.mean(3).repeat(1, 2, 1).mT, images.mean(2).repeat(1, 2, 1).mT)[0]
        tokens = tokens + self.crossed_apart(tokens, value=images.mean(2).mT, key=images.mean(3).mT)[0]
        tokens = self.second(self.first(tokens).relu()).relu()
        return self.end(self.odd(tokens.mean(1)))


def every_layer(dtype: torch.dtype = torch.float32) -> EveryLayer:
    torch.manual_seed(0)
    return EveryLayer().to(dtype)


def batches(count: int = 3, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 8, 6, 6, generator=generator).to(dtype) for _ in range(count)]


def square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    outputs: torch.Tensor = model(batch)
    return outputs.square().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "1:2"])
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_layer(method: str, pattern: str, dtype: torch.dtype) -> None:
    model = every_layer(dtype)
    report = prune(model, pattern, method=method, calibration=batches(2, dtype), loss=square)
    reasons = {layer.name: layer.reason for layer in report.skipped}
    n, m = map(int, pattern.split(":"))
    expected = {"depthwise.weight"} | ({"up.weight"} if method == "sparsegpt" else set())
    assert expected <= set(reasons) <= expected | {"end.weight"}
    finalize(model)
    for layer in prunable(model, pattern):
        if layer.full_name not in reasons:
            weight = layer.weight.detach()
            assert weight.dtype == dtype and bool(torch.isfinite(weight).all())
            assert is_nm(weight.float().numpy(), NM(n, m), layer.axis), layer.full_name
    assert model.first.weight is model.second.weight


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.widen = nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.hidden = nn.Linear(32 * 16, 64)
        self.classify = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.widen(F.relu(self.stem(images))))
        x = F.relu(x + self.grouped(x))
        scores: torch.Tensor = self.classify(F.relu(self.hidden(x.flatten(1))))
        return scores


@pytest.fixture(scope="module")
def trained() -> tuple[Digits, torch.Tensor, torch.Tensor]:
    """A network trained on handwritten digits, images for calibration and images held out."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)
    torch.manual_seed(0)
    model = Digits()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(6):
        for some in torch.randperm(1400).split(100):
            loss = F.cross_entropy(model(x[some]), y[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()
    with torch.no_grad():
        assert float((model(x[1400:]).argmax(1) == y[1400:]).float().mean()) > 0.85
    return model, x[:1400], x[1400:]


def layer_inputs(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, given: found.update({name: given[0].detach()})

    layers = [(name, module) for name, module in model.named_modules() if name]
    hooks = [module.register_forward_pre_hook(note(name)) for name, module in layers]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def test_compensation_is_real_for_convolutions_and_linear_layers(
    trained: tuple[Digits, torch.Tensor, torch.Tensor],
) -> None:
    dense, calibration, held_out = trained
    errors: dict[Any, dict[str, float]] = {}
    inputs = layer_inputs(dense, held_out)
    for method in ("magnitude", "sparsegpt", SparseGPT(refit=True)):
        model = copy.deepcopy(dense)
        prune(model, method=method, calibration=calibration.split(350))
        finalize(model)
        errors[method] = {}
        for name in ("widen", "grouped", "hidden", "classify"):
            with torch.no_grad():
                layer, x = dense.get_submodule(name), inputs[name]
                bias = layer.bias.reshape(-1, *(1,) * (layer.weight.ndim - 2))
                wanted = layer(x) - bias
                got = model.get_submodule(name)(x) - bias
            errors[method][name] = float((got - wanted).norm() / wanted.norm())
            if method != "magnitude":
                survivors = model.get_submodule(name).weight
                moved = (survivors != layer.weight) & (survivors != 0)
                assert int(moved.sum()) > 0.9 * int((survivors != 0).sum()), name  # not a mask only
                assert is_nm(survivors.detach().numpy(), NM(2, 4), 1)
    for name, error in errors["sparsegpt"].items():
        assert error < errors["magnitude"][name] / 1.5, (name, error)
        assert errors[SparseGPT(refit=True)][name] < errors["magnitude"][name] / 1.5


def test_each_layer_is_compensated_on_what_the_pruned_ones_before_it_give() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    x = torch.randn(6, 8, 7, 7, dtype=torch.float64)
    expected = copy.deepcopy(model)
    for index in (0, 2):
        choice = next(layer for layer in prunable(expected) if layer.name == str(index))
        with torch.no_grad():
            given = expected[:index](x)
            value, _ = compensate(weight_matrices(choice, choice.weight), hessian(choice, given), NM(2, 4))
            choice.weight.copy_(from_matrices(choice, value))
    prune(model, method="sparsegpt", calibration=[x[:2], x[2:]])
    for index in (0, 2):
        torch.testing.assert_close(model[index].weight, expected[index].weight)


class InPlace(nn.Module):
    """Two layers that read one tensor, which the first one's output has changed in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8).double(), nn.Linear(8, 8).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x.add_(self.first(x))
        outputs: torch.Tensor = self.second(x)
        return outputs


def test_a_tensor_that_is_changed_in_place_is_another_one() -> None:
    torch.manual_seed(0)
    model = InPlace()
    dense = model.second.weight.detach().clone()
    x = torch.randn(32, 8, dtype=torch.float64)
    prune(model, method="sparsegpt", calibration=[x])
    with torch.no_grad():
        given = x + model.first(x)
    expected, _ = compensate(dense[None], (given.T @ given)[None], NM(2, 4))
    torch.testing.assert_close(model.second.weight, expected[0])


def test_a_weight_that_two_layers_share_is_compensated_for_the_inputs_of_both() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False)).double()
    model[2].weight = model[0].weight
    x = torch.randn(32, 8, dtype=torch.float64)
    choice = prunable(model)[0]
    with torch.no_grad():
        products = hessian(choice, x) + hessian(choice, model[:2](x))
    expected, _ = compensate(model[0].weight.detach()[None], products, NM(2, 4))
    prune(model, method="sparsegpt", calibration=[x])
    torch.testing.assert_close(model[0].weight, expected[0])
    assert len(list(model.parameters())) == 1
    finalize(model)
    assert model[0].weight is model[2].weight


def test_attention_is_compensated_where_its_inputs_differ() -> None:
    """Queries, keys and values of a fused projection have Hessians of their own; the output projection too."""
    torch.manual_seed(0)

    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True).double()

        def forward(self, query: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            attended: torch.Tensor = self.attention(query, other, 2 * other + 1)[0]
            return attended

    model = Crossed()
    query, other = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    fused, projection = prunable(model)
    dense, dense_projection = fused.weight.detach().clone(), projection.weight.detach().clone()
    prune(model, method="sparsegpt", calibration=[(query, other)])
    found = model.attention.in_proj_weight.chunk(3)
    for part, rows, given in zip(found, dense.chunk(3), (query, other, 2 * other + 1), strict=True):
        matrix = given.flatten(0, 1)
        value, _ = compensate(rows[None], (matrix.T @ matrix)[None], NM(2, 4))
        torch.testing.assert_close(part, value[0])
    survivors = model.attention.out_proj.weight
    assert not torch.equal(survivors[survivors != 0], dense_projection[survivors != 0])


@pytest.mark.parametrize("groups", [1, 2])
def test_wanda_keeps_large_weights_with_large_inputs(groups: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 6, 3, padding=1, groups=groups))
    x = torch.randn(5, 16, 7, 7) * torch.rand(16)[:, None, None]
    norms = x.square().sum((0, 2, 3)).sqrt()
    scores = model[0].weight.detach().abs()
    for row in range(6):
        start = row // (6 // groups) * (16 // groups)
        scores[row] *= norms[start : start + 16 // groups, None, None]
    prune(model, method="wanda", calibration=[x[:2], x[2:]])
    assert torch.equal(model[0].weight != 0, nm_mask(scores, NM(2, 4), 1))


def test_wanda_for_transposed_convolutions_and_attention() -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(16, 4, 2, groups=2)
    x = torch.randn(3, 16, 4, 4) * torch.rand(16)[:, None, None]
    scores = up.weight.detach().abs() * x.square().sum((0, 2, 3)).sqrt()[:, None, None, None]
    prune(up, method="wanda", calibration=[x])
    assert torch.equal(up.weight != 0, nm_mask(scores, NM(2, 4), 0))
    attention = nn.MultiheadAttention(8, 2)
    inputs = [torch.randn(5, 2, 8) * torch.rand(8) for _ in range(3)]
    norms = torch.stack([x.square().sum((0, 1)).sqrt() for x in inputs]).repeat_interleave(8, 0)
    scores = attention.in_proj_weight.detach().abs() * norms
    prune(attention, method="wanda", calibration=[tuple(inputs)])
    assert torch.equal(attention.in_proj_weight != 0, nm_mask(scores, NM(2, 4), 1))


def test_taylor_keeps_what_the_loss_depends_on() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))
    model[2].weight.requires_grad_(False)  # frozen weights are judged all the same
    data = [(torch.randn(5, 16), torch.randint(4, (5,))) for _ in range(3)]
    twin = copy.deepcopy(model).requires_grad_(True)
    scores = {index: torch.zeros_like(twin[index].weight) for index in (0, 2)}
    for x, y in data:
        twin.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        for index in scores:
            scores[index] += (twin[index].weight * twin[index].weight.grad).abs().detach()
    prune(model, method="taylor", calibration=data, loss=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]))
    for index in (0, 2):
        assert torch.equal(model[index].weight != 0, nm_mask(scores[index], NM(2, 4), 1))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model[2].parametrizations.weight.original.requires_grad


def test_a_function_gives_the_scores() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    prune(model, method=lambda layer: -magnitude_scores(layer.weight))
    dense = model[0].parametrizations.weight.original
    assert torch.equal(model[0].weight != 0, nm_mask(-dense.detach().abs(), NM(2, 4), 1))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_forms_of_calibration_data_give_the_same(method: str) -> None:
    data = batches()
    forms: list[Any] = [
        data,
        iter(data),
        [(batch,) for batch in data],
        [{"images": batch} for batch in data],
        lambda model: [model(batch) for batch in data],
    ]
    weights = []
    for form in forms:
        model = every_layer()
        prune(model, method=method, calibration=form)
        weights.append(finalize(model) and torch.cat([layer.weight.flatten() for layer in prunable(model)]))
    assert all(torch.equal(weights[0], other) for other in weights[1:])


def test_the_model_is_left_in_its_mode_and_without_hooks() -> None:
    model = every_layer().train()
    model.up.eval()
    norm = nn.Sequential(nn.BatchNorm2d(8), model)
    before = [module.training for module in norm.modules()]
    running = norm[0].running_mean.clone()
    for method in METHODS[1:]:
        copied = copy.deepcopy(norm)
        prune(copied, method=method, calibration=batches(), loss=square)
        assert torch.equal(copied[0].running_mean, running)
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in copied.modules())
        finalize(copied)
        assert [module.training for module in copied.modules()] == before
    assert torch.backends.mha.get_fastpath_enabled()


def test_progress_is_told_layer_by_layer() -> None:
    for method in METHODS:
        told: list[tuple[str, int, int, str]] = []
        prune(
            every_layer(),
            method=method,
            calibration=batches(),
            loss=square,
            progress=lambda *step: told.append(step),  # noqa: B023
        )
        assert [done for _, done, _, _ in told] == list(range(1, len(told) + 1))
        assert all(total == len(told) for _, _, total, _ in told)
        assert {"plain.weight", "attention.out_proj.weight"} <= {name for *_, name in told}


class Forgetful(nn.Sequential):
    """Runs its first layer only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self[0](x)
        return outputs


def test_a_layer_that_no_data_reaches_is_left_dense() -> None:
    for method in METHODS[1:]:
        model = Forgetful(nn.Linear(8, 8), nn.Linear(8, 8))
        report = prune(model, method=method, calibration=[torch.randn(4, 8)], loss=square)
        assert [layer.name for layer in report.pruned] == ["0.weight"]
        assert "does not reach" in str(report.skipped[0].reason)


def test_sparsegpt_leaves_computed_weights_alone() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    report = prune(model, method="sparsegpt", calibration=[torch.randn(16, 8)])
    assert [layer.name for layer in report.pruned] == ["1.weight"]
    assert "computed" in str(report.skipped[0].reason)


def test_masks_made_elsewhere() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    mask = nm_mask(torch.rand(8, 8), NM(2, 4), 1)
    report = apply_masks(model, {"0.weight": mask.float()})
    assert [layer.name for layer in report.pruned] == ["0.weight"]
    assert report.skipped[0].reason == "no mask given"
    assert torch.equal(model[0].weight != 0, mask)
    for masks, message in [
        ({"1.weight": torch.ones(4, 8)}, r"layer '1.weight': its mask has shape \[4, 8\], its weight \[8, 8\]"),
        ({"1.weight": torch.ones(8, 8)}, r"layer '1.weight': the mask does not follow 2:4 along axis 1"),
        ({"2.weight": mask}, "layer '2.weight': cannot be masked"),
        ({"0.weight": mask}, "already masked"),
        ({"1.weight": mask.long(), "odd": mask}, "layer 'odd': cannot be masked"),
    ]:
        with pytest.raises(SparsityError, match=message):
            apply_masks(model, masks)


def test_masks_of_a_shared_weight() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    mask = nm_mask(torch.rand(8, 8), NM(2, 4), 1)
    with pytest.raises(SparsityError, match=r"layer '1.weight': another name of this shared weight"):
        apply_masks(model, {"0.weight": mask, "1.weight": mask.roll(1, 0)})
    assert len(apply_masks(model, {"1.weight": mask}).pruned) == 2
    assert torch.equal(model[0].weight, model[1].weight)


def test_survivors_that_overflow_are_refused() -> None:
    """Four equal inputs: two weights would have to do the work of four, beyond the largest float16."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False)).half()
    with torch.no_grad():
        model[0].weight.fill_(6e4)
    same = torch.randn(64, 1).expand(64, 4).contiguous().half() / 1e3
    with pytest.raises(SparsityError, match=r"layer '0.weight': its compensated weight overflows float16"):
        prune(model, method="sparsegpt", calibration=[same])
    assert bool((model[0].weight == 6e4).all())


@pytest.mark.parametrize("options", [{"damping": 0.0}, {"damping": float("nan")}, {"block": 0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SparsityError, match="damping must be positive"):
        SparseGPT(**options)


def test_what_cannot_be_pruned_says_so() -> None:
    linear = nn.Linear(8, 8)
    for model, options, message in [
        (nn.Sequential(nn.ReLU()), {}, "no linear, convolution or attention layer"),
        (nn.Linear(6, 8), {}, r"2:4 fits none of the 1 weights; 'weight': 6 inputs"),
        (linear, {"pattern": "3:7"}, "3:7 fits none"),
        (linear, {"method": "best"}, "no method is called 'best'"),
        (linear, {"method": lambda layer: torch.ones(8)}, r"layer 'weight': its score has shape \[8\]"),
        (linear, {"method": lambda layer: layer.weight * torch.nan}, "layer 'weight': scores contain NaN"),
        (linear, {"method": "wanda"}, "wanda needs calibration data"),
        (linear, {"method": "sparsegpt"}, "sparsegpt needs calibration data"),
        (linear, {"method": "taylor", "calibration": [1]}, "taylor needs a loss"),
        (linear, {"method": "taylor", "calibration": linear, "loss": square}, "taylor needs batches"),
        (linear, {"method": "sparsegpt", "calibration": torch.ones(4, 8)}, "calibration is a Tensor"),
        (linear, {"method": "sparsegpt", "calibration": []}, "no calibration batches"),
        (linear, {"method": "wanda", "calibration": [torch.ones(4, 8), torch.ones(4, 7)]}, "batch 1 does not run"),
        (linear, {"method": "wanda", "calibration": lambda model: model()}, "calibration function fails: TypeError"),
        (linear, {"method": "wanda", "calibration": [torch.full((4, 8), torch.nan)]}, "layer 'weight': its inputs"),
        (linear, {"method": "sparsegpt", "calibration": [torch.full((4, 8), torch.inf)]}, "layer 'weight': its inputs"),
        (
            linear,
            {"method": "taylor", "calibration": [torch.full((4, 8), torch.nan)], "loss": square},
            "layer 'weight': its gradient",
        ),
        (
            linear,
            {"method": "taylor", "calibration": [torch.ones(4, 8)], "loss": lambda net, batch: net(batch)},
            "batch 0 does not run: .* Loss takes the model and a batch",
        ),
    ]:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(SparsityError, match=message) as raised:
            prune(model, **{"pattern": "2:4", **options})
        assert "\n" not in str(raised.value)
        after = model.state_dict()
        assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[1].weight[2, 3] = value
    with pytest.raises(SparsityError, match=r"layer '1.weight': its weight holds NaN or infinity"):
        prune(model)
    assert [layer.name for layer in prune(model, exclude=["1"]).pruned] == ["0.weight"]


@pytest.mark.cuda
def test_masks_and_compensation_on_a_gpu_agree_with_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for method in METHODS:
        model = every_layer().double()
        on_gpu = copy.deepcopy(model).cuda()
        data = batches(3, torch.float64)
        prune(model, method=method, calibration=data, loss=square)
        prune(on_gpu, method=method, calibration=[batch.cuda() for batch in data], loss=square)
        for one, other in zip(prunable(model), prunable(on_gpu), strict=True):
            torch.testing.assert_close(one.weight, other.weight.cpu())
