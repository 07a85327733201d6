"""2:4 sparse matrix products by cuSPARSELt: ``cusparselt.matmul``.

The weight is the structured operand A [n, k], the activations are B, and the result has a row for each output and a
column for each row of x: ``D[n, rows] = activation(A[n, k] x[rows, k]^T + bias[n] + C)``. D is declared column-major,
so that in memory it is y [rows, n] row-major, which is also an NHWC image: nothing is transposed, neither x (row-major,
transposed by its operation flag) nor y. The library adds the bias along the rows of D, which are the outputs.

The engine holds kept values and two-bit places of its own (``formats/places.py``), because the library's compressed
form is private to a version. Binding expands them on the device, has the library compress the result, and frees the
expanded copy. Algorithm numbers are those of the library version too.

Dense matrices must have multiples of 8 rows. Where x has not, x, residual and y are copied through padded buffers.
Steps that share a workspace must not run on two streams at the same time.
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
from tamis.devices.cuda import cusparselt_library as lt
from tamis.devices.cuda.workspace import Workspace
from tamis.engine.plan import Step
from tamis.errors import DeviceError
from tamis.formats.dtype import DType

ROW_MULTIPLE = 8
ALIGNMENT = 16

_DATA_TYPES = {DType.FLOAT16: lt.DataType.R_16F, DType.BFLOAT16: lt.DataType.R_16BF}


@dataclass(frozen=True)
class Context:
    """What the steps of one GPU share in a process: the library and its handle.

    A handle takes half a second to make. It is used while steps are bound and recorded only, which one thread at a time
    does; it knows no stream and no scratch memory, which are given with each launch.
    """

    library: Any
    handle: lt.Opaque


@dataclass(frozen=True)
class Product:
    """``D[n, rows] = activation(A[n, k] B[rows, k]^T + bias[n] + C)``, D column-major, the others row-major.

    ``upper_bound`` limits ReLU from above. ``algorithm`` is a number of the library; ``split_k`` above 1 cuts k into
    parts, which ``split_k_mode`` adds up (``SplitMode``).
    """

    rows: int
    n: int
    k: int
    dtype: DType
    relu: bool
    upper_bound: float | None
    residual: bool
    algorithm: int
    split_k: int = 1
    split_k_mode: int = 0


@functools.cache
def context(device: int) -> Context:
    """The context of CUDA device number ``device``, made once. Raises ``MissingLibrary`` and ``DeviceError``."""
    library, handle = lt.load(), lt.Opaque()
    with torch.cuda.device(device):
        lt.check(library, library.cusparseLtInit(handle.address), "start")
    return Context(library, handle)


def bind(
    step: Step,
    constants: Mapping[str, Tensor],
    inputs: Sequence[BoundShape],
    outputs: Sequence[BoundShape],
    workspace: Workspace,
) -> Runner:
    """A runner for a ``cusparselt.matmul`` step; it launches on the current stream and can be captured in a graph.

    Inputs: x [..., k] (or an NHWC image), then the residual if any. Constants: kept values [n, k / 2], their places
    [n, k / 8] uint8, and perhaps bias [n], all in x's type. Raises ``DeviceError`` for an algorithm that the library
    has not, and ``MissingLibrary``.
    """
    a, output = step.attributes, outputs[0]
    if step.kernel != "cusparselt.matmul":
        raise DeviceError(f"kernel {step.kernel} is unknown", layer=step.name, remedy="build the engine again")
    if not output.preallocated:
        raise DeviceError("cuSPARSELt writes into given memory only", layer=step.name)
    index = torch.cuda.current_device()
    rows, n, k = int(a["rows"]), int(a["n"]), int(a["k"])
    padded = -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE
    bound = a["upper_bound"]
    product = Product(
        padded, n, k, inputs[0].format.dtype, bool(a["relu"]), None if bound is None else float(bound),
        bool(a["residual"]), int(a["algorithm"]), int(a["split_k"]), int(a["split_k_mode"]),
    )  # fmt: skip
    kept, places = (constants[name] for name in step.constants[:2])
    bias = constants[step.constants[2]] if len(step.constants) > 2 else None
    launch = prepare(context(index), workspace, product, kept, places, bias, step.name)
    x, y = inputs[0].slot, output.slot
    residual = inputs[1].slot if product.residual else y
    if padded != rows:
        return _padded(launch, product, rows, (x, residual, y), kept, index)

    def run(slots: Slots) -> None:
        stream = torch.cuda.current_stream(index).cuda_stream
        launch(slots[x].data_ptr(), slots[residual].data_ptr(), slots[y].data_ptr(), stream)

    return run


def _padded(
    launch: Callable[[int, int, int, int], None],
    product: Product,
    rows: int,
    slots_used: tuple[int, int, int],
    like: Tensor,
    index: int,
) -> Runner:
    """A runner that copies through buffers of ``product.rows`` rows, of which the last are zeros."""
    wide_x = like.new_zeros(product.rows, product.k)
    wide_y = like.new_zeros(product.rows, product.n)
    wide_c = like.new_zeros(product.rows, product.n) if product.residual else wide_y
    x, residual, y = slots_used

    def run(slots: Slots) -> None:
        wide_x[:rows].copy_(_as_rows(slots[x], product.k))
        if product.residual:
            wide_c[:rows].copy_(_as_rows(slots[residual], product.n))
        stream = torch.cuda.current_stream(index).cuda_stream
        launch(wide_x.data_ptr(), wide_c.data_ptr(), wide_y.data_ptr(), stream)
        _as_rows(slots[y], product.n).copy_(wide_y[:rows])

    return run


def _as_rows(tensor: Tensor, width: int) -> Tensor:
    """The memory of a tensor or of an NHWC image as a matrix; always a view."""
    if not tensor.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.view(-1, width)


def expand(kept: Tensor, places: Tensor) -> Tensor:
    """The weight [n, k] of kept values [n, k / 2] and packed places [n, k / 8], on their device."""
    n, half = kept.shape
    pairs = torch.stack([places >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1).view(n, half // 2, 2)
    values = kept.view(n, half // 2, 2)
    weight = kept.new_zeros(n, half // 2, 4)
    for place in range(4):
        for i in (0, 1):
            torch.where(pairs[..., i] == place, values[..., i], weight[..., place], out=weight[..., place])
    return weight.view(n, 2 * half)


def prepare(
    context: Context,
    workspace: Workspace,
    product: Product,
    kept: Tensor,
    places: Tensor,
    bias: Tensor | None,
    layer: str,
) -> Callable[[int, int, int, int], None]:
    """A function that launches a product: addresses of B, C and D, and the stream.

    C is read with a residual only; pass D otherwise. Weight, scratch memory and plan live as long as the function.
    """
    library, handle = context.library, context.handle.address
    plan = _Plan(context, product, bias, layer)
    compressed = plan.compress(expand(kept, places))
    block = workspace.reserve(plan.workspace_bytes())
    one, beta = ctypes.c_float(1.0), ctypes.c_float(1.0 if product.residual else 0.0)
    alpha_at, beta_at = ctypes.byref(one), ctypes.byref(beta)
    call, plan_at, weight, scratch = library.cusparseLtMatmul, plan.address, compressed.data_ptr(), block.data_ptr()
    keep = (context, plan, bias, compressed, block)

    def launch(b: int, c: int, d: int, stream: int, _keep: object = keep) -> None:
        streams = ctypes.c_void_p(stream)
        status = call(handle, plan_at, alpha_at, weight, b, beta_at, c, d, scratch, ctypes.byref(streams), 1)
        if status:
            lt.check(library, status, "multiply", layer)

    return launch


class _Plan:
    """The library's structures for one product, which point to each other; freed together with this object.

    Making the selection of algorithms takes the library (0.8.0, H100) 0.3 s where D is column-major and a millisecond
    where it is row-major, which is slower to run. Plans of one product cannot share a selection: in 0.8.0 the process
    then died with a segmentation fault in MatmulPlanInit.
    """

    def __init__(self, context: Context, product: Product, bias: Tensor | None, layer: str) -> None:
        self._library, self._handle, self._layer = context.library, context.handle.address, layer
        self._ends: list[tuple[Callable[[int], int], lt.Opaque]] = []
        weakref.finalize(self, _destroy, self._ends, context).atexit = False
        p, kind = product, _DATA_TYPES[product.dtype]
        self._weight = self._new("MatDescriptor", "StructuredDescriptorInit", p.n, p.k, p.k, ALIGNMENT, kind,
                                 lt.Order.ROW, lt.Sparsity.S_50_PERCENT)  # fmt: skip
        dense = "MatDescriptor", "DenseDescriptorInit"
        inputs = self._new(*dense, p.rows, p.k, p.k, ALIGNMENT, kind, lt.Order.ROW)
        added, result = (self._new(*dense, p.n, p.rows, p.n, ALIGNMENT, kind, lt.Order.COL) for _ in range(2))
        matmul = self._new(
            "", "MatmulDescriptorInit", lt.Operation.NON_TRANSPOSE, lt.Operation.TRANSPOSE, self._weight.address,
            inputs.address, added.address, result.address, lt.ComputeType.C_32F,
        )  # fmt: skip
        self._epilogue(matmul, product, bias)
        selection = self._new("MatmulAlgSelection", "MatmulAlgSelectionInit", matmul.address, 0)
        self._choose(selection, product)
        self._plan = self._new("MatmulPlan", "MatmulPlanInit", matmul.address, selection.address)

    @property
    def address(self) -> int:
        """Where the plan lies."""
        return self._plan.address

    def _new(self, ended_by: str, maker: str, *arguments: int) -> lt.Opaque:
        made = lt.Opaque()
        status = getattr(self._library, f"cusparseLt{maker}")(self._handle, made.address, *arguments)
        self._check(status, maker)
        # A structure without an end of its own is kept all the same: others point to it.
        end = getattr(self._library, f"cusparseLt{ended_by}Destroy") if ended_by else _nothing
        self._ends.append((end, made))
        return made

    def _check(self, status: int, what: str) -> None:
        lt.check(self._library, status, f"run {what}", self._layer)

    def _epilogue(self, matmul: lt.Opaque, product: Product, bias: Tensor | None) -> None:
        values: list[tuple[lt.MatmulAttribute, Any]] = []
        if product.relu:
            values.append((lt.MatmulAttribute.ACTIVATION_RELU, ctypes.c_int(1)))
        if product.upper_bound is not None:
            values.append((lt.MatmulAttribute.ACTIVATION_RELU_UPPERBOUND, ctypes.c_float(product.upper_bound)))
        if bias is not None:
            values.append((lt.MatmulAttribute.BIAS_POINTER, ctypes.c_void_p(bias.data_ptr())))
        for attribute, value in values:
            status = self._library.cusparseLtMatmulDescSetAttribute(
                self._handle, matmul.address, attribute, ctypes.byref(value), ctypes.sizeof(value)
            )
            self._check(status, f"MatmulDescSetAttribute({attribute.name})")

    def _choose(self, selection: lt.Opaque, product: Product) -> None:
        most = ctypes.c_int()
        status = self._library.cusparseLtMatmulAlgGetAttribute(
            self._handle, selection.address, lt.AlgorithmAttribute.ALG_CONFIG_MAX_ID, ctypes.byref(most), 4
        )
        self._check(status, "MatmulAlgGetAttribute(ALG_CONFIG_MAX_ID)")
        if product.algorithm >= most.value:
            raise DeviceError(
                f"algorithm {product.algorithm}: cuSPARSELt offers only {most.value} algorithms", layer=self._layer
            )
        values = [(lt.AlgorithmAttribute.ALG_CONFIG_ID, product.algorithm)]
        if product.split_k > 1:
            values.append((lt.AlgorithmAttribute.SPLIT_K, product.split_k))
            values.append((lt.AlgorithmAttribute.SPLIT_K_MODE, product.split_k_mode))
        for attribute, number in values:
            value = ctypes.c_int(number)
            status = self._library.cusparseLtMatmulAlgSetAttribute(
                self._handle, selection.address, attribute, ctypes.byref(value), ctypes.sizeof(value)
            )
            self._check(status, f"MatmulAlgSetAttribute({attribute.name} = {number})")

    def workspace_bytes(self) -> int:
        """Bytes of scratch memory that the algorithm needs."""
        size = ctypes.c_size_t()
        status = self._library.cusparseLtMatmulGetWorkspace(self._handle, self.address, ctypes.byref(size))
        self._check(status, "MatmulGetWorkspace")
        return size.value

    def compress(self, weight: Tensor) -> Tensor:
        """The weight [n, k] in the library's own form, on the current stream; ``weight`` may be freed afterwards."""
        size, scratch = ctypes.c_size_t(), ctypes.c_size_t()
        matrix = self._weight.address
        status = self._library.cusparseLtSpMMACompressedSize2(
            self._handle, matrix, ctypes.byref(size), ctypes.byref(scratch)
        )
        self._check(status, "SpMMACompressedSize2")
        compressed, buffer = (
            torch.empty(max(each.value, 1), dtype=torch.uint8, device=weight.device) for each in (size, scratch)
        )
        sparse_is_a, stream = 1, torch.cuda.current_stream(weight.get_device()).cuda_stream
        status = self._library.cusparseLtSpMMACompress2(
            self._handle, matrix, sparse_is_a, lt.Operation.NON_TRANSPOSE, weight.data_ptr(),
            compressed.data_ptr(), buffer.data_ptr(), stream,
        )  # fmt: skip
        self._check(status, "SpMMACompress2")
        return compressed


def _nothing(address: int) -> int:
    return lt.SUCCESS


def _destroy(ends: list[tuple[Callable[[int], int], lt.Opaque]], context: Context) -> None:
    """Destroy structures, the last one first, while the library's handle still lives."""
    for destroy, structure in reversed(ends):
        destroy(structure.address)
