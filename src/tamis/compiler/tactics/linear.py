"""Our own kernels for linear layers and 1x1 convolutions, dense and 2:4 sparse.

With few rows a linear layer is bound by the bandwidth of its weights. The kernels stream each weight once;
2:4 weights are stored compressed, which saves 44 % of the bytes in bfloat16 and 47 % in float32. With many rows
the layer is bound by arithmetic; 2:4 halves that too where vectors compute, but not on AMX tiles.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Conv, Pointwise, epilogue_of
from tamis.compiler.tactics.base import Choice, Layer, Lowered, flops_of, moved_bytes_of, uniform_format
from tamis.compiler.tactics.product import refuses_product, rows_of
from tamis.compiler.tactics.rest import result_of, with_rest
from tamis.engine.plan import DeviceInfo, Sparsity, Step
from tamis.errors import MissingLibrary
from tamis.formats import DENSE, TWO_FOUR
from tamis.formats.dtype import DType
from tamis.formats.tiles import LAYOUT_VERSION
from tamis.kernels.cpu.library import levels
from tamis.kernels.cpu.linear import STEP_KINDS, LinearSpec, pack

# Beyond this many rows every layer measured was bound by arithmetic, and the libraries' blocking was better.
MOST_ROWS = 4096
_FEW_ROWS = 8


class TamisLinear:
    """Linear layers with few rows."""

    name = "tamis.linear"
    sparse = True

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Anything that is not a matrix product of few rows with a constant weight."""
        return refuses_linear(layer, device)

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """Dense and, for an eligible weight, 2:4; each precision; bfloat16 weights also between float32 values.

        With very few rows vector instructions may beat AMX tiles, which compute 16 rows whatever they get.
        """
        channels_last = isinstance(layer.op, Conv)
        patterns: tuple[Sparsity, ...] = ("dense", "2:4") if layer.eligible else ("dense",)
        for precision in config.precisions:
            for dtype in dict.fromkeys((precision, DType.FLOAT32)):
                inputs = tuple(uniform_format(layer.types[v], dtype, channels_last) for v in layer.values)
                outputs = tuple(uniform_format(layer.types[v], dtype, channels_last) for v in layer.node.outputs)
                for sparsity in patterns:
                    for isa in levels_for(precision, rows_of(layer)):
                        yield Choice(self.name, precision, inputs, outputs, sparsity, {"isa": isa})

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """One call, and a pointwise step for what the kernel cannot fuse."""
        node = layer.node
        fused, tail = split_program(layer)
        entry, constants = packed_layer(layer, choice.precision, choice.sparsity, fused)
        residuals = tuple(node.inputs[s.operand] for s in fused if s.operand is not None)
        step = Step(
            layer.name,
            "tamis.chain",
            (node.inputs[0], *residuals),
            (result_of(layer, tail),),
            tuple(constants),
            chain_attributes([entry], choice, entry["k"]),
            (layer.name,),
            choice.precision,
            choice.sparsity,
            flops_of(layer),
            moved_bytes_of(layer, choice),
        )
        return with_rest(Lowered((step,), constants), layer, tail, choice)


def refuses_linear(layer: Layer, device: DeviceInfo) -> str | None:
    """Why the kernels cannot run a layer, or None."""
    if device.kind != "cpu":
        return "runs on the CPU only"
    reason = refuses_product(layer)
    if reason is not None:
        return reason
    rows = rows_of(layer)
    if rows > MOST_ROWS:
        return f"{rows} rows; these kernels are for at most {MOST_ROWS}"
    if importlib.util.find_spec("tamis.kernels.cpu.library") is None:
        return "the CPU kernels are not installed"
    try:
        levels()
    except MissingLibrary as error:
        return error.cause
    return None


def levels_for(precision: DType, rows: int) -> tuple[str, ...]:
    """The instruction-set levels worth racing: the best one, and below AMX the vectors where rows are few."""
    best = levels()[-1]
    both = best == "amx" and precision == DType.BFLOAT16 and rows <= _FEW_ROWS and "avx512_bf16" in levels()
    return (best, "avx512_bf16") if both else (best,)


def split_program(layer: Layer) -> tuple[tuple[Pointwise, ...], tuple[Pointwise, ...]]:
    """The steps of the epilogue that the kernel fuses, and the rest."""
    program = epilogue_of(layer.op)
    residuals = 0
    for index, step in enumerate(program):
        if step.operand is not None:
            operand = layer.node.inputs[step.operand]
            same = layer.types[operand].shape == layer.types[layer.node.output].shape
            residuals += 1
            if step.kind != "add" or not same or operand in layer.constants or residuals > 1:
                return program[:index], program[index:]
        elif step.kind not in STEP_KINDS or (step.kind == "clip" and len(step.params) != 2):
            return program[:index], program[index:]
    return program, ()


def chain_attributes(
    entries: Sequence[Mapping[str, Any]], choice: Choice, x_columns: int, pieces: Sequence[Mapping[str, int]] = ()
) -> dict[str, Any]:
    """The attributes of a ``tamis.chain`` step."""
    return {
        "layers": list(entries), "x_columns": x_columns, "pieces": list(pieces), "isa": choice.parameters["isa"],
        "layout": LAYOUT_VERSION,
    }  # fmt: skip


def packed_layer(
    layer: Layer, precision: DType, sparsity: Sparsity, program: tuple[Pointwise, ...]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A layer as the kernel's attributes, and its packed constants."""
    weight = layer.constants[layer.node.inputs[1]]
    matrix = np.ascontiguousarray(weight.reshape(weight.shape[0], -1), dtype=np.float32)
    pattern = TWO_FOUR if sparsity == "2:4" else DENSE
    n, k = matrix.shape
    spec = LinearSpec(n, k, precision.value, pattern)  # type: ignore[arg-type]
    constants = {f"{layer.name}.packed": pack(matrix, spec)}
    if layer.op.bias:
        constants[f"{layer.name}.bias"] = layer.constants[layer.node.inputs[2]].astype(np.float32)
    epilogue = [
        {
            "kind": "add_residual" if step.operand is not None else step.kind,
            "p0": float(step.params[0]) if step.params else 0.0,
            "p1": float(step.params[1]) if len(step.params) > 1 else 0.0,
        }
        for step in program
    ]
    entry = {
        "n": spec.n, "k": spec.k, "weight_dtype": precision.value, "pattern": str(pattern), "epilogue": epilogue,
        "bias": bool(layer.op.bias),
    }  # fmt: skip
    return entry, constants
