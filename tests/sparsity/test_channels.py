"""Channel pruning: what goes, what stays and why, and what is still sparse afterwards."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from tamis.errors import ConfigError, MissingLibrary, OutputError, SparsityError
from tamis.formats import NM, is_nm
from tamis.sparsity import (
    ChannelReport,
    Removal,
    check_module,
    finalize,
    load_channels,
    prune,
    prune_channels,
    prune_progressively,
    save_channels,
    useful_multiple,
)
from tamis.sparsity.channel_rounding import kept_channels

pytest.importorskip("torch_pruning")
IMAGE = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Block(nn.Module):
    """A grouped convolution beside a shortcut."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.depthwise(self.norm(self.grouped(x)).relu())


class Network(nn.Module):
    def __init__(self, channels: int = 128, groups: int = 8, classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.block = Block(channels, groups)
        self.wide = nn.Conv2d(channels, 64, 1)
        self.hidden = nn.Linear(64 * 4, 96)
        self.classifier = nn.Linear(96, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.wide(self.block(self.stem(x))).relu(), 2)
        return self.classifier(self.hidden(x.flatten(1)).relu())


def outcome(report: ChannelReport) -> dict[str, tuple[int, int, str | None]]:
    return {group.name: (group.before, group.after, group.reason) for group in report.groups}


@pytest.mark.parametrize("importance", ["norm", "bn", "taylor"])
def test_residual_and_grouped_layers_shrink_together_to_what_2_4_fits(importance: Any) -> None:
    model = Network().eval()
    before = copy.deepcopy(model.state_dict())
    loss = lambda module: module(IMAGE[0]).square().mean()  # noqa: E731
    report = prune_channels(model, IMAGE, Removal(0.3, "layer", importance=importance), loss=loss)
    groups = outcome(report)
    stream = next(group for group in report.groups if "block.grouped" in group.members)
    # trap T9: a multiple of 16 for each of 8 groups would have left all 128
    assert (stream.before, stream.after) == (128, 96)
    assert {"stem", "block.grouped", "block.norm", "block.depthwise", "wide"} <= set(stream.members)
    smaller: Any = report.model
    assert smaller.block.grouped.weight.shape == (96, 12, 3, 3)
    assert smaller.block.depthwise.groups == 96
    if importance == "bn":
        assert "no batch norm" in str(groups["hidden"][2])
    else:
        assert groups["wide"][:2] == (64, 48) and groups["hidden"][:2] == (96, 64)
        assert smaller.hidden.weight.shape == (64, 48 * 4)
    assert groups["classifier"][2] is not None and "gives these channels out" in str(groups["classifier"][2])
    assert smaller(*IMAGE).shape == (2, 10)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not smaller.training
    sparse = {layer.name for layer in prune(smaller).pruned}
    assert {"block.grouped.weight", "wide.weight", "hidden.weight", "classifier.weight"} == sparse


@pytest.mark.parametrize("importance", ["norm", "taylor"])
def test_measuring_does_not_train(importance: Any) -> None:
    model = Network().train()
    model(torch.randn(4, 3, 8, 8))
    before = copy.deepcopy(model.state_dict())
    loss = lambda module: module(IMAGE[0]).square().mean()  # noqa: E731
    pruned: Any = prune_channels(model, IMAGE, Removal(0.3, "layer", importance=importance), loss=loss).model
    for part in (model.block.norm, pruned.block.norm):
        assert set(part.running_mean.tolist()) <= set(before["block.norm.running_mean"].tolist())
        assert part.num_batches_tracked == 1 and part.training
    assert all(parameter.grad is None for network in (model, pruned) for parameter in network.parameters())


def test_what_is_kept_computes_the_same() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        for odd in (model[0].weight[1::4], model[0].bias[1::4], model[2].weight[:, 1::4]):
            odd.zero_()
    model[0].weight.requires_grad_(False)
    x = torch.randn(3, 8)
    report = prune_channels(model, (x,), Removal(0.25, multiple=8))
    assert report.model[2].weight.shape == (4, 24)  # type: ignore[index]
    torch.testing.assert_close(report.model(x), model(x))
    frozen = {name for name, parameter in report.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"0.weight"} and model[2].weight.requires_grad


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_halves_that_are_multiplied_are_kept_and_the_rest_is_not(ratio: float) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.both = nn.Conv2d(3, 64, 1)
            self.next = nn.Conv2d(32, 64, 1)
            self.last = nn.Conv2d(64, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate, value = self.both(x).chunk(2, 1)
            return self.last(self.next(gate.sigmoid() * value))

    report = prune_channels(Gated(), IMAGE, Removal(ratio, "layer"))
    groups = outcome(report)
    assert groups["both"] == (64, 64, "some of its channels can only go together with others of it")
    assert groups["next"] == (64, 48 if ratio == 0.3 else 32, None)
    assert report.model.next.weight.shape[0] == groups["next"][1]  # type: ignore[union-attr]


def test_layers_that_share_a_weight_keep_their_channels() -> None:
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(3)), nn.Linear(32, 64), nn.Linear(64, 3))
    model[1].weight = model[2].weight
    report = prune_channels(model, (torch.zeros(1, 32),), Removal(0.5, "layer"))
    assert "shares its weight" in str(outcome(report)["1"][2])
    assert outcome(report)["3"] == (64, 32, None)
    assert report.model[1].weight is report.model[2].weight  # type: ignore[index]


