"""Linear layers whose rows are no multiple of 16 bytes, behind a step that puts zeros at the end of each row.

Tensor cores read 16 bytes at a time: rows of 479 float16 values must be read one value at a time, and a product of them
takes several times as long as one of 480, zeros and copy included. The weight gets as many columns of zeros.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from tamis.compiler.ir.ops import Linear, Program
from tamis.compiler.tactics.base import Choice, Layer, Lowered
from tamis.compiler.tactics.cuda_steps import can_run, compiles_for, kernel_step
from tamis.engine.plan import DeviceInfo, Format
from tamis.formats.dtype import DType
from tamis.kernels.cuda.movement import pad_channels
from tamis.kernels.cuda.specification import MOST_ELEMENTS, VECTOR_BYTES, ceil_divide


def aligned_columns(layer: Layer, storage: DType) -> int:
    """How long the rows of a layer's input are when they are padded to a multiple of 16 bytes."""
    multiple = VECTOR_BYTES // storage.size_bytes
    return ceil_divide(layer.type(0).shape[-1], multiple) * multiple


def can_align(layer: Layer, storage: DType) -> bool:
    """Whether padding does something for a layer, and the step that pads can run on it."""
    if not isinstance(layer.op, Linear) or layer.constant(0) is not None or layer.type(0).dtype != DType.FLOAT32:
        return False
    columns, shape = aligned_columns(layer, storage), layer.type(0).shape
    return columns != shape[-1] and prod(shape[:-1]) * columns <= MOST_ELEMENTS


def aligning_parameters(layer: Layer, tail: Program, storage: DType, device: DeviceInfo) -> dict[str, Any]:
    """Parameters of a library's choice that has its rows aligned in front; none where that is not possible.

    ``tail``, which the library leaves, must then be a kernel of ours: both are compiled for the architecture named.
    """
    possible = compiles_for(device) and can_align(layer, storage) and (not tail or can_run(layer, tail))
    return {"aligned": True, "architecture": device.architecture} if possible else {}


def aligning_step(layer: Layer, choice: Choice) -> tuple[str, Lowered]:
    """The padded input's name, and the step that makes it; ``choice`` has the parameter ``architecture``."""
    source, shape = choice.inputs[0], layer.type(0).shape
    rows, columns = prod(shape[:-1]), aligned_columns(layer, source.dtype)
    kernel = pad_channels((rows, shape[-1], 1, 1), (source.dtype, True), columns, source.dtype)
    name = f"{layer.node.output}/aligned"
    step, binary = kernel_step(
        kernel, replace(choice, sparsity="dense"), name=f"{layer.name}/align", layers=(layer.name,),
        inputs=layer.node.inputs[:1], outputs=(name,), constants={},
        moved_bytes=rows * (shape[-1] + columns) * source.dtype.size_bytes,
    )  # fmt: skip
    step = replace(step, attributes={**step.attributes, "aligns": columns})  # a Concat in front can do it (joints.py)
    return name, Lowered((step,), binary, {name: ((*shape[:-1], columns), Format(source.dtype))})


def aligned_weight(weight: np.ndarray, columns: int) -> np.ndarray:
    """A weight [n, k] with zeros behind its k columns."""
    return np.pad(weight, ((0, 0), (0, columns - weight.shape[1])))
