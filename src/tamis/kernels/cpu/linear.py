"""Python face of the linear kernels: describe layers once, then run them on raw pointers at little cost.

    spec = LinearSpec(n=512, k=479, weight_dtype="bfloat16", pattern=TWO_FOUR, epilogue=(Step("relu"),))
    chain = Chain([Layer(spec, pack(weight, spec), bias)], threads=2)
    chain.run(x.data_ptr(), y.data_ptr(), rows)

Nothing here knows PyTorch; ``apply`` is the same for NumPy arrays.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tamis.errors import FormatError, InputError
from tamis.formats import tiles
from tamis.formats.pattern import DENSE, Pattern
from tamis.formats.tiles import WeightType
from tamis.kernels.cpu.library import (
    SMALL_WORKSPACE,
    ChainStruct,
    EpilogueStruct,
    Library,
    LinearStruct,
    MatrixStruct,
    PieceStruct,
    load,
)

# In the order of ``enum tamis_step``.
STEP_KINDS = (
    "relu", "clip", "silu", "hardswish", "gelu", "gelu_tanh", "sigmoid", "leaky_relu", "tanh", "add_residual",
)  # fmt: skip
_CODES = {"float32": 0, "bfloat16": 1}
_NUMPY = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Step:
    """One step of an epilogue. ``clip`` takes (low, high), ``leaky_relu`` (slope), the others nothing."""

    kind: str
    p0: float = 0.0
    p1: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in STEP_KINDS:
            raise FormatError(f"'{self.kind}' is no epilogue step", remedy=f"use one of {', '.join(STEP_KINDS)}")


@dataclass(frozen=True)
class LinearSpec:
    """A linear layer ``y = epilogue(x W^T + bias)`` with ``W`` of shape [n, k], sums in float32."""

    n: int
    k: int
    weight_dtype: WeightType = "bfloat16"
    pattern: Pattern = DENSE
    epilogue: tuple[Step, ...] = ()

    @property
    def adds_residual(self) -> bool:
        """Whether the epilogue reads a residual matrix."""
        return any(step.kind == "add_residual" for step in self.epilogue)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weight."""
        return tiles.packed_bytes(self.n, self.k, self.weight_dtype, self.pattern)

    def flops(self, rows: int) -> int:
        """Operations for so many rows, a multiply-add as two, zeros counted as if they were dense."""
        return 2 * rows * self.n * self.k