def test_report_counts_multiplications_and_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ConvTranspose2d(32, 64, 2, 2), nn.Conv2d(64, 4, 1))
    report = prune_channels(model, IMAGE, Removal(0.5, "layer"))
    assert [(layer.macs, layer.parameters) for layer in report.before] == [
        (2 * 32 * 64 * 27, 32 * 28),
        (2 * 64 * 32 * 64 * 4, 32 * 64 * 4 + 64),
        (2 * 256 * 4 * 64, 4 * 65),
    ]
    assert [layer.shape for layer in report.after] == [(16, 3, 3, 3), (16, 32, 2, 2), (4, 32, 1, 1)]
    assert [layer.macs for layer in report.after] == [2 * 16 * 64 * 27, 2 * 64 * 16 * 32 * 4, 2 * 256 * 4 * 32]
    assert report.macs_ratio == pytest.approx(sum(x.macs for x in report.after) / sum(x.macs for x in report.before))
    assert "0: [32, 3, 3, 3] -> [16, 3, 3, 3]" in str(report) and "2: kept whole" in str(report)


def test_ratios_by_name_and_ignored_layers() -> None:
    report = prune_channels(Network(), IMAGE, Removal(0.25, ratios={"hid*": 0.5}, multiple=8), ignore=("block.*",))
    groups = outcome(report)
    assert groups["hidden"][:2] == (96, 48)
    assert next(group.reason for group in report.groups if "block.grouped" in group.members) == "ignored"


def test_global_choice_takes_the_least_important_of_the_network() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            nn.init.constant_(layer.weight, 1.0)
            nn.init.constant_(layer.bias, 1.0)
        model[2].weight[32:] = 1e-3
        model[4].weight[:, 32:] = 1e-3
    report = prune_channels(model, (torch.ones(1, 16),), Removal(0.25))
    assert outcome(report)["2"][:2] == (64, 32) and outcome(report)["0"][:2] == (64, 64)
    capped = prune_channels(model, (torch.ones(1, 16),), Removal(0.25, most=0.25))
    assert outcome(capped)["2"][:2] == (64, 48)


