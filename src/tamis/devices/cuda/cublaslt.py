"""Matrix products by cuBLASLt: ``cublaslt.matmul`` (a constant weight) and ``cublaslt.batched`` (two activations).

cuBLASLt thinks in column-major matrices. A row-major matrix is the transpose of a column-major one in the same
memory, so everything here computes the transposed product, without moving anything:

- ``y[rows, n] = x[rows, k] w[n, k]^T`` is, column-major, ``D[n, rows] = A^T B`` with A[k, n] = w and B[k, rows] = x.
  The bias, one value for each row of D, is one for each output. An NHWC image is x with a row for each pixel.
- ``y[b, rows, n] = l[b, rows, k] r[b, k, n]`` is ``D[n, rows] = A B`` with A[n, k] = r and B[k, rows] = l.

The activation follows bias and residual: ``D = activation(A B + bias + C)``. Sums are kept in float32, also where
an algorithm splits k. An algorithm is named by its ``rank`` in the library's own order, which repeats on the same
GPU with the same library version.

Pointers need only be multiples of 16 bytes, which algorithms are told. Steps that share a workspace must not run on two
streams at the same time.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tamis.devices.base import BoundShape, Runner, Slots, Tensor
from tamis.devices.cuda import cublaslt_library as lt
from tamis.devices.cuda.workspace import Workspace
from tamis.engine.plan import Step
from tamis.errors import DeviceError
from tamis.formats.dtype import DType

# Algorithms that need more scratch memory than this many bytes are not offered.
WORKSPACE_BYTES = 32 << 20
MOST_RESULTS = 16
ALIGNMENT = 16

_DATA_TYPES = {
    DType.FLOAT32: lt.DataType.R_32F, DType.FLOAT16: lt.DataType.R_16F, DType.BFLOAT16: lt.DataType.R_16BF,
}  # fmt: skip
_EPILOGUES = {
    ("none", False): lt.Epilogue.DEFAULT, ("none", True): lt.Epilogue.BIAS,
    ("relu", False): lt.Epilogue.RELU, ("relu", True): lt.Epilogue.RELU_BIAS,
    ("gelu_tanh", False): lt.Epilogue.GELU, ("gelu_tanh", True): lt.Epilogue.GELU_BIAS,
}  # fmt: skip


@dataclass(frozen=True)
class Context:
    """What the steps of one GPU share in a process: the library and its handle.

    The handle knows no stream and no scratch memory, which are given with each launch. It is used while steps are
    bound and recorded only, which one thread at a time does; replays of a graph need it no more.
    """

    library: Any
    handle: ctypes.c_void_p


@dataclass(frozen=True)
class Product:
    """``D[m, n] = activation(op(A) B[k, n] + bias[m] + C)``, all column-major without gaps, ``batch`` times.

    A is [k, m] when ``transposed`` (op transposes it), else [m, k]. Strides are elements from one matrix of the batch
    to the next; 0 uses the same again.
    """

    m: int
    n: int
    k: int
    precision: DType
    inputs: DType
    output: DType
    activation: str
    residual: bool
    rank: int
    transposed: bool
    batch: int = 1
    a_stride: int = 0
    b_stride: int = 0


@functools.cache
def context(device: int) -> Context:
    """The context of CUDA device number ``device``, made once. Raises ``MissingLibrary``."""
    library = lt.load()
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        lt.check(library, library.cublasLtCreate(ctypes.byref(handle)), "start")
    return Context(library, handle)


def bind(
    step: Step,
    constants: Mapping[str, Tensor],
    inputs: Sequence[BoundShape],
    outputs: Sequence[BoundShape],
    workspace: Workspace,
) -> Runner:
    """A runner for a ``cublaslt.*`` step that launches on the current stream and can be captured in a graph.

    ``cublaslt.matmul``: inputs x [..., k] (or an NHWC image), then the residual if any; constants weight [n, k] and
    perhaps bias [n], in the output's type. ``cublaslt.batched``: inputs left [..., rows, k], right [..., k, n] and
    the residual. Raises ``DeviceError`` when the library has no algorithm of this rank, and ``MissingLibrary``.
    """
    a = step.attributes
    output = outputs[0]
    if not output.preallocated:
        raise DeviceError("cuBLASLt writes into given memory only", layer=step.name)
    index = torch.cuda.current_device()
    x, y = inputs[0].slot, output.slot
    product = Product(
        int(a["n"]), int(a["rows"]), int(a["k"]), step.precision, inputs[0].format.dtype, output.format.dtype,
        str(a["activation"]), bool(a["residual"]), int(a["rank"]), transposed=step.kernel == "cublaslt.matmul",
        batch=int(a.get("batch", 1)), a_stride=int(a.get("right_stride", 0)), b_stride=int(a.get("left_stride", 0)),
    )  # fmt: skip
    if step.kernel == "cublaslt.matmul":
        weight = constants[step.constants[0]]
        bias = constants[step.constants[1]] if len(step.constants) > 1 else None
        launch = prepare(context(index), workspace, product, bias, step.name)
        keep, residual = weight, inputs[1].slot if product.residual else y
        pointer = weight.data_ptr()

        def run(slots: Slots, _keep: object = keep) -> None:
            stream = torch.cuda.current_stream(index).cuda_stream
            launch(pointer, slots[x].data_ptr(), slots[residual].data_ptr(), slots[y].data_ptr(), stream)

        return run
    if step.kernel == "cublaslt.batched":
        launch = prepare(context(index), workspace, product, None, step.name)
        right, residual = inputs[1].slot, inputs[2].slot if product.residual else y

        def run_batched(slots: Slots) -> None:
            stream = torch.cuda.current_stream(index).cuda_stream
            a, b, c, d = slots[right].data_ptr(), slots[x].data_ptr(), slots[residual].data_ptr(), slots[y].data_ptr()
            launch(a, b, c, d, stream)

        return run_batched
    raise DeviceError(f"kernel {step.kernel} is unknown", layer=step.name, remedy="build the engine again")


def prepare(
    context: Context, workspace: Workspace, product: Product, bias: Tensor | None, layer: str
) -> Callable[[int, int, int, int, int], None]:
    """A function that launches a product: addresses of A, B, C and D, and the stream.

    C is read with a residual only; pass D otherwise. The descriptors and the scratch memory, of which only as much is
    taken as the algorithm needs, live as long as the function.
    """
    library, handle = context.library, context.handle
    descriptors = _Descriptors(library, layer)
    operation = descriptors.operation(product, bias)
    matrix_a, matrix_b, matrix_d = descriptors.matrices(product)
    chosen = _algorithm(context, descriptors, operation, (matrix_a, matrix_b, matrix_d), product, layer)
    algorithm, size = chosen.algorithm, int(chosen.workspace_bytes)
    block = workspace.reserve(size)
    one, beta = ctypes.c_float(1.0), ctypes.c_float(1.0 if product.residual else 0.0)
    call, scratch = library.cublasLtMatmul, block.data_ptr()
    alpha_at, beta_at, algorithm_at = ctypes.byref(one), ctypes.byref(beta), ctypes.byref(algorithm)
    keep = (descriptors, bias, block)

    def launch(a: int, b: int, c: int, d: int, stream: int, _keep: object = keep) -> None:
        status = call(
            handle, operation, alpha_at, a, matrix_a, b, matrix_b, beta_at, c, matrix_d, d, matrix_d,
            algorithm_at, scratch, size, stream,
        )  # fmt: skip
        if status:
            lt.check(library, status, "multiply", layer)

    return launch


def _algorithm(
    context: Context,
    descriptors: _Descriptors,
    operation: ctypes.c_void_p,
    matrices: tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
    product: Product,
    layer: str,
) -> lt.HeuristicResult:
    """The algorithm of the product's rank, with its needs; ``DeviceError`` when there are not so many."""
    library, (a, b, d) = context.library, matrices
    results, count = (lt.HeuristicResult * MOST_RESULTS)(), ctypes.c_int()
    preference = descriptors.preference(product)
    status = library.cublasLtMatmulAlgoGetHeuristic(
        context.handle, operation, a, b, d, d, preference, MOST_RESULTS, results, ctypes.byref(count)
    )
    lt.check(library, status, "propose an algorithm", layer)
    usable = [r for r in results[: count.value] if r.state == lt.SUCCESS and r.workspace_bytes <= WORKSPACE_BYTES]
    if product.rank >= len(usable):
        raise DeviceError(f"rank {product.rank}: cuBLASLt offers only {len(usable)} algorithms", layer=layer)
    found: lt.HeuristicResult = usable[product.rank]
    return found


