"""Regions of layers that OpenVINO runs: the kernel ``openvino.region``.

Constants of a step: OpenVINO's graph (XML) and weights (binary), both uint8. Attributes: ``precision``, the type to
compute in; ``index_limits``, pairs of an input and a size, where the elements of the input are indices into that many:
OpenVINO itself does not notice one that lies outside. Inputs and outputs are in the order of the region; whatever types
they have at the border, OpenVINO converts them. Tensors are shared, never copied, as long as they are dense and
row-major.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

from tamis.devices.base import BoundShape, Runner, Slots, Tensor
from tamis.devices.tensors import empty, memory_format
from tamis.engine.plan import Step
from tamis.errors import DeviceError, MissingLibrary
from tamis.formats.dtype import DType

KERNEL = "openvino.region"
PROFILE_RUNS = 5
# Between a layer's name and a number, in the names of the operations of a region.
SEPARATOR = "#"
_ELEMENT_TYPES = {
    DType.FLOAT64: "f64",
    DType.FLOAT32: "f32",
    DType.FLOAT16: "f16",
    DType.BFLOAT16: "bf16",
    DType.INT64: "i64",
    DType.INT32: "i32",
    DType.INT16: "i16",
    DType.INT8: "i8",
    DType.UINT8: "u8",
    DType.BOOL: "boolean",
}


@cache
def _library() -> Any:
    """The package ``openvino``. Raises ``MissingLibrary`` when it is not installed."""
    try:
        import openvino  # noqa: PLC0415  an optional library, loaded on use
    except ImportError as error:
        raise MissingLibrary("OpenVINO is not installed", remedy="run 'pip install openvino'") from error
    return openvino


@cache
def _core() -> Any:
    """One OpenVINO for the process: loading its CPU plugin takes tens of milliseconds."""
    return _library().Core()


def _element_type(dtype: DType) -> Any:
    name = _ELEMENT_TYPES.get(DType(dtype))
    if name is None:
        raise DeviceError(f"OpenVINO is not given tensors of type {dtype}")
    return getattr(_library().Type, name)


def _settings(model: Any, precision: str, threads: int, *, alone: bool) -> dict[str, Any]:
    # OpenVINO's own code generator for pointwise chains; not needed for anything else in a model that it breaks on.
    generator = {"SNIPPETS_MODE": "DISABLE"} if _breaks_generator(model) else {}
    return generator | {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads wait for milliseconds behind the spinning OpenMP workers of torch operators; where
        # there are none, they keep to their caches.
        "ENABLE_CPU_PINNING": alone,
    }


# What may follow attention as its exporters write it: the code generator stops there.
_AFTER_ATTENTION = ("Convert", "MatMul", "Reshape", "Result", "Squeeze", "Transpose", "Unsqueeze")


def _breaks_generator(model: Any) -> bool:
    """Whether a pointwise layer follows a softmax and a product with nothing in between.

    OpenVINO (2026.4) then generates one kernel for all of it, and some forms of it, such as a difference that is read
    twice, end the process with a segmentation fault.
    """

    def readers(node: Any) -> list[Any]:
        return [port.get_node() for port in node.output(0).get_target_inputs()]

    seen, waiting = set(), [node for node in model.get_ops() if node.get_type_name() == "Softmax"]
    while waiting:
        for reader in readers(waiting.pop()):
            kind, name = reader.get_type_name(), reader.get_friendly_name()
            if kind == "MatMul":
                if any(after.get_type_name() not in _AFTER_ATTENTION for after in readers(reader)):
                    return True
            elif name not in seen and kind not in _AFTER_ATTENTION:  # scaled or masked on the way
                seen.add(name)
                waiting.append(reader)
    return False


def _read(xml: bytes, weights: np.ndarray) -> Any:
    """The model; its constants are views of ``weights``, which must live as long."""
    openvino = _library()
    weights = weights if weights.size else np.zeros(1, np.uint8)
    # OpenVINO shares no read-only memory; a copy belongs to the model.
    shared_memory = weights.size > 1 and bool(weights.flags.writeable)
    return _core().read_model(xml, openvino.Tensor(weights, shared_memory=shared_memory))


def _with_border(model: Any, inputs: Sequence[DType], outputs: Sequence[DType]) -> Any:
    """The model with these element types at its border; OpenVINO adds the conversions."""
    types_in = [_element_type(dtype) for dtype in inputs]
    types_out = [_element_type(dtype) for dtype in outputs]
    if len(model.inputs) != len(types_in) or len(model.outputs) != len(types_out):
        raise DeviceError(
            f"the region has {len(model.inputs)} inputs and {len(model.outputs)} outputs, "
            f"the step {len(types_in)} and {len(types_out)}"
        )
    border = _library().preprocess.PrePostProcessor(model)
    for index, (port, kind) in enumerate(zip(model.inputs, types_in, strict=True)):
        if port.get_element_type() != kind:
            border.input(index).tensor().set_element_type(kind)
    for index, (port, kind) in enumerate(zip(model.outputs, types_out, strict=True)):
        if port.get_element_type() != kind:
            border.output(index).tensor().set_element_type(kind)
    return border.build()


def shared(tensor: torch.Tensor) -> Any:
    """An OpenVINO tensor over the memory of a dense row-major torch tensor, which must outlive its use."""
    openvino = _library()
    if tensor.dtype is torch.bfloat16:
        carrier = tensor.view(torch.int16).numpy()
        return openvino.Tensor(carrier, list(tensor.shape), openvino.Type.bf16)
    return openvino.Tensor(tensor.numpy(), shared_memory=True)


def bind(
    step: Step, constants: Mapping[str, Tensor], inputs: Sequence[BoundShape], outputs: Sequence[BoundShape]
) -> Runner:
    """A runner for one ``openvino.region`` step: the model is compiled here, for torch's number of threads.

    A result that is not preallocated lies in memory of the runner: its next call overwrites it.
    """
    if step.kernel != KERNEL:
        raise DeviceError(f"kernel {step.kernel} is unknown", layer=step.name, remedy="build the engine again")
    for bound in (*inputs, *outputs):
        if memory_format(len(bound.shape), bound.format) is not torch.contiguous_format:
            raise DeviceError("OpenVINO is given row-major tensors only", layer=step.name)
    xml, weights = (constants[name].numpy() for name in step.constants)
    try:
        model = _with_border(
            _read(xml.tobytes(), weights), [b.format.dtype for b in inputs], [b.format.dtype for b in outputs]
        )
        alone = bool(step.attributes.get("alone", False))
        settings = _settings(model, str(step.attributes["precision"]), torch.get_num_threads(), alone=alone)
        compiled = _core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DeviceError(f"OpenVINO cannot compile it ({reason})", layer=step.name) from error
    limits = [(inputs[index].slot, int(size)) for index, size in step.attributes.get("index_limits", ())]
    return Region(compiled.create_infer_request(), weights, inputs, outputs, limits)


class Region:
    """A compiled region as a runner. It sets the tensors whose address changed since its last call, and runs.

    Args:
        request: OpenVINO's inference request.
        weights: the memory that the constants of the model lie in; kept alive here.
        inputs: where the inputs are.
        outputs: where the outputs go; those that are not preallocated get memory of the region.
        index_limits: slots of indices with the extent that they select from; ``IndexError`` for one outside.
    """

    def __init__(
        self,
        request: Any,
        weights: np.ndarray,
        inputs: Sequence[BoundShape],
        outputs: Sequence[BoundShape],
        index_limits: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._request = request
        self._weights = weights
        # The Python class around it converts inputs and collects outputs: 12 us a call, and we need neither.
        self._infer: Callable[..., Any] = _library()._pyopenvino.InferRequest.infer
        self._inputs = tuple((bound.slot, index) for index, bound in enumerate(inputs))
        self._given = tuple((bound.slot, index) for index, bound in enumerate(outputs) if bound.preallocated)
        self._own: list[tuple[int, torch.Tensor]] = []
        for index, bound in enumerate(outputs):
            if not bound.preallocated:
                tensor = empty(bound.shape, bound.format)
                request.set_output_tensor(index, shared(tensor))
                self._own.append((bound.slot, tensor))
        self._watched = tuple(slot for slot, _ in (*self._inputs, *self._given))
        self._addresses: list[int] = []
        self._index_limits = tuple(index_limits)

    def __call__(self, slots: Slots) -> None:
        """Run on the tensors in the slots."""
        for slot, size in self._index_limits:
            low, high = (int(bound) for bound in torch.aminmax(slots[slot]))
            if low < -size or high >= size:
                raise IndexError(f"index {low if low < -size else high} is out of range for {size}")
        addresses = [slots[slot].data_ptr() for slot in self._watched]
        if addresses != self._addresses:
            self._set_tensors(slots)
            self._addresses = addresses
        self._infer(self._request, {}, True, False)
        for slot, tensor in self._own:
            slots[slot] = tensor

    def _set_tensors(self, slots: Slots) -> None:
        for slot, index in self._inputs:
            if not slots[slot].is_contiguous():
                raise DeviceError("a region for OpenVINO was given a strided tensor")
            self._request.set_input_tensor(index, shared(slots[slot]))
        for slot, index in self._given:
            self._request.set_output_tensor(index, shared(slots[slot]))


def profile_region(
    xml: bytes, weights: np.ndarray, precision: DType, threads: int, inputs: Sequence[np.ndarray]
) -> dict[str, float]:
    """Microseconds that each layer of a region takes, by OpenVINO's own counters in a compilation of its own.

    A node that OpenVINO fused from several layers counts for the layer it is named after; the others then get
    0. What belongs to no layer, such as a conversion at the border, is added up under the empty name. Each is
    the median of ``PROFILE_RUNS`` runs.
    """
    openvino = _library()
    model = _read(xml, weights)
    settings = _settings(model, str(precision), threads, alone=False) | {"PERF_COUNT": "YES"}
    request = _core().compile_model(model, "CPU", settings).create_infer_request()
    tensors = {index: openvino.Tensor(np.ascontiguousarray(array)) for index, array in enumerate(inputs)}
    layers = _layers(xml)
    samples: dict[str, list[float]] = {}
    for turn in range(PROFILE_RUNS + 1):
        request.infer(tensors)
        totals: dict[str, float] = {}
        for node in request.get_profiling_info():
            # A node that OpenVINO added is called <producer>_..., a part of another one <node>/...
            layer = next((layer for layer in layers if node.node_name.startswith(layer + SEPARATOR)), "")
            totals[layer] = totals.get(layer, 0.0) + node.real_time.total_seconds() * 1e6
        if turn:  # the first run also allocates
            for layer, time in totals.items():
                samples.setdefault(layer, []).append(time)
    return {layer: float(np.median(times)) for layer, times in samples.items()}


def _layers(xml: bytes) -> list[str]:
    """The layers of a region, long names first, from the names of its operations: ``<layer>#<number>``."""
    names = {operation.get("name", "") for operation in ElementTree.fromstring(xml).iter("layer")}
    return sorted({name.rpartition(SEPARATOR)[0] for name in names}, key=len, reverse=True)