def pack(weight: NDArray[np.float32], spec: LinearSpec) -> NDArray[np.uint8]:
    """Pack a float32 weight [n, k] for the kernels: position-independent bytes, the same for every level.

    They may lie at any address; multiples of 64 are fastest. ``FormatError`` if the shape or pattern differ.
    """
    if weight.shape != (spec.n, spec.k):
        raise FormatError(f"the weight has shape {list(weight.shape)}, not [{spec.n}, {spec.k}]")
    return tiles.pack(weight, spec.weight_dtype, spec.pattern)


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer with its constants: the packed weight (uint8) and, perhaps, the bias (float32 [n]).

    ``residual_dtype`` and ``residual_stride`` (elements, 0 for n) describe the matrix that the epilogue adds.
    """

    spec: LinearSpec
    packed: NDArray[np.uint8]
    bias: NDArray[np.float32] | None = None
    residual_dtype: WeightType = "float32"
    residual_stride: int = 0

    def __post_init__(self) -> None:
        packed, bias = self.packed, self.bias
        if packed.dtype != np.uint8 or not packed.flags.c_contiguous or packed.size != self.spec.packed_bytes:
            raise FormatError(
                f"the packed weight is {packed.dtype}[{packed.size}], not uint8[{self.spec.packed_bytes}]"
            )
        if bias is not None and (bias.dtype != np.float32 or bias.shape != (self.spec.n,)):
            raise FormatError(f"the bias is {bias.dtype}{list(bias.shape)}, not float32[{self.spec.n}]")
        if bias is not None and not bias.flags.c_contiguous:
            raise FormatError("the bias is not contiguous")


@dataclass(frozen=True)
class Piece:
    """A matrix ``[rows, columns]`` that stands beside the own input of layer number ``layer``.

    It takes the input columns from ``column``, a multiple of 16, on. ``stride`` is in elements, 0 for ``columns``.
    """

    layer: int
    column: int
    columns: int
    dtype: WeightType = "float32"
    stride: int = 0


class Chain:
    """One or more linear layers that run in one parallel region, ready to be called often.

    Args:
        layers: applied in order; each one's k is the n of the one before, or where its last piece ends.
        threads: how many to use; 1 stays on the calling thread.
        isa: highest level to use (None: the best here).
        x_dtype, y_dtype: element types of the input and of the output.
        x_stride, y_stride: elements from one row to the next; 0 means no gap.
        library: the kernels to use, those of the installation by default.
        pieces: by layer, then by column. A layer's own input comes first; what lies between the parts counts as zero.
        x_columns: columns of x where pieces follow it; 0 means k of the first layer.

    A chain owns its workspace and serves one call at a time; constants are kept alive by it.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        threads: int = 1,
        isa: str | None = None,
        x_dtype: WeightType = "float32",
        y_dtype: WeightType = "float32",
        x_stride: int = 0,
        y_stride: int = 0,
        library: Library | None = None,
        pieces: Sequence[Piece] = (),
        x_columns: int = 0,
    ) -> None:
        _check_joins(layers, pieces)
        self.layers = tuple(layers)
        self.x_dtype: WeightType = x_dtype
        self.y_dtype: WeightType = y_dtype
        self.pieces = tuple(pieces)
        self.x_columns = x_columns or layers[0].spec.k
        self._library = library or load()
        self._layers = (LinearStruct * len(layers))(*(_linear_struct(layer) for layer in layers))
        self._residuals = (MatrixStruct * len(layers))(*(_residual_struct(layer) for layer in layers))
        self._pieces = (PieceStruct * len(pieces))(*(_piece_struct(piece) for piece in pieces))
        # What each call gives an address to; these objects share the memory of the arrays.
        self._added = [self._residuals[i] for i, layer in enumerate(layers) if layer.spec.adds_residual]
        self._joined = [piece.matrix for piece in self._pieces]
        self._chain = ChainStruct(
            x_columns=self.x_columns, layer_count=len(layers), piece_count=len(pieces), threads=threads,
            isa=self._library.level(isa),
        )  # fmt: skip
        self._chain.layers, self._chain.residuals, self._chain.pieces = self._layers, self._residuals, self._pieces
        self._chain.x = MatrixStruct(stride=x_stride or self.x_columns, dtype=_CODES[x_dtype])
        self._chain.y = MatrixStruct(stride=y_stride or layers[-1].spec.n, dtype=_CODES[y_dtype])
        self._address = ctypes.addressof(self._chain)
        self._run = self._library.handle.tamis_chain_run
        self._workspace = np.empty(0, np.uint8)

    def run(self, x: int, y: int, rows: int, residuals: Sequence[int] = (), pieces: Sequence[int] = ()) -> None:
        """Run on raw addresses: ``x`` [rows, x_columns], ``y`` [rows, n], a residual for each layer that adds one.

        ``pieces`` are the addresses of the chain's pieces. The last residuals and pieces given stay in place for
        calls without. ``y`` may not overlap what is read. A first call with more rows than before enlarges the
        workspace. ``DeviceError`` for arguments that make no sense.
        """
        if residuals:
            for matrix, address in zip(self._added, residuals, strict=True):
                matrix.data = address
        if pieces:
            for matrix, address in zip(self._joined, pieces, strict=True):
                matrix.data = address
        status = self._run(self._address, x, y, rows)
        if status == SMALL_WORKSPACE:
            self.reserve(rows)
            status = self._run(self._address, x, y, rows)
        if status:
            self._library.check(status)

    def reserve(self, rows: int) -> int:
        """Make the workspace large enough for so many rows (no more is needed later); returns its bytes."""
        for matrix in (*self._added, *self._joined):
            matrix.data = matrix.data or self._address  # any address will do here
        size = int(self._library.handle.tamis_chain_workspace(self._address, rows))
        self._library.check(max(0, -size))
        if size > self._workspace.size:
            self._workspace = np.empty(size, np.uint8)
            self._chain.workspace = self._workspace.ctypes.data
            self._chain.workspace_bytes = size
        return int(self._workspace.size)

    def apply(
        self, x: NDArray[Any], residuals: Sequence[NDArray[Any]] = (), pieces: Sequence[NDArray[Any]] = ()
    ) -> NDArray[Any]:
        """Run on NumPy arrays (contiguous rows as declared) and return a new [rows, n] array; for tests."""
        if x.ndim != 2 or x.shape[1] != self.x_columns or x.dtype != _NUMPY[self.x_dtype]:
            raise InputError(f"the input is {x.dtype}{list(x.shape)}, not {self.x_dtype}[rows, {self.x_columns}]")
        x = np.ascontiguousarray(x)
        y = np.empty((x.shape[0], self.layers[-1].spec.n), _NUMPY[self.y_dtype])
        added, joined = ([array.ctypes.data for array in arrays] for arrays in (residuals, pieces))
        self.run(x.ctypes.data, y.ctypes.data, x.shape[0], added, joined)
        return y


def _check_joins(layers: Sequence[Layer], pieces: Sequence[Piece]) -> None:
    """The joins that have no piece; the kernels check those that have."""
    if not layers:
        raise FormatError("a chain needs at least one layer")
    joined = {piece.layer for piece in pieces}
    for index, (first, second) in enumerate(itertools.pairwise(layers), 1):
        if first.spec.n != second.spec.k and index not in joined:
            raise FormatError(f"a layer with {first.spec.n} outputs cannot feed one with {second.spec.k} inputs")


def _linear_struct(layer: Layer) -> LinearStruct:
    spec = layer.spec
    steps = (EpilogueStruct * len(spec.epilogue))(
        *(EpilogueStruct(STEP_KINDS.index(step.kind), step.p0, step.p1) for step in spec.epilogue)
    )
    struct = LinearStruct(
        weight=layer.packed.ctypes.data,
        bias=None if layer.bias is None else layer.bias.ctypes.data,
        n=spec.n,
        k=spec.k,
        weight_dtype=_CODES[spec.weight_dtype],
        pattern=0 if spec.pattern == DENSE else 1,
        epilogue_count=len(spec.epilogue),
    )
    struct.epilogue = steps  # ctypes keeps the array alive
    return struct


def _residual_struct(layer: Layer) -> MatrixStruct:
    return MatrixStruct(stride=layer.residual_stride or layer.spec.n, dtype=_CODES[layer.residual_dtype])


def _piece_struct(piece: Piece) -> PieceStruct:
    matrix = MatrixStruct(stride=piece.stride or piece.columns, dtype=_CODES[piece.dtype])
    return PieceStruct(matrix=matrix, column=piece.column, columns=piece.columns, layer=piece.layer)