class Tokens(nn.Module):
    """A transformer: learned positions, torch's encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 32, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 4, 32))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2))
        self.classifier = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x.mean(1))


def test_transformers_keep_their_heads_whole() -> None:
    report = prune_channels(Tokens(), IMAGE, Removal(0.5, "layer"))
    smaller: Any = report.model
    for layer in smaller.layers:
        assert layer.linear1.weight.shape == (32, 32) and layer.linear2.weight.shape == (32, 32)
        assert layer.self_attn.in_proj_weight.shape == (96, 32) and layer.self_attn.num_heads == 4
    reasons = {group.reason for group in report.groups if group.reason}
    assert any("heads are kept whole" in reason for reason in reasons)
    assert smaller.train()(*IMAGE).shape == (2, 5)


def benchmark_models() -> Any:
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    import models

    return models


@pytest.mark.parametrize("name", ["small-vit", "small-resnet50", "small-mobilenet-v2", "small-densenet121"])
def test_networks(name: str) -> None:
    spec = benchmark_models().get(name)
    model, inputs = spec.build(), tuple(spec.inputs(1).values())
    report = prune_channels(model, inputs, Removal(0.4, multiple=8))
    assert report.macs_ratio < 0.85
    assert report.model(*inputs).shape == model(*inputs).shape
    for old, new in zip(report.before, report.after, strict=True):
        assert old.name == new.name and all(
            a % 8 == 0 or a == b for a, b in zip(new.shape[:1], old.shape, strict=False)
        )


def test_detector_with_split_and_joined_stages(tmp_path: Path) -> None:
    benchmark_models()
    from models.detector import detector

    model, inputs = detector(width=8, depth=1, classes=3, size=64), (torch.randn(1, 3, 64, 64),)
    report = prune_channels(model, inputs, Removal(0.4, multiple=4))
    assert report.macs_ratio < 0.6
    assert report.model(*inputs).shape == model(*inputs).shape
    assert any("gives these channels out" in str(group.reason) for group in report.groups)
    save_channels(report.model, tmp_path / "d.safetensors")
    fresh = detector(width=8, depth=1, classes=3, size=64)
    load_channels(fresh, tmp_path / "d.safetensors")
    torch.testing.assert_close(fresh(*inputs), report.model(*inputs))
    assert {layer.name for layer in check_module(fresh) if layer.reason and "multiple" in layer.reason} == {
        "stem.0.weight"
    }


def sparse_chain() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    prune(model)
    finalize(model)
    return model


def test_aligned_removal_after_2_4_keeps_it_and_other_removal_is_found() -> None:
    inputs = (torch.randn(2, 16),)
    with pytest.raises(SparsityError, match=r"layer '\d\.weight': was 2:4.*no more.*block=4"):
        prune_channels(sparse_chain(), inputs, Removal(0.5))
    report = prune_channels(sparse_chain(), inputs, Removal(0.5, block=4))
    assert report.macs_ratio < 0.6
    for check in check_module(report.model):
        assert check.eligible, check


def test_channels_then_2_4_then_tuning() -> None:
    model: Any = prune_channels(Network(), IMAGE, Removal(0.4)).model
    prune(model)
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        model(*IMAGE).square().mean().backward()
        optimiser.step()
    finalize(model)
    for layer in (model.block.grouped, model.wide, model.hidden, model.classifier):
        assert is_nm(layer.weight.detach().numpy(), NM(2, 4), 1)


def test_progressive_pruning_with_checkpoints(tmp_path: Path) -> None:
    model, ratios, numbers = Network(), [], []
    for step in prune_progressively(model, IMAGE, macs=0.5, step=0.05, folder=tmp_path):
        optimiser = torch.optim.SGD(step.model.parameters(), 0.01)
        step.model(*IMAGE).square().mean().backward()
        optimiser.step()
        ratios.append(step.macs_ratio)
        numbers.append(step.number)
        last = step.model
    assert ratios == sorted(ratios, reverse=True) and ratios[-1] <= 0.5 < ratios[-2]
    assert len(ratios) > 2
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"step-{number:02}.safetensors" for number in numbers]
    fresh = Network()
    load_channels(fresh, tmp_path / files[-1])  # written after training
    assert torch.equal(fresh.hidden.weight, last.hidden.weight)
    (tmp_path / files[-1]).unlink()
    again = list(prune_progressively(model, IMAGE, macs=0.5, step=0.05, folder=tmp_path))
    assert [step.number for step in again] == numbers[-1:]  # gone on from the last file
    assert again[0].macs_ratio == pytest.approx(ratios[-1], abs=0.1)


def test_single_ratios_end_where_asked_and_what_cannot_be_reached_is_said() -> None:
    removal = Removal(ratios={"hidden": 0.4, "wide": 0.2}, spread="layer", most=0.5)
    sizes = []
    with pytest.raises(SparsityError, match=r"% of the multiplications are left.*not 1\.0%"):
        for step in prune_progressively(Network(), IMAGE, macs=0.01, step=0.2, removal=removal):
            model: Any = step.model
            sizes.append((model.stem.out_channels, model.wide.out_channels, model.hidden.out_features))
    assert sizes == [(96, 48, 80), (64, 48, 64)]


def test_saved_models_are_loaded_into_what_their_code_builds(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    report = prune_channels(Network(), IMAGE, Removal(0.4))
    save_channels(report.model, path)
    fresh = Network()
    load_channels(fresh, path)
    assert torch.equal(fresh(*IMAGE), report.model(*IMAGE))
    assert fresh.block.depthwise.groups == fresh.block.depthwise.in_channels == fresh.stem.out_channels
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]

    other = Network(channels=64)
    before = copy.deepcopy(other.state_dict())
    wrong: list[tuple[nn.Module, str]] = [
        (other, r"layer '(stem|block)\..*: \[96.*\] in the file, but \[64.*\] in the model"),
        (nn.Sequential(nn.Linear(4, 4)), "a Network in the file, Sequential in the model"),
        (Network(classes=3), r"layer 'classifier\..*: \[10.*\] in the file, but \[3.*\]"),
    ]
    for model, said in wrong:
        with pytest.raises(SparsityError, match=said):
            load_channels(model, path)
    assert all(torch.equal(before[key], tensor) for key, tensor in other.state_dict().items())


def test_shared_tensors_stay_shared_and_dtypes_are_the_models(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        return model

    first = tied()
    save_channels(first, tmp_path / "m.safetensors")
    second = tied().half()
    load_channels(second, tmp_path / "m.safetensors")
    assert second[0].weight is second[1].weight
    assert torch.equal(second[0].weight, first[0].weight.half())


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, said in (("plain", "sizes of its layers"), ("text", "cannot read"), ("none", "cannot read")):
        with pytest.raises(SparsityError, match=said):
            load_channels(nn.Linear(2, 2), tmp_path / f"{name}.safetensors")
    held = nn.Sequential(nn.Linear(8, 8))
    prune(held)
    with pytest.raises(SparsityError, match="finalize"):
        save_channels(held, tmp_path / "held.safetensors")
    with pytest.raises(OutputError, match="Create the folder first"):
        save_channels(nn.Linear(2, 2), tmp_path / "nowhere" / "m.safetensors")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[1]", "sizes of its layers"),
        ('{"version": 1}', "damaged"),
        ('{"version": 1, "modules": []}', "damaged"),
        ('{"version": 1, "modules": {"": "Linear"}}', "damaged"),
        ('{"version": 1, "modules": {"": ["Linear"]}}', "damaged"),
        ('{"version": 1, "modules": {"": ["Linear", 7]}}', "damaged"),
        ('{"version": 1, "modules": {"": [["Linear"], {}]}}', "another architecture"),
        ('{"version": 1, "modules": {"": ["Linear", {"forward": 1}]}}', "forward is 1 in the file"),
        ('{"version": 1, "modules": {"": ["Linear", {"in_channels": 2}]}}', "in_channels is 2 in the file, None"),
        ('{"version": 1, "modules": {"": ["Linear", {"in_features": 3}]}}', "in_features is 3 in the file, 2"),
        ('{"version": 1, "modules": {"": ["Linear", {"in_features": 0}]}}', "in_features is 0"),
        ('{"version": 1, "modules": {"": ["Linear", {"in_features": true}]}}', "in_features is True"),
        ('{"version": 1, "modules": {"": ["Linear", {"in_features": [2]}]}}', "in_features is "),
        ('{"version": 1, "modules": {"": ["Linear", {"in_features": "2"}]}}', "in_features is '2'"),
    ],
)
def test_forged_metadata_is_one_clear_error_and_changes_nothing(metadata: str, said: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path, model = tmp_path / "m.safetensors", nn.Linear(2, 2)
    forged = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
    save_file(forged, path, metadata={"tamis.channels": metadata})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SparsityError, match=said) as caught:
        load_channels(model, path)
    assert "\n" not in str(caught.value) and caught.value.remedy
    assert (model.in_features, model.out_features) == (2, 2)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("channels", "remove", "multiple", "groups", "kept"),
    [
        (128, 38.4, 16, 1, 96),
        (128, 38.4, 16, 8, 96),
        (128, 1, 16, 1, 128),
        (128, 200, 16, 1, 16),
        (100, 50, 16, 1, 48),
        (100, 1, 16, 1, 96),
        (12, 6, 16, 1, 12),
        (8, 4, 8, 2, 8),
        (6, 3, 1, 2, 4),
        (6, 3, 1, 1, 3),
    ],
)
def test_rounding(channels: int, remove: float, multiple: int, groups: int, kept: int) -> None:
    assert kept_channels(channels, remove, multiple, groups) == kept


def crossover(times: dict[int, float]) -> dict[str, Any]:
    cells = [
        {"kind": "conv3x3", "batch": 8, "c_in": size, "c_out": size, "dense": {"timing": {"median_us": time}}}
        for size, time in times.items()
    ]
    return {"cells": [*cells, {"kind": "linear", "batch": 8, "c_in": 16, "c_out": 16, "dense": None, "sparse": None}]}


def test_multiples_are_chosen_by_a_latency_table(tmp_path: Path) -> None:
    smooth = {size: float(size) for size in range(16, 257, 16)}
    assert useful_multiple(crossover(smooth)) == 16
    in_32 = {size: float(-(-size // 32) * 32) for size in range(16, 257, 16)}
    assert useful_multiple(crossover(in_32)) == 32
    in_64 = {size: float(-(-size // 64) * 64) for size in range(16, 257, 16)}
    assert useful_multiple(crossover(in_64)) == 64
    assert useful_multiple(crossover({64: 1.0, 128: 2.0})) == 64  # too coarse to tell
    path = tmp_path / "map.json"
    path.write_text(json.dumps(crossover(smooth)))
    assert useful_multiple(path) == 16
    for wrong, said in ((tmp_path / "none.json", "not a crossover map"), ({"cells": []}, "no measured conv3x3")):
        with pytest.raises(ConfigError, match=said):
            useful_multiple(wrong)


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"ratio": 1.0}, {"ratio": -0.1}, {"ratios": {"a": 2.0}}, {"multiple": 0}, {"importance": "size"}):
        with pytest.raises(ConfigError):
            Removal(**wrong)
    for removal, ignore in ((Removal(), ("nothing",)), (Removal(ratios={"nothing": 0.5}), ())):
        with pytest.raises(SparsityError, match="'nothing' matches no layer"):
            prune_channels(Network(), IMAGE, removal, ignore=ignore)
    with pytest.raises(ConfigError, match="needs a loss"):
        prune_channels(Network(), IMAGE, Removal(importance="taylor"))
    with pytest.raises(SparsityError, match="no layer has channels that can be removed"):
        prune_channels(nn.Sequential(nn.Linear(8, 4)), (torch.zeros(1, 8),))
    with pytest.raises(SparsityError, match="cannot trace"):
        prune_channels(Network(), (torch.zeros(1, 5, 8, 8),))
    held, broken = Network(), Network()
    prune(held)
    with pytest.raises(SparsityError, match=r"masked.*Prune channels first"):
        prune_channels(held, IMAGE)
    foreign = Network()
    torch_prune.random_unstructured(foreign.wide, "weight", 0.5)
    with pytest.raises(SparsityError, match=r"'wide': its weight is masked"):
        prune_channels(foreign, IMAGE)
    with torch.no_grad():
        broken.wide.weight[0] = float("nan")
    with pytest.raises(SparsityError, match=r"'wide\.weight': holds NaN"):
        prune_channels(broken, IMAGE)
    with pytest.raises(ConfigError):
        next(prune_progressively(Network(), IMAGE, macs=1.5))
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingLibrary, match="Torch-Pruning"):
        prune_channels(Network(), IMAGE)
