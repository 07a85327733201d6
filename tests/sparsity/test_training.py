"""Masks that grow or follow the weights, under whatever else takes part in training."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tamis.errors import ConfigError, SparsityError
from tamis.formats import NM, is_nm
from tamis.sparsity import (
    SRSTE,
    Schedule,
    SparseTraining,
    bake_state_dict,
    check_module,
    check_state_dict,
    finalize,
    prune,
)

CUBIC = Schedule("cubic", 2, 8, every=2)


def network(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 4, 8)
    )


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, 4, 4, generator=generator), torch.randint(0, 8, (8,), generator=generator)


def train(
    model: nn.Module, optimiser: torch.optim.Optimizer, training: SparseTraining, steps: range, accumulate: int = 1
) -> None:
    for step in steps:
        optimiser.zero_grad()
        for part in range(accumulate):
            images, labels = batch(step * accumulate + part)
            (nn.functional.cross_entropy(model(images), labels) / accumulate).backward()
        optimiser.step()
        training.step()


def assert_sparse(model: nn.Module, n: int = 2) -> None:
    for layer in (model.get_submodule("0"), model.get_submodule("4")):
        weight = layer.weight.detach().float()  # type: ignore[operator]
        assert is_nm(weight.numpy(), NM(n, 4), 1)
        assert not bool(torch.signbit(weight[weight == 0]).any())


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_gradual_pruning_in_two_lines(pattern: str, accumulate: int) -> None:
    model = network()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    training = SparseTraining(model, pattern, schedule=CUBIC)
    full = 0.5 if pattern == "2:4" else 0.75
    zeros, masks = [training.zeros], []
    for step in range(9):
        train(model, optimiser, training, range(step, step + 1), accumulate)
        zeros.append(training.zeros)
        masks.append(model[4].weight == 0)
    expected = [full * CUBIC.share(step) for step in range(10)]
    assert zeros == pytest.approx(expected, abs=0.01)
    for earlier, later in itertools.pairwise(masks):
        assert bool((later | ~earlier).all())  # what is pruned stays pruned
    report = training.finalize()
    assert [layer.name for layer in report.pruned] == ["0.weight", "4.weight"]
    assert_sparse(model, int(pattern[0]))


def test_finalizing_too_early_says_so() -> None:
    model = network()
    training = SparseTraining(model, schedule=CUBIC)
    with pytest.raises(SparsityError, match=r"step 0 of the schedule: 0% of the groups.*Train until step 8"):
        training.finalize()
    assert model[4].weight is not None and len(model[4].state_dict()) == 3  # still held


def test_refined_masks_follow_the_weights() -> None:
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), 0.3)
    training = SparseTraining(model, refine=SRSTE(2e-4, every=2))
    first = model[4].weight != 0
    train(model, optimiser, training, range(1))
    assert torch.equal(model[4].weight != 0, first)  # every second step only
    train(model, optimiser, training, range(1, 12))
    assert not torch.equal(model[4].weight != 0, first)
    training.finalize()
    assert_sparse(model)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("closure", ["none", "named", "positional"])
def test_the_gradient_of_srste_is_that_of_the_paper(accumulate: int, closure: str) -> None:
    model, lambda_, rate = nn.Sequential(nn.Linear(8, 4, bias=False)), 0.1, 0.5
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    training = SparseTraining(model, refine=SRSTE(lambda_, every=100))
    dense = model[0].parametrizations.weight.original.detach().clone()
    mask = model[0].weight.detach() != 0
    optimiser = torch.optim.SGD(model.parameters(), rate)

    def gradients() -> float:
        optimiser.zero_grad()
        for _ in range(accumulate):
            (model(x).square().sum() / accumulate).backward()
        return 3.0

    if closure == "none":
        gradients()
        optimiser.step()
    else:  # as Lightning does
        given = {"closure": gradients} if closure == "named" else {}
        assert optimiser.step(*(() if given else (gradients,)), **given) == 3.0
    sparse = torch.where(mask, dense, 0.0)
    gradient = 2 * (x @ sparse.T).T @ x  # to the dense weight, straight through
    expected = dense - rate * (gradient + lambda_ * torch.where(mask, 0.0, dense))
    torch.testing.assert_close(model[0].parametrizations.weight.original.detach(), expected)
    training.finalize()


def test_the_decay_is_not_scaled_by_a_loss_scaler_and_leaves_other_models_alone() -> None:
    results = []
    for scale in (1.0, 1024.0):
        model, other = network(), network()
        training = SparseTraining(model, refine=SRSTE(0.5, every=100))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimiser = torch.optim.SGD([*model.parameters(), *other.parameters()], 0.1)
        images, labels = batch(0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        training.step()
        assert torch.equal(other[4].weight, network()[4].weight)
        results.append(model[4].parametrizations.weight.original.detach().clone())
        training.finalize()
        assert_sparse(model)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def test_the_decay_ends_with_the_training_object() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    alive = weakref.ref(SparseTraining(model, refine=SRSTE(0.5)))
    gc.collect()
    assert alive() is None
    original = model[0].parametrizations.weight.original
    before = original.detach().clone()
    original.grad = torch.zeros(8, 8)
    torch.optim.SGD(model.parameters(), 1.0).step()
    assert torch.equal(original, before)


def test_the_decay_ends_with_finalize() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    training = SparseTraining(model, refine=SRSTE(0.5))
    training.finalize()
    again = SparseTraining(model, exclude=(), refine=None)
    before = model[0].parametrizations.weight.original.detach().clone()
    model[0].parametrizations.weight.original.grad = torch.zeros(8, 8)
    torch.optim.SGD(model.parameters(), 1.0).step()
    assert torch.equal(model[0].parametrizations.weight.original, before)
    again.finalize()


@pytest.mark.parametrize("refine", [None, SRSTE()])
def test_compiles_into_one_graph_and_masks_change_without_compiling_again(refine: SRSTE | None) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = network()
    training = SparseTraining(model, schedule=Schedule("one-shot", begin=2), refine=refine)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    dense = compiled(batch(0)[0])
    train(compiled, optimiser, training, range(3))
    assert len(graphs) == 1
    eager = copy.deepcopy(model)
    assert training.zeros == 0.5
    torch.testing.assert_close(compiled(batch(1)[0]), eager(batch(1)[0]))
    assert dense.shape == (8, 8)
    training.finalize()
    assert_sparse(model)


def test_averages_begun_after_pruning_are_sparse() -> None:
    model = network()
    training = SparseTraining(model, schedule=CUBIC)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    by_hand = copy.deepcopy(model)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(10):
        train(model, optimiser, training, range(step, step + 1))
        average.update_parameters(model)
        with torch.no_grad():
            for mine, theirs in zip(by_hand.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.1 if step else 1.0)
            for mine, theirs in zip(by_hand.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)
    for other in (average, by_hand):
        training.finalize(other)
    assert_sparse(average.module)
    assert_sparse(by_hand)
    training.finalize()
    torch.testing.assert_close(average.module[4].weight, by_hand[4].weight)


def test_averages_begun_dense_are_found() -> None:
    model = network()
    dense = AveragedModel(model)
    training = SparseTraining(model, schedule=CUBIC)
    stale = copy.deepcopy(model)  # its masks are those of step 0
    train(model, torch.optim.SGD(model.parameters(), 0.1), training, range(9))
    for average, said in ((dense, "has no mask"), (dense.module, "has no mask"), (stale, "has another mask")):
        with pytest.raises(SparsityError, match=rf"0\.weight'.*{said}.*averaged or copied before it was pruned"):
            training.finalize(average)


def test_the_check_knows_an_average_begun_dense_from_a_dense_model() -> None:
    model = network()
    assert all("average" not in str(check.reason) for check in check_module(model))
    average = copy.deepcopy(model)
    prune(model)
    with torch.no_grad():
        for layer in (0, 4):
            average[layer].weight.lerp_(model[layer].weight, 0.95)
    assert all("begun before pruning" in str(check.reason) for check in check_module(average))


@pytest.mark.parametrize("refine", [None, SRSTE(1e-2)])
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(refine: SRSTE | None) -> None:
    whole = network()
    training = SparseTraining(whole, schedule=CUBIC, refine=refine)
    optimiser = torch.optim.SGD(whole.parameters(), 0.1)
    train(whole, optimiser, training, range(5))
    saved = copy.deepcopy((whole.state_dict(), training.state_dict()))
    train(whole, optimiser, training, range(5, 10))
    training.finalize()

    resumed = network()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.normal_()
    again = SparseTraining(resumed, schedule=CUBIC, refine=refine)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert again.steps == 5
    train(resumed, torch.optim.SGD(resumed.parameters(), 0.1), again, range(5, 10))
    again.finalize()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_weights_of_an_earlier_step_are_not_taken_for_the_last() -> None:
    model = network()
    training = SparseTraining(model, schedule=CUBIC)
    early = copy.deepcopy(model.state_dict())
    train(model, torch.optim.SGD(model.parameters(), 0.1), training, range(9))
    model.load_state_dict(early)  # as a trainer does that ends with the best model
    with pytest.raises(SparsityError, match=r"layer '0\.weight': its mask is not 2:4 yet"):
        training.finalize()


def test_checkpoints_of_other_runs_are_refused() -> None:
    training = SparseTraining(network(), schedule=CUBIC)
    wrong: list[tuple[dict[str, Any], str]] = [
        (SparseTraining(network(8), schedule=CUBIC).state_dict(), r"another model: 0\.weight is \[8, 4, 3, 3\] there"),
        (SparseTraining(nn.Linear(8, 8), schedule=CUBIC).state_dict(), "another model"),
        (SparseTraining(network(), "1:4", schedule=CUBIC).state_dict(), "another pattern: 1:4 there, 2:4 here"),
        (SparseTraining(network()).state_dict(), "another schedule: curve is one-shot there"),
        (SparseTraining(network(), schedule=CUBIC, refine=SRSTE(0)).state_dict(), "another refine"),
        ({"steps": 3}, "not a checkpoint"),
    ]
    for state, said in wrong:
        with pytest.raises(SparsityError, match=said):
            training.load_state_dict(state)
    assert training.steps == 0


def test_state_dicts_are_baked() -> None:
    model = network()
    model[4].weight.data[0, 0] = 1e-9
    prune(model)
    baked = bake_state_dict(model.state_dict())
    finalize(model)
    expected = model.state_dict()
    assert baked.keys() == expected.keys()
    assert all(torch.equal(baked[key], expected[key]) for key in expected)
    layer = nn.Linear(8, 8)
    prune(layer)
    assert bake_state_dict(layer.state_dict()).keys() == {"weight", "bias"}
    assert check_state_dict(layer.state_dict())[0].eligible
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    prune(normed)
    with pytest.raises(SparsityError, match="another parametrisation"):
        bake_state_dict(normed.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_zeros_survive_casts(dtype: torch.dtype) -> None:
    model = network()
    training = SparseTraining(model)
    model.to(dtype)
    assert model[4].weight.dtype == dtype
    with torch.no_grad():
        model[4].parametrizations.weight.original.neg_()  # -0.0 is not made either
    training.finalize()
    assert_sparse(model)


def test_kept_weights_that_are_not_finite_are_refused_before_anything_changes() -> None:
    model = network()
    training = SparseTraining(model)
    with torch.no_grad():
        model[4].parametrizations.weight.original[0] = float("nan")
    with pytest.raises(SparsityError, match=r"layer '4\.weight'.*NaN"):
        training.finalize()
    assert "parametrizations.weight.original" in model[0].state_dict()
    follows = SparseTraining(nn.Sequential(nn.Linear(8, 8)), refine=SRSTE())
    with torch.no_grad():
        follows._layers[0][0].module.parametrizations.weight.original[0] = float("nan")
    with pytest.raises(SparsityError, match=r"layer '0\.weight': the weight became NaN"):
        follows.step()


def test_wrong_use() -> None:
    with pytest.raises(SparsityError, match="3 inputs to reduce over, not a multiple of 4"):
        SparseTraining(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    with pytest.raises(SparsityError, match=r"no (layer|linear)"):
        SparseTraining(nn.ReLU())
    for wrong in ({"decay": -1.0}, {"decay": float("nan")}, {"every": 0}):
        with pytest.raises(ConfigError):
            SRSTE(**wrong)  # type: ignore[arg-type]


def test_shared_weights_share_their_masks() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    training = SparseTraining(model, schedule=Schedule("linear", 0, 4))
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        model(torch.randn(4, 8)).square().sum().backward()
        optimiser.step()
        training.step()
        assert torch.equal(model[0].weight, model[1].weight)
    masks = [held.mask.untyped_storage().data_ptr() for _, held in training._layers]
    assert len(set(masks)) == 2  # so that safetensors writes them
    training.finalize()
    assert model[0].weight is model[1].weight
