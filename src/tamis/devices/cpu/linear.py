"""Our own kernels for linear layers with few rows (``tamis.chain``): one layer, or several in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from tamis.devices import tensors
from tamis.devices.base import BoundShape, Runner, Slots, Tensor
from tamis.engine.plan import Step
from tamis.errors import DeviceError, EngineMismatch
from tamis.formats import parse_pattern
from tamis.formats.tiles import LAYOUT_VERSION
from tamis.kernels.cpu.linear import Chain, Layer, LinearSpec, Piece
from tamis.kernels.cpu.linear import Step as EpilogueStep


def bind(
    step: Step, constants: Mapping[str, Tensor], inputs: Sequence[BoundShape], outputs: Sequence[BoundShape]
) -> Runner:
    """A runner for a ``tamis.chain`` step.

    Attributes: ``layers`` (n, k, weight_dtype, pattern, epilogue, bias), ``isa``, the level it was tuned for,
    ``x_columns``, and ``pieces`` (layer, column, columns): inputs that stand beside a layer's own input.
    Constants: for each layer the packed weight, then the bias if any. Inputs: x, the residuals and the pieces in order.
    """
    if step.kernel != "tamis.chain":
        raise DeviceError(f"kernel {step.kernel} is unknown", layer=step.name, remedy="build the engine again")
    if step.attributes["layout"] != LAYOUT_VERSION:
        raise EngineMismatch(
            f"its weights are packed in layout {step.attributes['layout']}, this Tamis reads layout {LAYOUT_VERSION}",
            layer=step.name,
            remedy="build the engine again",
        )
    names = iter(step.constants)
    layers = [_layer(entry, names, constants, inputs) for entry in step.attributes["layers"]]
    joined = inputs[len(inputs) - len(step.attributes["pieces"]) :]
    pieces = [
        Piece(entry["layer"], entry["column"], entry["columns"], bound.format.dtype.value)  # type: ignore[arg-type]
        for entry, bound in zip(step.attributes["pieces"], joined, strict=True)
    ]
    chain = Chain(
        layers,
        threads=torch.get_num_threads(),
        isa=step.attributes["isa"],
        x_dtype=inputs[0].format.dtype.value,  # type: ignore[arg-type]
        y_dtype=outputs[0].format.dtype.value,  # type: ignore[arg-type]
        pieces=pieces,
        x_columns=step.attributes["x_columns"],
    )
    rows = prod(inputs[0].shape) // chain.x_columns
    chain.reserve(rows)
    return _runner(chain, rows, inputs, outputs[0])


def kernel_names(step: Step) -> tuple[str, ...]:
    """The kernel's function with its level and, for each layer, the pattern of the packed weight that it reads."""
    weights = ", ".join(f"{entry['pattern']} {entry['weight_dtype']}" for entry in step.attributes["layers"])
    return (f"tamis_chain_run<{step.attributes['isa']}; {weights}>",)


def _layer(
    entry: Mapping[str, Any], names: Any, constants: Mapping[str, Tensor], inputs: Sequence[BoundShape]
) -> Layer:
    epilogue = tuple(EpilogueStep(s["kind"], s["p0"], s["p1"]) for s in entry["epilogue"])
    spec = LinearSpec(entry["n"], entry["k"], entry["weight_dtype"], parse_pattern(entry["pattern"]), epilogue)
    packed = constants[next(names)].numpy()
    bias = constants[next(names)].numpy() if entry["bias"] else None
    residual = inputs[1].format.dtype.value if spec.adds_residual else "float32"
    return Layer(spec, packed, bias, residual_dtype=residual)  # type: ignore[arg-type]


def _runner(chain: Chain, rows: int, inputs: Sequence[BoundShape], output: BoundShape) -> Runner:
    x, y, call = inputs[0].slot, output.slot, chain.run
    others = tuple(bound.slot for bound in inputs[1:])
    added = len(others) - len(chain.pieces)
    shape, format, preallocated = output.shape, output.format, output.preallocated

    def run_alone(slots: Slots) -> None:
        if not preallocated:
            slots[y] = tensors.empty(shape, format)
        call(slots[x].data_ptr(), slots[y].data_ptr(), rows)

    def run(slots: Slots) -> None:
        if not preallocated:
            slots[y] = tensors.empty(shape, format)
        given = [slots[slot].data_ptr() for slot in others]
        call(slots[x].data_ptr(), slots[y].data_ptr(), rows, given[:added], given[added:])

    return run if others else run_alone
