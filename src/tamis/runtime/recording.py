"""A run that the device has recorded and repeats: inputs and outputs at fixed addresses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tamis.devices.base import Device, Runner, Slots, Tensor


class Recording:
    """The loop of a session, recorded by the device on its first run.

    Args:
        device: records and repeats.
        loop: what a run executes, in order.
        slots: what the loop works on.
        input_slots, output_slots: numbers of the slots of the engine's inputs and outputs.
        inputs: the tensors that every run reads; ``load`` changes what is in them.
        first: values for the warm-up before recording; None where ``inputs`` hold values already. What a warm-up
            computes is thrown away, but indices in it must be valid.
        recorded: False to run the loop each time anew, on the same fixed inputs.
    """

    def __init__(
        self,
        device: Device,
        loop: Sequence[Runner],
        slots: Slots,
        input_slots: Sequence[int],
        output_slots: Sequence[int],
        inputs: Sequence[Tensor],
        first: Sequence[Tensor] | None = None,
        *,
        recorded: bool = True,
    ) -> None:
        self._device = device
        self._inputs = tuple(inputs)
        self._outputs: list[Tensor] = []

        def run() -> None:
            with torch.inference_mode():
                for slot, tensor in zip(input_slots, self._inputs, strict=True):
                    slots[slot] = tensor
                for step in loop:
                    step(slots)
                self._outputs = [slots[slot] for slot in output_slots]

        if first is not None:
            self.load(first)
        self._replay = device.record(run) if recorded else run

    def load(self, tensors: Sequence[Tensor]) -> None:
        """Copy values into the inputs."""
        for target, source in zip(self._inputs, tensors, strict=True):
            self._device.stage(target, source)

    def replay(self) -> list[Tensor]:
        """Run again; returns the outputs, which the next run overwrites."""
        self._replay()
        return self._outputs
