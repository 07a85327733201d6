"""Permuted channels: the network computes the same, the pattern keeps more, and what cannot move says why."""

from __future__ import annotations

import copy
import itertools
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from channel_networks import NETWORKS, Divided, network
from tamis.errors import MissingLibrary, SparsityError
from tamis.formats import NM
from tamis.sparsity import magnitude_mask, permute_channels, prunable, prune
from tamis.sparsity import permutation as permutation_module
from tamis.sparsity.channel_graph import Axis, ChannelGroup
from tamis.sparsity.permutation_search import search_order


def kept(model: nn.Module, pattern: NM) -> float:
    layers = [layer for layer in prunable(model, pattern) if layer.reason is None]
    return sum(
        float((layer.weight.abs() * magnitude_mask(layer.weight, pattern, layer.axis)).detach().sum())
        for layer in layers
    )


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 2)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_computes_the_same_and_keeps_more(name: str, pattern: NM) -> None:
    pytest.importorskip("torch_pruning")
    model, inputs = network(name)
    with torch.no_grad():
        expected = model(inputs)
    before, parameters = kept(model, pattern), list(model.parameters())
    report = permute_channels(model, inputs, pattern, escapes=1)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))
    assert report.after - report.before == pytest.approx(kept(model, pattern) - before)
    assert report.after >= report.before
    if name != "divided":
        assert kept(model, pattern) > 1.002 * before
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    for layer in report.layers:
        assert layer.reason is None or layer.after == pytest.approx(layer.before)


def reasons(name: str) -> dict[str, str | None]:
    model, inputs = network(name)
    report = permute_channels(model, inputs, escapes=0)
    return {layer.name.removesuffix(".weight"): layer.reason for layer in report.layers}


def test_which_layers_are_permuted() -> None:
    pytest.importorskip("torch_pruning")
    resnet = reasons("resnet")
    assert [name for name, reason in resnet.items() if reason] == ["stem.0"]  # residual joins included
    resnext = reasons("resnext")
    assert resnext["blocks.2.second"] is None  # within the groups of the convolution
    mobile = reasons("mobilenet")
    assert [name for name, reason in mobile.items() if reason] == ["0.0", "1.3", "2.3", "3.3"]  # stem and depthwise
    transformer = reasons("transformer")
    heads = {"blocks.0.out", "blocks.2.out"}
    assert {name for name, reason in transformer.items() if reason} == heads
    assert all("outputs depend on the order" in str(transformer[name]) for name in heads)
    encoder = reasons("encoder")
    assert encoder["blocks.layers.0.self_attn.in_proj_weight"] is None
    assert encoder["blocks.layers.0.linear2"] is None
    assert encoder["blocks.layers.0.self_attn.out_proj"] is not None
    joined = reasons("joined")
    assert all(joined[name] is None for name in ("right", "mix", "narrow", "up", "end"))
    assert reasons("divided")["third"] is not None
    flattened = reasons("flattened")
    assert flattened["second"] is None and flattened["end"] is None
    assert flattened["hidden"] is None  # its inputs moved along, pixels of a channel together
    alone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    report = permute_channels(alone, torch.randn(2, 3, 8, 8))
    assert "feeds several of its inputs" in str(report.layers[1].reason)


class BesideItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 12, 3, padding=1), nn.Conv2d(16, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.second(torch.cat([self.first(x), x], 1))
        return outputs


def test_channels_of_the_models_input_stay() -> None:
    pytest.importorskip("torch_pruning")
    report = permute_channels(BesideItsInput(), torch.randn(2, 4, 8, 8))
    assert all(layer.reason is not None for layer in report.layers)


def test_an_order_that_changes_the_outputs_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the dependency graph had overlooked a tensor."""
    pytest.importorskip("torch_pruning")
    model, inputs = network("resnet")
    before = copy.deepcopy(model.state_dict())
    whole = permutation_module.ChannelGraph.inputs_of

    def forgetful(graph: object, module: nn.Module, channels: int) -> ChannelGroup:
        group = whole(graph, module, channels)  # type: ignore[arg-type]
        return replace(group, axes=tuple(axis for axis in group.axes if axis.axis == 1))

    monkeypatch.setattr(permutation_module.ChannelGraph, "inputs_of", forgetful)
    report = permute_channels(model, inputs, escapes=0)
    tried = [layer for layer in report.layers if "outputs depend" in str(layer.reason)]
    assert len(tried) > 5
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert report.after == report.before


def test_equal_seeds_give_equal_orders_and_scores_are_the_users() -> None:
    pytest.importorskip("torch_pruning")
    results = []
    for _ in range(2):
        model, inputs = network("flattened")
        permute_channels(model, (inputs,), escapes=2, seed=3)
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    model, inputs = network("flattened")
    dense = copy.deepcopy(model)
    report = permute_channels(model, inputs, scores=lambda layer: torch.ones_like(layer.weight))
    assert report.after == report.before  # where all is equal, no order is better
    assert all(torch.equal(one, other) for one, other in zip(dense.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_are_moved_and_not_rounded(dtype: torch.dtype) -> None:
    pytest.importorskip("torch_pruning")
    model, inputs = network("resnet")
    model = model.to(dtype)
    before = copy.deepcopy(model)
    steps: list[tuple[str, int, int, str]] = []
    permute_channels(model, inputs.to(dtype), escapes=0, progress=lambda *step: steps.append(step))
    assert len(steps) == 9 and steps[-1][:3] == ("permute", 9, 9)
    for one, other in zip(before.parameters(), model.parameters(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.flatten().sort().values, other.flatten().sort().values)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(inputs.double()), before.double()(inputs.double()))
    prune(model)


def test_what_cannot_be_permuted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")
    model = Divided()
    for inputs, message in [
        (torch.randn(2, 5, 8, 8), "does not run on the example inputs in float64: RuntimeError"),
        (torch.full((2, 3, 8, 8), torch.nan), "outputs on the example inputs hold NaN"),
    ]:
        with pytest.raises(SparsityError, match=message):
            permute_channels(model, inputs)
    inputs = torch.randn(2, 3, 8, 8)
    with pytest.raises(SparsityError, match=r"layer 'first.weight': its scores must be \[16, 3, 3, 3\]"):
        permute_channels(model, inputs, scores=lambda layer: -layer.weight.abs())
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.second.weight[0] = torch.inf
    with pytest.raises(SparsityError, match=r"layer 'second.weight': its weight holds NaN or infinity"):
        permute_channels(broken, inputs)
    prune(model)
    with pytest.raises(SparsityError, match="already masked"):
        permute_channels(model, inputs)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingLibrary, match=r"tamis\[sparsity\]"):
        permute_channels(Divided(), inputs)


def test_of_very_many_rows_a_sample_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")
    monkeypatch.setattr(permutation_module, "_MOST_ROWS", 16)
    model, inputs = network("encoder")
    with torch.no_grad():
        expected = model(inputs)
    report = permute_channels(model, inputs)
    assert report.after > 1.002 * report.before
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), expected)


@pytest.mark.parametrize(
    ("roots", "aligned"),
    [
        (range(8), True),
        ([-1] * 4 + [*range(8)], True),  # behind four other channels of a concatenation
        ([-1] * 2 + [*range(8)], False),
        ([*range(4, 12)], True),
        ([0, 0, 1, 1, 2, 2, 3, 3], False),  # a flattened map
    ],
)
def test_which_readers_have_the_stripes_of_the_group(roots: list[int], aligned: bool) -> None:
    axis = Axis(torch.empty(2, len(roots)), 1, torch.tensor(roots))
    assert permutation_module._aligned(axis, NM(2, 4)) is aligned


def test_an_axis_moves_all_places_of_a_channel() -> None:
    flattened = Axis(torch.empty(1, 8), 1, torch.tensor([2, 2, -1, 0, 0, 1, 1, -1]))
    assert flattened.order(torch.tensor([1, 2, 0])).tolist() == [3, 4, 2, 5, 6, 0, 1, 7]
    grouped = Axis(torch.empty(2, 4), 1, torch.arange(8), groups=2, bins=2)
    tensor = torch.arange(8.0).reshape(2, 4)
    grouped.permute(tensor, torch.tensor([1, 0, 2, 3, 4, 5, 7, 6]))
    assert tensor.tolist() == [[1, 0, 2, 3], [4, 5, 7, 6]]


@pytest.mark.cuda
def test_permutation_on_a_gpu() -> None:
    pytest.importorskip("torch_pruning")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, inputs = network("resnext")
    model, inputs = model.cuda(), inputs.cuda()
    with torch.no_grad():
        expected = model(inputs)
    report = permute_channels(model, inputs)
    assert report.after > report.before
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), expected)


def total(scores: torch.Tensor, pattern: NM) -> float:
    return float((scores * magnitude_mask(scores, pattern, 1)).sum())


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 8), NM(1, 2)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_search_gains_and_never_loses(pattern: NM, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(20, 32, generator=generator) * torch.rand(32, generator=generator).square()
    classes = torch.randint(2, (32,), generator=generator)
    order = search_order(scores, classes, pattern, escapes=0)
    assert order.sort().values.tolist() == list(range(32))
    assert torch.equal(classes[order], classes)
    found = total(scores[:, order], pattern)
    assert found > 1.01 * total(scores, pattern)
    for first, second in itertools.combinations(range(32), 2):  # no swap gains any more
        if classes[first] == classes[second]:
            other = order.clone()
            other[[first, second]] = order[[second, first]]
            assert total(scores[:, other], pattern) <= found + 1e-5
    escaped = search_order(scores, classes, pattern, escapes=20, seed=1)
    assert torch.equal(classes[escaped], classes)
    assert total(scores[:, escaped], pattern) >= found - 1e-5


def test_the_search_finds_what_is_best_of_all() -> None:
    """Large columns two by two in the first stripes: the best order has two of them in each stripe."""
    scores = torch.full((6, 16), 0.1)
    scores[:, :8] = 1.0
    order = search_order(scores, torch.zeros(16, dtype=torch.long), NM(2, 4))
    assert (scores[0, order].reshape(4, 4) == 1).sum(1).tolist() == [2, 2, 2, 2]
