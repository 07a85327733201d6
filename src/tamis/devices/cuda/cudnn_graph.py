"""Convolutions as cuDNN graphs, and the plans that cuDNN's heuristics offer for them.

Found by asking the heuristics of cuDNN 9.19 for an H200:

* ``conv [+ residual] + bias [-> relu]``, in this very order and with the bias in the type of the image, runs on
  engines that are compiled already: some forty plans, built in less than a millisecond each. With the residual behind
  the bias, or without a bias, only engines that are compiled at run time remain, six plans of half a second and more.
  Sums commute, so a leading residual is put before the bias; the tactic gives a zero bias where there is none.
* Every other pattern of activations is compiled at run time. ``clip(0, high)`` as one ReLU finds slow engines only;
  as two steps it finds those that other activations get.

float32 in memory says nothing of the products: engines with the numerical note TENSOR_CORE round them to tf32, so
they are left out for float32 and kept for tf32. DOWN_CONVERT_INPUTS (products of 16-bit values),
REDUCED_PRECISION_REDUCTION (sums in 16 bits) and NONDETERMINISTIC are left out always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tamis.devices.cuda.cudnn_problem import ConvProblem, Pointwise
from tamis.errors import DeviceError
from tamis.formats.dtype import DType

# The tensors of a graph, by number; equal in every graph, so that a stored plan needs no table.
IMAGE, WEIGHT, BIAS, RESIDUAL, RESULT = 1, 2, 3, 4, 5
# A plan that needs more scratch memory than this many bytes is not offered.
MOST_WORKSPACE = 1 << 30

_TYPES = {
    DType.FLOAT32: "FLOAT", DType.TF32: "FLOAT", DType.FLOAT16: "HALF", DType.BFLOAT16: "BFLOAT16",
}  # fmt: skip
ACTIVATIONS = ("clip", "gelu", "gelu_tanh", "leaky_relu", "relu", "sigmoid", "silu", "tanh")


def channels_last_strides(shape: tuple[int, int, int, int]) -> list[int]:
    """Strides in elements of a dense [N, C, H, W] tensor whose channels are innermost."""
    _, channels, height, width = shape
    return [height * width * channels, 1, width * channels, channels]


def build_graph(cudnn: Any, problem: ConvProblem, target: Mapping[str, Any]) -> Any:
    """A graph that cuDNN has accepted, without plans.

    ``target`` is ``{"handle": ...}``, or ``{"device_property": ...}`` to plan for a device that is not there. Raises
    ``DeviceError`` with cuDNN's words.
    """
    dtype, single = getattr(cudnn.data_type, _TYPES[problem.precision]), cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        name="conv", io_data_type=dtype, intermediate_data_type=single, compute_data_type=single, **target
    )

    def tensor(uid: int, shape: tuple[int, int, int, int]) -> Any:
        return graph.tensor(dim=list(shape), stride=channels_last_strides(shape), data_type=dtype, uid=uid)

    value = graph.conv_fprop(
        image=tensor(IMAGE, problem.image),
        weight=tensor(WEIGHT, problem.weight),
        pre_padding=list(problem.pads[:2]),
        post_padding=list(problem.pads[2:]),
        stride=list(problem.strides),
        dilation=list(problem.dilations),
        compute_data_type=single,
    )
    steps = list(problem.epilogue)
    if steps and steps[0].kind == "add":
        steps.pop(0)
        value = graph.add(a=value, b=tensor(RESIDUAL, problem.result))
    if problem.bias:
        value = graph.add(a=value, b=tensor(BIAS, (1, problem.weight[0], 1, 1)))
    for step in steps:
        if step.kind == "add":
            value = graph.add(a=value, b=tensor(RESIDUAL, problem.result))
        else:
            value = _activation(graph, value, step)
    value.set_output(True).set_data_type(dtype).set_uid(RESULT)
    value.set_dim(list(problem.result)).set_stride(channels_last_strides(problem.result))
    try:
        graph.validate()
        graph.build_operation_graph()
    except (RuntimeError, ValueError, cudnn.cudnnGraphNotSupportedError) as error:
        raise DeviceError(f"cuDNN refuses the convolution: {_first_line(error)}") from error
    return graph


def _activation(graph: Any, value: Any, step: Pointwise) -> Any:
    if step.kind == "clip":
        low, high = step.params
        if low == 0.0:
            return graph.relu(graph.relu(value), lower_clip=0.0, upper_clip=high)
        return graph.relu(value, lower_clip=low, upper_clip=high)
    if step.kind == "leaky_relu":
        return graph.leaky_relu(value, negative_slope=step.params[0])
    if step.kind == "silu":
        return graph.swish(value, swish_beta=1.0)
    plain = {
        "relu": graph.relu, "sigmoid": graph.sigmoid, "tanh": graph.tanh, "gelu": graph.gelu,
        "gelu_tanh": graph.gelu_approx_tanh,
    }  # fmt: skip
    if step.kind not in plain:
        raise DeviceError(f"cuDNN has no activation '{step.kind}'")
    return plain[step.kind](value)


def can_fuse(kind: str, params: tuple[float, ...]) -> bool:
    """Whether a unary step can be part of a graph."""
    counts = {"clip": 2, "leaky_relu": 1}
    return kind in ACTIVATIONS and len(params) == counts.get(kind, 0) and all(map(math.isfinite, params))


def has_ready_engines(kinds: Sequence[str]) -> bool:
    """Whether cuDNN has engines for an epilogue that need no compilation: a leading residual, then ReLU."""
    return tuple(kinds) in ((), ("add",), ("relu",), ("add", "relu"))


class RankedPlans:
    """The plans of one problem that can be built, in the order of cuDNN's heuristics.

    ``from_afar``: they are planned without the GPU, so they run only when they are stored and loaded again.

    Plans are built when they are asked for and kept. Building may compile (0.3 to 4 s), so a rank costs all ranks
    before it; a race asks for them in turn.
    """

    def __init__(self, cudnn: Any, problem: ConvProblem, target: Mapping[str, Any]) -> None:
        self._cudnn = cudnn
        self.from_afar = "handle" not in target
        self.graph = build_graph(cudnn, problem, target)
        self._built: list[int] = []
        self._next = 0
        note = cudnn.numerical_note
        unwanted = [note.DOWN_CONVERT_INPUTS, note.REDUCED_PRECISION_REDUCTION, note.NONDETERMINISTIC]
        if problem.precision == DType.FLOAT32:
            unwanted.append(note.TENSOR_CORE)
        modes = [cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK]
        try:
            self.graph.create_execution_plans(modes)
            self.graph.deselect_numeric_notes(unwanted)
            self.graph.deselect_workspace_greater_than(MOST_WORKSPACE)
        except (RuntimeError, ValueError, cudnn.cudnnGraphNotSupportedError) as error:
            raise DeviceError(f"cuDNN has no plan for the convolution: {_first_line(error)}") from error

    def index(self, rank: int) -> int:
        """Where the plan of this rank, built and selected, stands in the graph's list.

        Raises ``DeviceError`` when fewer plans can be built.
        """
        unsupported = self._cudnn.cudnnGraphNotSupportedError
        failure = ""
        while len(self._built) <= rank:
            if self._next >= self.graph.get_execution_plan_count():
                offered = f"cuDNN offers only {len(self._built)} algorithms"
                raise DeviceError(f"{offered} ({failure})" if failure and not self._built else offered)
            index, self._next = self._next, self._next + 1
            try:
                self.graph.build_plan_at_index(index)
                self._built.append(index)
            except (RuntimeError, ValueError, unsupported) as error:
                failure = _first_line(error)
        return self._built[rank]

    def serialize(self, rank: int) -> bytes:
        """The plan of a rank as bytes, compiled code included; ``DeviceError`` when cuDNN cannot do that."""
        try:
            self.graph.build_plan_at_index(self.index(rank))  # a plan that is built already is just selected
            return bytes(self.graph.serialize(as_bytes=True))
        except (RuntimeError, ValueError, self._cudnn.cudnnGraphNotSupportedError) as error:
            raise DeviceError(f"cuDNN cannot store the plan: {_first_line(error)}") from error


def deserialized(cudnn: Any, data: bytes, target: Mapping[str, Any]) -> Any:
    """The graph of stored bytes, with its one plan; ``DeviceError`` when this cuDNN does not take them."""
    graph = cudnn.pygraph(**target)
    try:
        graph.deserialize(*([target["handle"]] if "handle" in target else []), data)
    except (RuntimeError, ValueError, cudnn.cudnnGraphNotSupportedError) as error:
        raise DeviceError(f"cuDNN does not take the stored plan: {_first_line(error)}") from error
    return graph


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
