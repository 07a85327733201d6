"""Train a classifier fast: everything on the device, bfloat16, and on a GPU each step as one replay of a CUDA graph."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from accuracy_data import DEVIATION, MEAN, SIZE, Augmentation, Images, epoch_of, padded, scaled
from tamis.sparsity import SparseTraining

_WARM_UP = 3  # eager steps before a capture: libraries choose their algorithms and the optimiser makes its state
_TEST_BATCH = 2000


class OutOfTime(Exception):
    """The time budget would not suffice for what comes next."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        optimiser: Nesterov SGD with momentum 0.9, or AdamW; weights of two axes and more decay, others do not.
        batch: images of a step.
        epochs: of the dense training.
        tuning: epochs of each training after that.
        rate: largest learning rate of the dense training; it rises to it and falls to zero in straight lines.
        tuning_rate: the same of the trainings after that.
        decay: weight decay.
        rise: share of the steps in which the rate rises.
        smoothing: of the labels.
        mix: alpha of the Beta distribution from which mixup draws; 0: no mixup.
        cut: share of the steps in which each image has a rectangle of another one (CutMix, Yun et al. 2019).
        clip: largest norm of all gradients together; 0: they are not clipped.
        augmentation: of the images.
    """

    optimiser: Literal["sgd", "adamw"]
    batch: int
    epochs: int
    tuning: int
    rate: float
    tuning_rate: float
    decay: float
    rise: float
    smoothing: float
    mix: float = 0.0
    cut: float = 0.0
    clip: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass
class Run:
    """What all trainings of a run share.

    Attributes:
        train: images to train on.
        test: images to judge by.
        device: where all of it happens.
        graphs: whether steps are recorded as CUDA graphs; on a GPU only.
        deadline: of `time.monotonic`, in seconds.
        say: shows a line.
    """

    train: Images
    test: Images
    device: torch.device
    graphs: bool
    deadline: float
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.wide = padded(self.train.pixels)

    def require(self, seconds: float) -> None:
        """Raise `OutOfTime` if less time than that is left."""
        if time.monotonic() + seconds > self.deadline:
            raise OutOfTime(f"{seconds:.0f} s more are needed, {max(self.deadline - time.monotonic(), 0.0):.0f} s left")


@dataclass(frozen=True)
class Quality:
    """How good a network is on the test images: top-1 accuracy in percent, and cross-entropy."""

    accuracy: float
    loss: float


@torch.no_grad()
def evaluate(model: nn.Module, images: Images) -> Quality:
    """In float32, without any averaging over flipped or shifted images. Raises `ArithmeticError` if it gives NaN."""
    model.eval()
    right, loss = 0, 0.0
    for pixels, labels in images.batches(_TEST_BATCH):
        logits = model(pixels).float()
        right += int((logits.argmax(1) == labels).sum())
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    if not np.isfinite(loss):
        raise ArithmeticError(f"the loss on the test images is {loss}")
    return Quality(100.0 * right / len(images), loss / len(images))


def train(
    model: nn.Module,
    run: Run,
    recipe: Recipe,
    *,
    seed: int,
    epochs: int,
    rate: float,
    sparse: SparseTraining | None = None,
) -> None:
    """Train a model in place; ``sparse`` counts its steps. Raises `OutOfTime`."""
    size = min(recipe.batch, len(run.train))
    per_epoch = len(run.train) // size
    generator = torch.Generator(run.device).manual_seed(seed)
    ratios = np.random.default_rng(seed)
    model.train()
    step = _Step(model, run, recipe, size)
    began, done, total = time.monotonic(), 0, epochs * per_epoch
    for epoch in range(epochs):
        pixels, labels = epoch_of(run.train, run.wide, recipe.augmentation, generator)
        for some in range(per_epoch):
            chosen = slice(some * size, (some + 1) * size)
            ratio = float(ratios.beta(recipe.mix, recipe.mix)) if recipe.mix else 1.0
            pasted = rectangle(ratios) if recipe.cut and ratios.random() < recipe.cut else None
            step(pixels[chosen], labels[chosen], rate * slope((done + 0.5) / total, recipe.rise), ratio, pasted)
            done += 1
            if sparse is not None:
                sparse.step()
        loss = step.mean_loss()  # waits for the device, once an epoch
        if not np.isfinite(loss):
            raise ArithmeticError(f"the loss became {loss} in epoch {epoch + 1}")
        each = (time.monotonic() - began) / (epoch + 1)
        if epoch == 0 or epoch == epochs - 1:
            run.say(f"    epoch {epoch + 1} of {epochs}: loss {loss:.4f}, {each:.2f} s each")
        run.require(each * (epochs - 1 - epoch))
    step.close()


def slope(progress: float, rise: float) -> float:
    """The learning rate as a fraction of its largest, after a fraction of the steps: up, then down to zero."""
    return progress / rise if progress < rise else (1.0 - progress) / (1.0 - rise)


def rectangle(random: np.random.Generator) -> np.ndarray:
    """A mask (SIZE, SIZE) of what CutMix pastes: a square of an area uniform in 0 to 1, without what lies outside."""
    side = round(SIZE * random.random() ** 0.5)
    corners = random.integers(0, SIZE, 2) - side // 2
    line = np.arange(SIZE)
    down, across = ((line >= corner) & (line < corner + side) for corner in corners)
    return down[:, None] & across


class _Step:
    """A training step over buffers that stay where they are: recorded once as a CUDA graph, or run as it is."""

    def __init__(self, model: nn.Module, run: Run, recipe: Recipe, size: int) -> None:
        self._model, self._recipe, self._device = model, recipe, run.device
        self._pixels = run.train.pixels[:size].clone()
        self._labels = run.train.labels[:size].clone()
        self._rate, self._ratio, self._loss = (torch.zeros((), device=run.device) for _ in range(3))
        self._pasted = torch.zeros(SIZE, SIZE, dtype=torch.bool, device=run.device)
        self._mean, self._deviation = (torch.tensor(values, device=run.device) for values in (MEAN, DEVIATION))
        self._optimiser = _optimiser(model, recipe, self._rate)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps = 0
        if run.graphs:
            self._record(run.say)

    def __call__(
        self, pixels: torch.Tensor, labels: torch.Tensor, rate: float, ratio: float, pasted: np.ndarray | None
    ) -> None:
        self._pixels.copy_(pixels)
        self._labels.copy_(labels)
        self._rate.fill_(rate)
        if pasted is None:
            self._pasted.zero_()
        else:
            self._pasted.copy_(torch.from_numpy(pasted))
            ratio *= float(1 - pasted.mean())
        self._ratio.fill_(ratio)
        self._steps += 1
        if self._graph is not None:
            self._graph.replay()
        else:
            self._compute()

    def mean_loss(self) -> float:
        """The mean training loss since the last call."""
        mean = float(self._loss) / max(self._steps, 1)
        self._loss.zero_()
        self._steps = 0
        return mean

    def close(self) -> None:
        """Give the graph's memory back."""
        if self._graph is not None:
            self._optimiser.zero_grad(set_to_none=True)
            self._graph.reset()
            self._graph = None
            gc.collect()
            torch.cuda.empty_cache()

    def _compute(self) -> None:
        recipe = self._recipe
        self._optimiser.zero_grad(set_to_none=True)
        images = scaled(self._pixels, self._mean, self._deviation)
        if recipe.mix:
            images = self._ratio * images + (1 - self._ratio) * images.roll(1, 0)
        if recipe.cut:
            images = torch.where(self._pasted, images.roll(1, 0), images)
        # Weights that a cache keeps in bfloat16 would outlive their recording.
        with torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._device.type == "cuda", cache_enabled=False
        ):
            logits = self._model(images)
        loss = self._entropy(logits, self._labels)
        if recipe.mix or recipe.cut:
            loss = self._ratio * loss + (1 - self._ratio) * self._entropy(logits, self._labels.roll(1, 0))
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(self._model.parameters(), recipe.clip)
        self._optimiser.step()
        self._loss.add_(loss.detach())

    def _entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits.float(), labels, label_smoothing=self._recipe.smoothing)

    def _record(self, say: Callable[[str], None]) -> None:
        """Record the step; afterwards the model and the optimiser are as if no step had been taken."""
        gc.collect()  # graphs of gradients that something still holds, on another stream, would break the recording
        before = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            self._optimiser.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph, stream=stream):
                self._compute()
            self._graph = graph
            say("    steps as one CUDA graph")
        except RuntimeError as error:
            torch.cuda.synchronize()
            say(f"    steps without a CUDA graph, which cannot be recorded: {str(error).splitlines()[0]}")
        with torch.no_grad():
            for name, tensor in self._model.state_dict().items():
                tensor.copy_(before[name])
            for state in self._optimiser.state.values():
                for value in state.values():
                    if torch.is_tensor(value):
                        value.zero_()  # a recorded step goes on with these tensors
            self._loss.zero_()


def _optimiser(model: nn.Module, recipe: Recipe, rate: torch.Tensor) -> torch.optim.Optimizer:
    """Its learning rate is a tensor, which a recorded step reads anew each time."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True, capturable=rate.is_cuda)
