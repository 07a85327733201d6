"""The demo's data and network: scikit-learn's handwritten digits and a small residual CNN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tamis.errors import MissingLibrary

BATCH = 64
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Digits:
    """Images [N,1,8,8] from 0 to 1 and their labels [N], split for training and testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(seed: int) -> Digits:
    """The 1797 images, a quarter of them for testing. Raises ``MissingLibrary`` without scikit-learn."""
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingLibrary("the demo needs scikit-learn", remedy="run 'pip install scikit-learn'") from error
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images / 16.0).astype("float32").reshape(-1, 1, 8, 8)
    parts = train_test_split(images, labels, test_size=0.25, random_state=seed, stratify=labels)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    return Digits(train_images, train_labels, test_images, test_labels)


class DigitNet(nn.Module):
    """Three convolutions, one of them with a residual, and three linear layers; 8x8 images in, 10 scores out.

    The first convolution has one input channel, so it can never be 2:4: a layer for the report to explain.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.widen = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.widen_norm = nn.BatchNorm2d(64)
        self.refine = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.refine_norm = nn.BatchNorm2d(64)
        self.hidden = nn.Linear(64 * 4 * 4, 1024)
        self.mix = nn.Linear(1024, 1024)
        self.classify = nn.Linear(1024, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Scores [N,10] of images [N,1,8,8]."""
        x = functional.relu(self.stem(image))
        x = functional.max_pool2d(functional.relu(self.widen_norm(self.widen(x))), 2)
        x = functional.relu(x + self.refine_norm(self.refine(x)))
        x = functional.relu(self.hidden(x.flatten(1)))
        x = functional.relu(self.mix(x))
        scores: Tensor = self.classify(x)
        return scores


def train(model: nn.Module, digits: Digits, epochs: int, seed: int, tick: Callable[[int], None]) -> None:
    """Train with AdamW and a falling learning rate; ``tick`` is told after every epoch how many are done."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(digits.train_labels), generator=generator)
        for batch in torch.split(order, BATCH):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
        tick(epoch + 1)


def accuracy(model: Callable[[Tensor], Tensor], digits: Digits) -> float:
    """The share of test images that are classified rightly, from 0 to 1."""
    if isinstance(model, nn.Module):
        model.eval()
    with torch.no_grad():
        right = model(digits.test_images).argmax(1) == digits.test_labels
    return float(right.float().mean())
