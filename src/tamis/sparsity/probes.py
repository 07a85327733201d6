"""What a model loses when it is changed: measured against the model as it was when the probe was made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tamis.errors import SparsityError
from tamis.sparsity.calibration import LOSS_FORM, Calibration, each_batch, evaluating, run_all
from tamis.sparsity.sensitivity_report import Proxy

Metric = Callable[[nn.Module], float]
Loss = Callable[[nn.Module, Any], torch.Tensor]


class Probe:
    """Measures the dense model when it is made, and the changed one when it is asked.

    Attributes:
        proxy: what the losses are.
        dense: the loss or the metric of the dense model; None for ``sqnr``.
    """

    def __init__(
        self, model: nn.Module, calibration: Calibration, metric: Metric | None = None, loss: Loss | None = None
    ) -> None:
        self._model = model
        self._calibration = calibration
        self._metric, self._loss = metric, loss
        self._outputs: list[list[torch.Tensor]] = []
        self.proxy: Proxy = "metric" if metric is not None else "loss" if loss is not None else "sqnr"
        self.dense: float | None = None
        if self.proxy == "sqnr":
            self._remember()
        else:
            self.dense = self._value()
            if not math.isfinite(self.dense):
                raise SparsityError(
                    f"the {self.proxy} of the dense model is {self.dense}", remedy="look at the model and at the data"
                )

    def lost(self) -> float:
        """What the model has lost as it is now; infinite when its outputs are not finite."""
        if self.dense is None:
            return self._noise()
        value = self._value()
        if not math.isfinite(value):
            return math.inf
        return self.dense - value if self.proxy == "metric" else value - self.dense

    def _value(self) -> float:
        if self._metric is not None:
            with evaluating(self._model):
                return float(self._metric(self._model))
        assert self._loss is not None
        if callable(self._calibration):
            raise SparsityError("loss needs batches, not a function", remedy="give an iterable that loss can take")
        losses: list[float] = []
        with evaluating(self._model), torch.no_grad():
            loss = self._loss
            each_batch(self._calibration, lambda batch: losses.append(float(loss(self._model, batch))), LOSS_FORM)
        return math.fsum(losses) / len(losses)

    def _remember(self) -> None:
        with _hearing(self._model, lambda outputs: self._outputs.append([tensor.clone() for tensor in outputs])):
            run_all(self._model, self._calibration)
        if not any(self._outputs):
            raise SparsityError(
                "the model gives no floating-point outputs to compare", remedy="give metric=, a function of the model"
            )
        if not all(bool(torch.isfinite(tensor).all()) for outputs in self._outputs for tensor in outputs):
            raise SparsityError(
                "outputs of the dense model hold NaN or infinity", remedy="look at the model and at the data"
            )

    def _noise(self) -> float:
        """The power of the error over that of the outputs, of the worst output."""
        noise: dict[int, float] = {}
        signal: dict[int, float] = {}
        call = 0

        def note(outputs: Sequence[torch.Tensor]) -> None:
            nonlocal call
            for index, (tensor, dense) in enumerate(zip(outputs, self._outputs[call], strict=True)):
                wide = dense.double()
                noise[index] = noise.get(index, 0.0) + float((tensor.double() - wide).square().sum())
                signal[index] = signal.get(index, 0.0) + float(wide.square().sum())
            call += 1

        with _hearing(self._model, note):
            run_all(self._model, self._calibration)
        return max(ratio(noise[index], signal[index]) for index in noise)


def ratio(noise: float, signal: float) -> float:
    """Noise over signal: none without noise, infinite where the noise is not finite or there is no signal."""
    if noise == 0.0:
        return 0.0
    return noise / signal if math.isfinite(noise) and signal > 0 else math.inf


@contextmanager
def replaced(weights: Mapping[nn.Parameter, torch.Tensor]) -> Iterator[None]:
    """Parameters with other values, and afterwards bit for bit as they were, whatever happens."""
    before = {weight: weight.detach().clone() for weight in weights}
    try:
        with torch.no_grad():
            for weight, value in weights.items():
                weight.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for weight, value in before.items():
                weight.copy_(value)


@contextmanager
def _hearing(model: nn.Module, note: Callable[[Sequence[torch.Tensor]], None]) -> Iterator[None]:
    """Call ``note`` with the floating-point outputs of each call of the model."""

    def heard(module: nn.Module, inputs: object, outputs: object) -> None:
        note([tensor.detach() for tensor in _tensors(outputs) if tensor.is_floating_point()])

    handle = model.register_forward_hook(heard)
    try:
        yield
    finally:
        handle.remove()


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)
