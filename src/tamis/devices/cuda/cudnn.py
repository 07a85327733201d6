"""Convolutions through cuDNN.

``cudnn.conv`` is one fused cuDNN graph, made with the Python package ``nvidia-cudnn-frontend``, which loads the cuDNN
that PyTorch brings. ``cudnn.torch_conv`` calls PyTorch's own operators and needs nothing else.

Plans are shared by all steps of a process that solve the same problem with the same rank, and are kept on disk. Steps
that share a workspace must not run on two streams at the same time.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from tamis.devices.base import BoundShape, Runner, Slots, Tensor
from tamis.devices.cuda import cudnn_torch
from tamis.devices.cuda.cudnn_graph import (
    BIAS,
    IMAGE,
    RESIDUAL,
    RESULT,
    WEIGHT,
    RankedPlans,
    deserialized,
    has_ready_engines,
)
from tamis.devices.cuda.cudnn_problem import ConvProblem, conv_problem
from tamis.devices.cuda.workspace import Workspace
from tamis.engine.plan import Step
from tamis.errors import DeviceError, MissingLibrary
from tamis.kernels import KernelStore, kernel_store

# The first cuDNN that plans for a GPU by its properties.
_PLANS_FROM_AFAR = 91100
# What runs a plan: addresses by number of the tensor, and the address of the workspace.
Execute: TypeAlias = Callable[[Mapping[int, int], int], None]


def bind(
    step: Step,
    constants: Mapping[str, Tensor],
    inputs: Sequence[BoundShape],
    outputs: Sequence[BoundShape],
    workspace: Workspace,
) -> Runner:
    """A runner for one ``cudnn.*`` step that launches on the current stream and can be captured in a graph.

    Constants: weight [K, R, S, C / groups], then the bias [K] if there is one. Inputs: the image [N, C, H, W], then
    the residual of the result's shape; images lie channels last. Raises ``DeviceError`` when cuDNN has no plan of the
    wanted rank, and ``MissingLibrary`` without the package.
    """
    weight = constants[step.constants[0]]
    bias = constants[step.constants[1]] if len(step.constants) > 1 else None
    if step.kernel == "cudnn.torch_conv":
        return cudnn_torch.bind_conv(step, weight, bias, inputs, outputs[0])
    if step.kernel != "cudnn.conv":
        raise DeviceError(f"kernel {step.kernel} is unknown", layer=step.name, remedy="build the engine again")
    return bind_conv(step, weight, bias, inputs, outputs[0], context(weight.device.index), workspace)


def bind_conv(
    step: Step,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Sequence[BoundShape],
    output: BoundShape,
    shared: Context,
    workspace: Workspace,
) -> Runner:
    """A runner for ``cudnn.conv`` with what the steps of its GPU share, and those of its session."""
    device = weight.device.index
    problem = conv_problem(step.attributes, inputs[0].shape, tuple(weight.shape), step.precision, bias=bias is not None)
    if problem.result != tuple(output.shape) or problem.residual != (len(inputs) > 1):
        raise DeviceError("the step contradicts the shapes of its values", layer=step.name, remedy="build it again")
    try:
        plan = shared.plan(problem, int(step.attributes["rank"]))
    except MissingLibrary:
        raise
    except DeviceError as error:
        raise DeviceError(error.cause, layer=step.name, remedy=error.remedy) from error
    block = workspace.reserve(plan.workspace)
    scratch, launch, execute = block.data_ptr(), shared.launch, plan.execute
    # Addresses of tensors that never move; the tensors themselves are held by the runner.
    fixed = {WEIGHT: weight.data_ptr()} | ({BIAS: bias.data_ptr()} if bias is not None else {})
    slots_of = [(IMAGE, inputs[0].slot), (RESULT, output.slot)]
    if problem.residual:
        slots_of.append((RESIDUAL, inputs[1].slot))

    def run(slots: Slots, _keep: object = (weight, bias, block)) -> None:
        addresses = {uid: slots[slot].data_ptr() for uid, slot in slots_of}
        launch(execute, addresses | fixed, scratch, torch.cuda.current_stream(device).cuda_stream)

    return run


@dataclass(frozen=True)
class Plan:
    """A plan that is ready to run, and the scratch memory it needs, in bytes."""

    execute: Execute
    workspace: int


class Context:
    """What the steps of one GPU share in a process: cuDNN, a handle and plans.

    They are used while steps are bound and recorded, which one thread at a time does; replays of a graph need them no
    more. Sessions that run step by step use them in every run, though, and a handle has one stream at a time: a lock
    keeps their launches apart.
    """

    def __init__(self, device: int, store: KernelStore | None) -> None:
        self.cudnn = frontend()
        self.store = store  # of plans, on disk
        with torch.cuda.device(device):
            self.handle = self.cudnn.create_handle()
        self.device = device
        properties = torch.cuda.get_device_properties(device)
        # What plans depend on besides their problem.
        self.versions = (
            f"{versions_of(self.cudnn)}, {properties.name}, sm_{properties.major}{properties.minor}, "
            f"{properties.multi_processor_count} multiprocessors"
        )
        self._ranked: dict[ConvProblem, RankedPlans] = {}
        self._plans: dict[tuple[ConvProblem, int], Plan] = {}
        self._refused: dict[tuple[ConvProblem, int], str] = {}
        self._lock = threading.Lock()

    @functools.cached_property
    def properties(self) -> str:
        """What cuDNN must know of the GPU to plan for it where it is not; empty where it cannot do that."""
        if self.cudnn.backend_version() < _PLANS_FROM_AFAR:
            return ""
        try:
            return str(self.cudnn.create_device_properties(self.device).serialize())
        except (AttributeError, RuntimeError):  # an older package
            return ""

    def refuse(self, problem: ConvProblem, rank: int, reason: str) -> None:
        """Remember that cuDNN has no such plan, so that nobody builds all plans before it to find out."""
        with self._lock:
            self._refused[problem, rank] = reason

    def launch(self, execute: Execute, addresses: Mapping[int, int], workspace: int, stream: int) -> None:
        """Give the work of a plan to a stream."""
        with self._lock:
            self.cudnn.set_stream(handle=self.handle, stream=stream)
            execute(addresses, workspace)

    def plan(self, problem: ConvProblem, rank: int) -> Plan:
        """The plan of a problem: from this process, from the disk, or built and then stored on both."""
        with self._lock:
            if (problem, rank) in self._refused:
                raise DeviceError(self._refused[problem, rank])
            found = self._plans.get((problem, rank))
            if found is None:
                found = self._plans[problem, rank] = self._stored(problem, rank) or self._built(problem, rank)
            return found

    def _stored(self, problem: ConvProblem, rank: int) -> Plan | None:
        data = self.store.read(plan_key(self.versions, problem, rank), "plan") if self.store is not None else None
        if data is None:
            return None
        try:
            return self._loaded(data)
        except DeviceError:
            return None  # of another driver, say: built anew and written over

    def _built(self, problem: ConvProblem, rank: int) -> Plan:
        ranked = self._ranked.get(problem)
        if ranked is None:
            ranked = self._ranked[problem] = RankedPlans(self.cudnn, problem, self._target(problem))
        index, graph = ranked.index(rank), ranked.graph
        try:
            data = ranked.serialize(rank)
        except DeviceError:  # some engines cannot be stored: they are built each time, with the handle that runs them
            if ranked.from_afar:
                raise
        else:
            if self.store is not None:
                self.store.write(plan_key(self.versions, problem, rank), "plan", data)
            if ranked.from_afar:
                return self._loaded(data)

        def execute(addresses: Mapping[int, int], workspace: int) -> None:
            graph.execute_plan_at_index(addresses, workspace, index=index, handle=self.handle)

        return Plan(execute, int(graph.get_workspace_size_plan_at_index(index)))

    def _target(self, problem: ConvProblem) -> dict[str, Any]:
        """What to plan with: as a builder would, where there may be builders, for its ranks would differ else."""
        if self.properties and not has_ready_engines([step.kind for step in problem.epilogue]):
            return {"device_property": self.cudnn.create_device_properties(self.properties)}
        return {"handle": self.handle}

    def _loaded(self, data: bytes) -> Plan:
        """The plan of stored bytes. Raises ``DeviceError`` when this cuDNN does not take them."""
        graph = deserialized(self.cudnn, data, {"handle": self.handle})

        def execute(addresses: Mapping[int, int], workspace: int) -> None:
            graph.execute(addresses, workspace, handle=self.handle)

        return Plan(execute, int(graph.get_workspace_size()))


def versions_of(cudnn: Any) -> str:
    """The versions of cuDNN and of its Python package, as text."""
    return f"cudnn {cudnn.backend_version()}, frontend {cudnn.__version__}"


def plan_key(versions: str, problem: ConvProblem, rank: int) -> str:
    """What a plan is stored under; ``versions`` are those of a context."""
    return f"{versions}, rank {rank}, {problem.key()}"


@functools.cache
def context(device: int) -> Context:
    """The context of a device, made when it is first asked for. Raises ``MissingLibrary``."""
    return Context(device, kernel_store())


@functools.cache
def frontend() -> Any:
    """The package ``nvidia-cudnn-frontend``, with cuDNN behind it. Raises ``MissingLibrary``."""
    remedy = "run: pip install --no-deps nvidia-cudnn-frontend, beside a CUDA build of PyTorch"
    try:
        # PyTorch is imported by now, so that the package finds the very cuDNN that PyTorch uses.
        cudnn = importlib.import_module("cudnn")
        cudnn.backend_version()
    except (ImportError, RuntimeError, AttributeError) as error:
        raise MissingLibrary(f"cuDNN's Python package is not usable ({error})", remedy=remedy) from error
    return cudnn
