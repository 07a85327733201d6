"""Masks hold whatever trains the model, and finalize leaves plain weights with zeros."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tamis.errors import FormatError, SparsityError
from tamis.formats import NM, is_nm
from tamis.sparsity import finalize, prune


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def assert_sparse(model: nn.Sequential) -> None:
    for index in (3, 7):
        assert is_nm(model[index].weight.detach().float().numpy(), NM(2, 4), 1)


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int, *, half: bool = False) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.randn(8, 3, 8, 8, generator=generator)
        labels = torch.randint(0, 4, (8,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


OPTIMISERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("optimiser_first", [False, True])
def test_masks_hold_in_training(name: str, half: bool, optimiser_first: bool) -> None:
    model = small_network()
    before = copy.deepcopy(model)
    if optimiser_first:
        optimiser = OPTIMISERS[name](model)
        train(model, optimiser, 2)  # momentum from dense steps
        prune(model)
    else:
        prune(model)
        optimiser = OPTIMISERS[name](model)
    masks = [model[index].weight != 0 for index in (3, 7)]
    train(model, optimiser, 20, half=half)
    assert_sparse(model)
    report = finalize(model)
    assert_sparse(model)
    assert [layer.name for layer in report.pruned] == ["3.weight", "7.weight"]
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    for index, mask in zip((3, 7), masks, strict=True):
        weight = model[index].weight
        assert isinstance(weight, nn.Parameter)
        assert bool((weight[~mask] == 0).all())  # the zeros are where they were put
        assert not torch.equal(weight[mask], before[index].weight[mask])  # and the rest has learnt
    assert list(model.state_dict()) == list(before.state_dict())


def test_training_goes_on_with_the_same_optimiser_after_finalize() -> None:
    model = small_network()
    prune(model)
    optimiser = OPTIMISERS["adam"](model)
    finalize(model)
    before = model[7].weight.detach().clone()
    train(model, optimiser, 1)
    assert not torch.equal(before, model[7].weight)


def test_masks_hold_in_an_averaged_model() -> None:
    model = small_network()
    prune(model)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimiser = OPTIMISERS["sgd"](model)
    for _ in range(5):
        train(model, optimiser, 1)
        average.update_parameters(model)
    finalize(average.module)
    assert_sparse(average.module)


def test_output_before_and_after_finalize_is_the_same() -> None:
    model = small_network().eval()
    prune(model)
    x = torch.randn(2, 3, 8, 8)
    held = model(x)
    finalize(model)
    assert torch.equal(held, model(x))


def test_masked_elements_may_hold_anything() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    prune(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original[0, 0] = float("nan")
    assert layer.weight.tolist() == [[0.0, 0.0, 3.0, 4.0]]
    finalize(layer)
    assert layer.weight.tolist() == [[0.0, 0.0, 3.0, 4.0]]


def test_attention_holds_its_masks_on_the_fast_path_too() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    prune(layer)
    baked = copy.deepcopy(layer)
    finalize(baked)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), baked(x))
    assert is_nm(baked.self_attn.in_proj_weight.detach().numpy(), NM(2, 4), 1)
    assert is_nm(baked.linear2.weight.detach().numpy(), NM(2, 4), 1)


def test_shared_weights_stay_shared() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    prune(model)
    assert len(list(model.parameters())) == 3
    train_like = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 8)).square().sum().backward()
    train_like.step()
    assert torch.equal(model[0].weight, model[1].weight)
    copied = copy.deepcopy(model)
    for network in (model, copied):
        finalize(network)
        assert network[0].weight is network[1].weight
        assert is_nm(network[0].weight.detach().numpy(), NM(2, 4), 1)


def test_finalizing_a_copy_leaves_the_original_held() -> None:
    model = small_network()
    prune(model)
    x = torch.randn(2, 3, 8, 8)
    expected = model.eval()(x)
    finalize(copy.deepcopy(model))
    assert torch.equal(model(x), expected)
    train(model, OPTIMISERS["adam"](model), 2)
    assert_sparse(model)
    finalize(model)
    assert_sparse(model)


def test_parameters_of_attention_keep_their_places() -> None:
    for layer in (nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=12, vdim=16)):
        before = list(layer.state_dict())
        prune(layer)
        finalize(layer)
        assert list(layer.state_dict()) == before
        assert [name for name, _ in layer.named_parameters()] == before


def test_exclude_by_name_by_function_and_through_sharing() -> None:
    report = prune(small_network(), exclude=("7", "*.bias"))
    assert [layer.name for layer in report.pruned] == ["3.weight"]
    assert {layer.name: layer.reason for layer in report.skipped}["7.weight"] == "excluded"
    report = prune(small_network(), exclude=lambda name, module: isinstance(module, nn.Conv2d))
    assert [layer.name for layer in report.pruned] == ["7.weight"]
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    assert prune(model, exclude=["0"]).pruned == ()


def test_report_describes_every_layer() -> None:
    report = prune(small_network())
    assert [(layer.name, layer.shape) for layer in report.layers] == [
        ("0.weight", (8, 3, 3, 3)),
        ("3.weight", (16, 8, 3, 3)),
        ("7.weight", (4, 16)),
    ]
    assert [layer.zeros for layer in report.pruned] == [0.5, 0.5]
    assert "3 inputs" in str(report.skipped[0].reason)
    assert "2 weights pruned, 1 skipped" in str(report)


def test_other_patterns() -> None:
    layer = nn.Linear(16, 8)
    assert prune(layer, "1:4").pruned[0].zeros == 0.75
    finalize(layer)
    assert is_nm(layer.weight.detach().numpy(), NM(1, 4), 1)
    for wrong in ("dense", "2-4", "5:4"):
        with pytest.raises((SparsityError, FormatError)):
            prune(layer, wrong)


def test_state_dict_carries_the_masks() -> None:
    model = small_network()
    prune(model)
    train(model, OPTIMISERS["adam"](model), 3)
    other = small_network()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    prune(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other[3].weight, model[3].weight)


def test_errors_leave_the_model_as_it_was() -> None:
    model = small_network()
    with torch.no_grad():
        model[7].weight[0, 0] = float("nan")
    with pytest.raises(SparsityError, match=r"layer '7.weight'.*NaN"):
        prune(model)
    with pytest.raises(SparsityError, match="exclude '70' matches no layer"):
        prune(model, exclude=["7", "70"])
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    twice = small_network()
    prune(twice)
    with pytest.raises(SparsityError, match="already masked"):
        prune(twice)


def test_mask_over_weight_normalisation() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)))
    prune(model)
    finalize(model)
    assert is_nm(model[0].weight.detach().numpy(), NM(2, 4), 1)


def test_something_that_fills_the_zeros_again_is_found() -> None:
    class AddOne(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + 1

    layer = nn.Linear(8, 8)
    prune(layer)
    parametrize.register_parametrization(layer, "weight", AddOne())
    with pytest.raises(SparsityError, match="not zero"):
        finalize(layer)