class _Descriptors:
    """Descriptors that the library allocated, freed together with this object."""

    def __init__(self, library: Any, layer: str) -> None:
        self._library, self._layer = library, layer
        self._made: list[tuple[Callable[[Any], int], ctypes.c_void_p]] = []
        weakref.finalize(self, _destroy, self._made).atexit = False

    def _new(self, kind: str, *arguments: int) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        status = getattr(self._library, f"cublasLt{kind}Create")(ctypes.byref(made), *arguments)
        lt.check(self._library, status, f"make a {kind}", self._layer)
        self._made.append((getattr(self._library, f"cublasLt{kind}Destroy"), made))
        return made

    def _set(self, kind: str, descriptor: ctypes.c_void_p, attribute: int, value: Any) -> None:
        set_attribute = getattr(self._library, f"cublasLt{kind}SetAttribute")
        status = set_attribute(descriptor, attribute, ctypes.byref(value), ctypes.sizeof(value))
        lt.check(self._library, status, f"set {attribute!r}", self._layer)

    def operation(self, product: Product, bias: Tensor | None) -> ctypes.c_void_p:
        """The product's arithmetic and epilogue."""
        fast = product.precision is DType.TF32
        compute = lt.ComputeType.C_32F_FAST_TF32 if fast else lt.ComputeType.C_32F
        made, attribute = self._new("MatmulDesc", compute, lt.DataType.R_32F), lt.MatmulAttribute
        transpose = lt.Operation.T if product.transposed else lt.Operation.N
        epilogue = _EPILOGUES.get((product.activation, bias is not None))
        if epilogue is None:
            raise DeviceError(f"cuBLASLt has no activation {product.activation}", layer=self._layer)
        self._set("MatmulDesc", made, attribute.TRANSA, ctypes.c_int32(transpose))
        self._set("MatmulDesc", made, attribute.TRANSB, ctypes.c_int32(lt.Operation.N))
        self._set("MatmulDesc", made, attribute.EPILOGUE, ctypes.c_uint32(epilogue))
        if bias is not None:  # before the heuristics, which look at its alignment
            kind = _DATA_TYPES[product.output]
            self._set("MatmulDesc", made, attribute.BIAS_DATA_TYPE, ctypes.c_int32(kind))
            self._set("MatmulDesc", made, attribute.BIAS_POINTER, ctypes.c_void_p(bias.data_ptr()))
        return made

    def matrices(self, product: Product) -> tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]:
        """A, B and D; C lies as D does."""
        p, inputs, output = product, _DATA_TYPES[product.inputs], _DATA_TYPES[product.output]
        a = (p.k, p.m) if p.transposed else (p.m, p.k)
        return (
            self._matrix(inputs, a, p.batch, p.a_stride),
            self._matrix(inputs, (p.k, p.n), p.batch, p.b_stride),
            self._matrix(output, (p.m, p.n), p.batch, p.m * p.n),
        )

    def _matrix(self, kind: lt.DataType, shape: tuple[int, int], batch: int, stride: int) -> ctypes.c_void_p:
        made, attribute = self._new("MatrixLayout", kind, *shape, shape[0]), lt.LayoutAttribute
        if batch > 1:
            self._set("MatrixLayout", made, attribute.BATCH_COUNT, ctypes.c_int32(batch))
            self._set("MatrixLayout", made, attribute.STRIDED_BATCH_OFFSET, ctypes.c_int64(stride))
        return made

    def preference(self, product: Product) -> ctypes.c_void_p:
        """What an algorithm may use: so much scratch memory, and split sums in float32 only."""
        made, attribute = self._new("MatmulPreference"), lt.PreferenceAttribute
        schemes: int = lt.ReductionScheme.COMPUTE_TYPE
        if product.output is DType.FLOAT32:  # in place is in the output's type
            schemes |= lt.ReductionScheme.INPLACE
        self._set("MatmulPreference", made, attribute.MAX_WORKSPACE_BYTES, ctypes.c_uint64(WORKSPACE_BYTES))
        self._set("MatmulPreference", made, attribute.REDUCTION_SCHEME_MASK, ctypes.c_uint32(schemes))
        for matrix in "ABCD":
            alignment = attribute[f"MIN_ALIGNMENT_{matrix}_BYTES"]
            self._set("MatmulPreference", made, alignment, ctypes.c_uint32(ALIGNMENT))
        return made


def _destroy(made: list[tuple[Callable[[Any], int], ctypes.c_void_p]]) -> None:
    for destroy, descriptor in reversed(made):
        destroy(descriptor)
