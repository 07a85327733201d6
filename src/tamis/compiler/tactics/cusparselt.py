"""cuSPARSELt: 2:4 sparse linear layers and 1x1 convolutions of NHWC images, on sparse tensor cores.

One residual of the output's shape, then ReLU (also with an upper bound), are part of the call; what is left follows
as a pointwise step. Rows that are no multiple of 16 bytes get zeros at their ends first. Products with float32 or tf32
values are out: there the pattern would be 1:2.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Conv, Pointwise
from tamis.compiler.tactics.aligned_rows import aligned_columns, aligned_weight, aligning_parameters, aligning_step
from tamis.compiler.tactics.base import Choice, Layer, Lowered, flops_of, moved_bytes_of, uniform_format
from tamis.compiler.tactics.cublaslt import split_epilogue
from tamis.compiler.tactics.precision import SameArray, runs_in, to_precision
from tamis.compiler.tactics.product import refuses_product, refuses_two_of_four, rows_of
from tamis.compiler.tactics.rest import rest_parameters, result_of, with_rest
from tamis.engine.plan import DeviceInfo, Step
from tamis.formats import TWO_FOUR, compress
from tamis.formats.dtype import DType
from tamis.formats.places import pack_places

MULTIPLE = 16
# The algorithms that race, by the library's numbers, those that were the fastest of some layer first. Versions 0.8.0
# to 0.10.0 hold 36 (float16) and 9 (bfloat16) kernels for sm_90 in the form used here, and 4 of each for sm_80. The
# library names a larger number when it is asked, but what lies beyond stops the GPU with an illegal instruction.
_BEST_FIRST = (6, 5, 24, 22, 0, 10, 28, 31, 13, 1, 21, 8, 26, 17)
ALGORITHMS: dict[DType, tuple[int, ...]] = {
    DType.FLOAT16: (*_BEST_FIRST, *(a for a in range(36) if a not in _BEST_FIRST)),
    DType.BFLOAT16: tuple(range(9)),
}
_OTHER_ARCHITECTURES = tuple(range(4))
# Making a plan takes the library a quarter of a second, so all of them race at the highest levels only.
_ALGORITHMS_BY_LEVEL = (1, 2, 4, 8, 14, 36)
# Splitting k is raced where the outputs make fewer tiles than the device has multiprocessors.
SPLIT_ALGORITHMS = 4
SPLITS = (2, 4)
SPLIT_MODES = (1, 2)
_TILE = 128
_SHORTEST_PART = 256


class CusparseLt:
    """2:4 matrix products by cuSPARSELt."""

    name = "cusparselt"
    sparse = True

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Weights that are not 2:4, other layers than linear ones, shapes and devices that the library has not."""
        if device.kind != "cuda":
            return "runs on CUDA devices only"
        reason = refuses_product(layer) or refuses_two_of_four(layer, config)
        if reason:
            return reason
        if "sparse_tensor_cores" not in device.features:
            return f"needs sparse tensor cores, compute capability 8.0 or newer; this is {device.architecture}"
        if "cusparselt" not in device.libraries:
            return "cuSPARSELt is not installed"
        if not set(config.precisions) & set(ALGORITHMS):
            return "2:4 needs 16-bit values; allow float16 or bfloat16"
        n, k = layer.type(1).shape[0], _columns(layer, device)
        if n % MULTIPLE or k % MULTIPLE:
            return f"outputs and inputs must be multiples of {MULTIPLE}; the weight is {n} x {k}"
        return None

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """Each allowed 16-bit precision with each algorithm, and some with k split where there is little work."""
        channels_last = isinstance(layer.op, Conv)
        rest = rest_parameters(layer, _split(layer)[2], device)
        aligned = _aligned(layer, device)
        for precision in config.precisions:
            if precision not in ALGORITHMS or not runs_in(precision, device):
                continue
            inputs = tuple(uniform_format(layer.types[v], precision, channels_last) for v in layer.values)
            outputs = tuple(uniform_format(layer.types[v], precision, channels_last) for v in layer.node.outputs)
            known = ALGORITHMS[precision] if device.architecture == "sm_90" else _OTHER_ARCHITECTURES
            plain = [(algorithm, 1, 0) for algorithm in known[: _ALGORITHMS_BY_LEVEL[config.optimization_level]]]
            for algorithm, split, mode in (*plain, *_splits(layer, device, plain)):
                parameters = {"algorithm": algorithm, "split_k": split, "split_k_mode": mode} | aligned | rest
                yield Choice(self.name, precision, inputs, outputs, "2:4", parameters)

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """One call, and a pointwise step for what it cannot fuse."""
        node = layer.node
        residual, activation, tail = _split(layer)
        n, k = shape = (layer.type(1).shape[0], prod(layer.type(1).shape[1:]))
        image, front = (node.inputs[0], None)
        if choice.parameters.get("aligned"):
            image, front = aligning_step(layer, choice)
            k = aligned_columns(layer, choice.precision)
        bounded = activation is not None and activation.kind == "clip"
        attributes: dict[str, Any] = {
            "rows": rows_of(layer), "n": n, "k": k, "residual": residual is not None, "relu": activation is not None,
            "upper_bound": float(activation.params[1]) if activation and bounded else None,
            **{name: choice.parameters[name] for name in ("algorithm", "split_k", "split_k_mode")},
        }  # fmt: skip
        kept, places = _compressed(SameArray(layer.constants[node.inputs[1]]), shape, choice.precision, k)
        constants: dict[str, np.ndarray] = {f"{layer.name}.kept": kept, f"{layer.name}.places": places}
        if layer.op.bias:
            bias = layer.constants[node.inputs[2]].reshape(n)
            constants[f"{layer.name}.bias"] = to_precision(bias, choice.precision)
        inputs = (image,) + ((node.inputs[residual.operand],) if residual else ())  # type: ignore[index]
        step = Step(
            layer.name, "cusparselt.matmul", inputs, (result_of(layer, tail),), tuple(constants), attributes,
            (layer.name,), choice.precision, "2:4", flops_of(layer), moved_bytes_of(layer, choice),
        )  # fmt: skip
        lowered = with_rest(Lowered((step,), constants), layer, tail, choice)
        return front.before(lowered) if front else lowered


