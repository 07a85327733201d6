"""A convolution and the max pooling behind it in one kernel, on Hopper's tensor cores: nothing between is written.

What is between the two is four times as large as the result. The kernel pools in registers
(``hopper_pooled.h``); images of few channels get the step in front that ``stem`` has. Both layers also race alone, so
the planner takes the pair where it is faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.ir.ops import Conv, Pool
from tamis.compiler.tactics.base import (
    Choice,
    Layer,
    Lowered,
    flops_of,
    layer_of,
    moved_bytes_of,
    uniform_format,
)
from tamis.compiler.tactics.cuda_steps import kernel_step
from tamis.compiler.tactics.generations import HOPPER
from tamis.compiler.tactics.implicit_gemm import (
    PRECISIONS,
    ImplicitGemm,
    bias_constant,
    epilogue_alone,
    packed_weight,
    shape_of,
)
from tamis.compiler.tactics.precision import SameArray, runs_in
from tamis.compiler.tactics.product import refuses_two_of_four
from tamis.compiler.tactics.region import Region, region_of
from tamis.compiler.tactics.stem import HopperStem, lower_windows, refuses_windows, windows_of
from tamis.engine.plan import DeviceInfo, Format, Sparsity
from tamis.formats.dtype import DType
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.pooled import (
    STRIDE,
    WINDOWS,
    PooledTile,
    Pooling,
    implicit_gemm_pooled,
    pooled_tiles,
)
from tamis.kernels.cuda.specification import MOST_ELEMENTS
from tamis.kernels.cuda.tile_prior import predicted_pooled_us

# How many tiles race, dense and 2:4 each; above the last level all do.
_TILES_BY_LEVEL = (1, 1, 1, 4, 5)
_STEM, _PLAIN = HopperStem(), ImplicitGemm(sparse=False)


@dataclass(frozen=True)
class _Pair:
    """A convolution and the pooling behind it, as the kernel sees them; ``windows``: of an image of few channels."""

    conv: Layer
    pool: Layer
    shape: Convolution
    windows: bool

    @property
    def pooling(self) -> Pooling:
        """The pooling."""
        op: Pool = self.pool.op
        high, wide = self.pool.types[self.pool.node.output].shape[2:]
        return Pooling(op.kernel[0], op.pads[0], op.pads[1], (high, wide))


class HopperPooled:
    """Pairs of a convolution and a max pooling of stride 2 that alone reads its result; dense and 2:4."""

    name = "tamis.hopper.pool"

    def refuses(self, graph: Graph, node: Node, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Other poolings, and convolutions that the kernel does not run or does not finish by itself."""
        if isinstance(node.op, Pool):
            return "runs on CUDA devices only" if device.kind != "cuda" else _refuses_pool(layer_of(graph, node))
        if not isinstance(node.op, Conv):
            return f"{type(node.op).__name__} is neither a convolution nor a pooling"
        layer = layer_of(graph, node)
        alone = _STEM if refuses_windows(layer) is None else _PLAIN
        reason = alone.refuses(layer, device, config)
        if reason is None and epilogue_alone(layer) is None:
            return "its epilogue reads other values or has steps that the kernel cannot fuse"
        return reason

    def regions(self, graph: Graph, able: frozenset[str]) -> tuple[Region, ...]:
        """Each pair that has a tile."""
        readers = graph.consumers()
        found = []
        for index, (conv, pool) in enumerate(zip(graph.nodes, graph.nodes[1:], strict=False)):
            if not isinstance(conv.op, Conv) or not isinstance(pool.op, Pool) or not {conv.name, pool.name} <= able:
                continue
            if readers.get(conv.output) == [pool] and conv.output not in graph.outputs:
                region = region_of(graph, index, index + 2)
                pair = _pair_of(graph, region)
                if any(pooled_tiles(pair.shape, pair.pooling, sparse=sparse) for sparse in (False, True)):
                    found.append(region)
        return tuple(found)

    def choices(self, graph: Graph, region: Region, device: DeviceInfo, config: BuildConfig) -> tuple[Choice, ...]:
        """Each allowed 16-bit precision, the image as it comes where a step in front rearranges it, patterns, tiles."""
        pair = _pair_of(graph, region)
        image, result = (graph.types[value] for value in (*region.inputs, *region.outputs))
        patterns = [False]
        if not pair.windows and refuses_two_of_four(pair.conv, config) is None:
            patterns.append(True)
        found = []
        for precision, sparse in product(config.precisions, patterns):
            if precision not in PRECISIONS or not runs_in(precision, device):
                continue
            last, out = (uniform_format(type_, precision, True) for type_ in (image, result))
            sources = (Format(DType.FLOAT32), Format(last.dtype), last) if pair.windows else (last,)
            tiles = _tiles(pair, device, config.optimization_level, sparse=sparse)
            for source, tile in product(sources, tiles):
                parameters = {
                    **HOPPER.parameters(device), **dataclasses.asdict(tile),
                    # The pooling has no weight.
                    **({"sparsity_by_layer": {pair.conv.name: "2:4"}} if sparse else {}),
                }  # fmt: skip
                pattern: Sparsity = "2:4" if sparse else "dense"
                found.append(Choice(self.name, precision, (source,), (out,), pattern, parameters))
        return tuple(found)

    def lower(self, graph: Graph, region: Region, choice: Choice) -> Lowered:
        """One launch, for an image of few channels behind the step that rearranges it."""
        pair = _pair_of(graph, region)
        layer, sparse = pair.conv, choice.sparsity == "2:4"
        tile = PooledTile(**{field.name: choice.parameters[field.name] for field in dataclasses.fields(PooledTile)})
        epilogue = epilogue_alone(layer)
        assert epilogue is not None
        multiprocessors = choice.parameters["multiprocessors"]
        kernel = implicit_gemm_pooled(
            pair.shape, pair.pooling, tile, choice.precision, multiprocessors, epilogue, sparse=sparse
        )
        if pair.windows:
            image, front, packed = lower_windows(layer, choice, tile.filters)
        else:
            image, front = region.inputs[0], Lowered((), {})
            weight = SameArray(layer.constants[layer.node.inputs[1]])
            bundles = pair.shape.bundles(tile.filters)
            packed = packed_weight(weight, choice.precision, HOPPER, bundles, tile.filters, False, sparse)
        step, constants = kernel_step(
            kernel, choice, name=region.name, layers=tuple(node.name for node in region.nodes), inputs=(image,),
            outputs=region.outputs, constants={f"{layer.name}.weight": packed, **bias_constant(layer)},
            flops=flops_of(layer) + flops_of(pair.pool),
            moved_bytes=moved_bytes_of(pooled_layer(layer, pair.pool), choice),
        )  # fmt: skip
        return front.before(Lowered((step,), constants))

    def profile(
        self, graph: Graph, region: Region, choice: Choice, inputs: Sequence[np.ndarray], threads: int
    ) -> Mapping[str, float]:
        """Unknown: there is one kernel."""
        return {}


