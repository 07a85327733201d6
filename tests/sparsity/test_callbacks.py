"""The callbacks, driven in the order in which Lightning and the Trainer document their hooks."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tamis.errors import MissingLibrary, SparsityError
from tamis.formats import NM, is_nm
from tamis.sparsity import SRSTE, Schedule, lightning_callback, trainer_callback

LINEAR = Schedule("linear", 1, 5)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


class Callback:
    """Stands in for `lightning.pytorch.Callback`: hooks that do nothing."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None: ...

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None: ...


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    package, inner = ModuleType("lightning"), ModuleType("lightning.pytorch")
    inner.Callback = Callback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", package)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", inner)


class Fit:
    """Calls hooks as `lightning.pytorch.Trainer.fit` does: setup, restore, optimiser, batches, end."""

    def __init__(self, callback: Any, module: nn.Module, accumulate: int = 1) -> None:
        self.callback, self.module, self.accumulate = callback, module, accumulate
        self.global_step = self.batch = 0

    def start(self, checkpoint: dict[str, Any] | None = None) -> None:
        self.callback.setup(self, self.module, "fit")
        if checkpoint:
            self.module.load_state_dict(checkpoint["state_dict"])
            self.callback.load_state_dict(checkpoint["callback"])
            self.global_step = checkpoint["global_step"]
        self.optimiser = torch.optim.SGD(self.module.parameters(), 0.1)
        self.callback.on_train_start(self, self.module)

    def batches(self, numbers: range) -> None:
        for number in numbers:
            x = torch.randn(4, 16, generator=torch.Generator().manual_seed(number))

            def closure(x: torch.Tensor = x) -> Any:
                loss = self.module(x).square().sum() / 10
                if (self.batch % self.accumulate) == 0:
                    self.optimiser.zero_grad()
                loss.backward()
                return loss

            self.batch = number
            if (number + 1) % self.accumulate == 0:
                self.optimiser.step(closure)
                self.global_step += 1
            else:
                closure()
            self.callback.on_train_batch_end(self, self.module, None, x, number)

    def checkpoint(self) -> dict[str, Any]:
        copied = {key: tensor.clone() for key, tensor in self.module.state_dict().items()}
        return {"state_dict": copied, "callback": self.callback.state_dict(), "global_step": self.global_step}

    def end(self) -> None:
        self.callback.on_train_end(self, self.module)
        self.callback.teardown(self, self.module, "fit") if hasattr(self.callback, "teardown") else None


def assert_baked(model: nn.Sequential) -> None:
    assert not any(parametrize.is_parametrized(module) for module in model)
    assert is_nm(model[0].weight.detach().numpy(), NM(2, 4), 1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.usefixtures("lightning")
def test_lightning(accumulate: int) -> None:
    model = network()
    fit = Fit(lightning_callback(schedule=LINEAR), model, accumulate)
    assert isinstance(fit.callback, Callback)
    fit.start()
    zeros = []
    for number in range(6 * accumulate):
        fit.batches(range(number, number + 1))
        zeros.append(fit.callback.training.zeros)
    expected = [0.5 * LINEAR.share((number + 1) // accumulate) for number in range(6 * accumulate)]
    assert zeros == pytest.approx(expected, abs=0.03)
    fit.end()
    assert_baked(model)
    fit.callback.setup(fit, model, "test")  # evaluating afterwards does not prune again
    assert_baked(model)


@pytest.mark.usefixtures("lightning")
def test_lightning_resumes_in_the_middle_of_a_schedule() -> None:
    whole = Fit(lightning_callback(schedule=LINEAR, refine=SRSTE()), network())
    whole.start()
    whole.batches(range(3))
    saved = whole.checkpoint()
    whole.batches(range(3, 7))
    whole.end()
    resumed = Fit(lightning_callback(schedule=LINEAR, refine=SRSTE()), network())
    resumed.start(saved)
    resumed.batches(range(3, 7))
    resumed.end()
    assert torch.equal(whole.module[0].weight, resumed.module[0].weight)  # type: ignore[index]
    assert_baked(resumed.module)  # type: ignore[arg-type]


@pytest.mark.usefixtures("lightning")
def test_training_that_ends_before_the_schedule_is_an_error() -> None:
    fit = Fit(lightning_callback(schedule=LINEAR), network())
    fit.start()
    fit.batches(range(2))
    with pytest.raises(SparsityError, match="step 2 of the schedule"):
        fit.end()


def test_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.trainer_callback import CallbackHandler

    model = network()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    callback = trainer_callback(schedule=LINEAR)
    arguments, state = SimpleNamespace(), transformers.TrainerState()
    control = transformers.TrainerControl()
    handler = CallbackHandler([callback], model, None, optimiser, None)
    handler.on_init_end(arguments, state, control)
    handler.on_train_begin(arguments, state, control)
    for step in range(6):
        handler.on_step_begin(arguments, state, control)
        model(torch.randn(4, 16)).square().sum().backward()
        optimiser.step()
        state.global_step += 1
        handler.on_step_end(arguments, state, control)
        assert callback.training.zeros == pytest.approx(0.5 * LINEAR.share(step + 1), abs=0.03)
    handler.on_train_end(arguments, state, control)
    assert_baked(model)


def test_hugging_face_resumes_from_the_trainers_step() -> None:
    transformers = pytest.importorskip("transformers")
    callback = trainer_callback(schedule=LINEAR)
    state, control = transformers.TrainerState(global_step=4), transformers.TrainerControl()
    model = network()
    callback.on_train_begin(SimpleNamespace(), state, control, model=model)
    callback.on_step_end(SimpleNamespace(), state, control)
    callback.on_train_end(SimpleNamespace(), state, control)
    assert_baked(model)


def test_hugging_faces_own_trainer(tmp_path: Any) -> None:
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("the Trainer needs accelerate")
    import transformers

    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.layers(x).square().mean()}

    model = Squares()
    arguments = transformers.TrainingArguments(str(tmp_path), max_steps=6, report_to=[], use_cpu=True)
    data = [{"x": torch.randn(16)} for _ in range(64)]
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[trainer_callback(schedule=LINEAR)]).train()
    assert_baked(model.layers)


def test_libraries_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibrary, match="pip install lightning"):
        lightning_callback()
    with pytest.raises(MissingLibrary, match="pip install transformers"):
        trainer_callback()
