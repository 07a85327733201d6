"""What a model of the collection is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class ModelSpec:
    """One model.

    Attributes:
        name: the stable name used in files and results.
        build: makes the model, in eval mode, float32, the same weights every time.
        inputs: named inputs for a batch size, the same every time, in the order of `forward`'s arguments.
        outputs: names of the outputs.
        calibration: inputs to take the statistics of batch normalisation from, again after pruning.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, torch.Tensor]]
    outputs: tuple[str, ...]
    calibration: Callable[[], torch.Tensor] | None = None