def _pair_of(graph: Graph, region: Region) -> _Pair:
    conv, pool = (layer_of(graph, node) for node in region.nodes)
    # As the tactics for single layers: those of few channels take windows where a layer has them.
    windows = refuses_windows(conv) is None
    return _Pair(conv, pool, windows_of(conv)[1] if windows else shape_of(conv), windows)


def pooled_layer(conv: Layer, pool: Layer) -> Layer:
    """The convolution as a layer whose result is the pooled one: what goes into the pair and what comes out."""
    types = {**conv.types, **pool.types}
    return replace(conv, node=replace(conv.node, outputs=pool.node.outputs), types=types)


def _tiles(pair: _Pair, device: DeviceInfo, level: int, *, sparse: bool) -> list[PooledTile]:
    """Those that should be the fastest, in this order."""

    def predicted(tile: PooledTile) -> float:
        return predicted_pooled_us(pair.shape, pair.pooling, tile, device.cores, sparse=sparse)

    tiles = sorted(pooled_tiles(pair.shape, pair.pooling, sparse=sparse), key=predicted)
    return tiles[: _TILES_BY_LEVEL[level]] if level < len(_TILES_BY_LEVEL) else tiles


def _refuses_pool(layer: Layer) -> str | None:
    op: Pool = layer.op
    if op.kind != "max" or len(op.kernel) != 2:
        return f"{op.kind} pooling along {len(op.kernel)} axes; maxima along two are pooled in a convolution"
    size = op.kernel[0]
    if size not in WINDOWS or set(op.kernel) != {size} or set(op.strides) != {STRIDE} or set(op.dilations) != {1}:
        return "windows other than 2x2 and 3x3 of stride 2"
    if max(op.pads) >= size:
        return "padding as wide as a window"
    elements = layer.types[layer.node.output].elements
    return f"{elements} elements; the kernels are for up to {MOST_ELEMENTS}" if elements > MOST_ELEMENTS else None