@functools.lru_cache(maxsize=4)
def _compressed(
    weight: SameArray, shape: tuple[int, int], precision: DType, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Kept values and their places, with zeros up to so many columns.

    A race lowers dozens of choices of one weight, hence the memory.
    """
    compressed = compress(to_precision(aligned_weight(weight.array.reshape(shape), columns), precision), TWO_FOUR)
    return compressed.values, pack_places(compressed.indices)


def _aligned(layer: Layer, device: DeviceInfo) -> dict[str, Any]:
    """As ``aligning_parameters``; both precisions have 16 bits."""
    return aligning_parameters(layer, _split(layer)[2], DType.FLOAT16, device)


def _columns(layer: Layer, device: DeviceInfo) -> int:
    """Inputs to reduce over, as the library sees them."""
    return aligned_columns(layer, DType.FLOAT16) if _aligned(layer, device) else prod(layer.type(1).shape[1:])


def _split(layer: Layer) -> tuple[Pointwise | None, Pointwise | None, tuple[Pointwise, ...]]:
    """(residual, activation, rest) of the epilogue; a clip is fused only where it is ReLU with an upper bound."""
    residual, activation, tail = split_epilogue(layer, ("relu", "clip"))
    if activation is None or activation.kind == "relu":
        return residual, activation, tail
    low, high = (*activation.params, 0.0, 0.0)[:2]
    fused = len(activation.params) == 2 and low == 0.0 and high > 0.0
    return (residual, activation, tail) if fused else (residual, None, (activation, *tail))


def _splits(layer: Layer, device: DeviceInfo, plain: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """(algorithm, split, mode) of the first algorithms for a layer whose outputs do not fill the device."""
    n, k = layer.type(1).shape[0], _columns(layer, device)
    tiles = -(-n // _TILE) * -(-rows_of(layer) // _TILE)
    if tiles >= device.cores:
        return
    for split in SPLITS:
        if k // split >= _SHORTEST_PART:
            for mode in SPLIT_MODES:
                for algorithm, _, _ in plain[:SPLIT_ALGORITHMS]:
                    yield algorithm, split, mode
